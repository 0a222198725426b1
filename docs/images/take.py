"""Take the pictures of the report page that README and docs show, of a profile of the demo.

`make pictures` takes them of `page.json`; `make pictures DEMO=1`, after `make demo`, puts the demo's new profile there
first. `page.sha256` has the hash of the page that was pictured, and of each picture: a test holds them to what the
sources draw now, so no picture is older than the page. It needs Chromium.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flopcallback.reporting import ModelProfile, html_page

IMAGES = Path(__file__).parent
ROOT = IMAGES.parents[1]
PROFILE, HASHES = IMAGES / "page.json", IMAGES / "page.sha256"
OF_DEMO = ROOT / "demo_output" / "report" / "flopcallback.json"

OPEN_A_FOLD = """
document.querySelector('#body tr:has(.fold) td:nth-child(3)').click();
document.activeElement.blur();
document.getElementById('modules').scrollIntoView();
"""

PICTURES = {
    "page-light.png": (1280, 800, "light", ""),
    "page-frame.png": (600, 400, "light", ""),
    "page-dark.png": (1280, 900, "dark", OPEN_A_FOLD),
    "page-phone.png": (390, 844, "light", ""),
}
"""Width, height, colours, and what is done before."""


def page() -> str:
    """Render the page that is pictured."""
    return html_page(ModelProfile.from_json(PROFILE.read_text(encoding="utf-8")))


def hashes() -> Iterator[str]:
    """Yield the lines of `page.sha256`: of the page, and of each picture."""
    yield f"{hashlib.sha256(page().encode()).hexdigest()}  page"
    for name in PICTURES:
        yield f"{hashlib.sha256((IMAGES / name).read_bytes()).hexdigest()}  {name}"


def take() -> None:
    """Take all pictures."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from chromium import Chromium

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page(), encoding="utf-8")
        browser = Chromium(Path(folder) / "chromium")
        browser.send("Emulation.setScrollbarsHidden", hidden=True)  # one fades at its own time
        for name, (width, height, scheme, script) in PICTURES.items():
            browser.resize(width, height)
            browser.prefer(scheme)
            browser.open(file.as_uri())
            browser.run_until("'drawn' in document.documentElement.dataset")
            browser.run(script)
            picture = browser.send("Page.captureScreenshot", format="png")["data"]
            (IMAGES / name).write_bytes(base64.b64decode(picture))
        browser.close()
    HASHES.write_text("".join(f"{line}\n" for line in hashes()), encoding="utf-8")


if __name__ == "__main__":
    if "--demo" in sys.argv[1:]:
        profile = ModelProfile.from_json(OF_DEMO.read_text(encoding="utf-8"))
        PROFILE.write_text(profile.to_json() + "\n", encoding="utf-8")
    take()
