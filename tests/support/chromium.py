"""Headless Chromium over its DevTools pipe: no driver, no port and no package is needed."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import time

FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to start as root with it, as which containers run.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
ANSWER_S = 60
TROUBLE = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening"}


class Chromium:
    """A browser with one page. It reads commands from its descriptor 3 and writes to 4, JSON with a NUL after each."""

    def __init__(self, folder):
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        (commands, self._write), (self._read, answers) = os.pipe(), os.pipe()
        # High numbers, so that putting the one at 3 cannot overwrite the other.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]
        self._process = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, given[0], 3),
                (os.POSIX_SPAWN_DUP2, given[1], 4),
            ],
        )
        for end in (commands, answers, *given):
            os.close(end)
        self._unread, self._commands, self._session, self.events = b"", 0, {}, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self._commands += 1
        message = {"id": self._commands, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._commands:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read], [], [], ANSWER_S)
            assert ready, f"Chromium has not answered for {ANSWER_S} s"
            read = os.read(self._read, 1 << 20)
            assert read, "Chromium has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, url):
        self.events = []
        self.send("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def resize(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

    def prefer(self, scheme):
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script):
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def run_until(self, script):
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + ANSWER_S
        while not self.run(script):
            assert time.monotonic() < deadline, f"{script} has not come true for {ANSWER_S} s"

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def mouse(self, kind, x, y):
        button = "none" if kind == "mouseMoved" else "left"
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def click(self, selector):
        """With the real mouse, in the middle of the first element that the selector finds."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        middle = f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())"
        x, y = self.run(middle)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    def troubles(self):
        return [event for event in self.events if event["method"] in TROUBLE]

    def requests(self):
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def close(self):
        self._session = {}
        self.send("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)
