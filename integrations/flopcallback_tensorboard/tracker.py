"""TensorBoardTracker: profiles and numbers in TensorBoard, written through a SummaryWriter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcallback.profile.metrics import FORWARD_MS, card, describes_run, placed
from flopcallback.profile.numbers import finite
from flopcallback.profile.old_profiles import is_old
from flopcallback.reporting import (
    ModelProfile,
    latency_chart,
    markdown_operators,
    markdown_top,
    measured_leaves,
    module_chart,
    pixels,
    plain_table,
    report_files,
    write_file,
)
from flopcallback_tensorboard.events import hyperparameters, note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

__all__ = ["TensorBoardTracker"]

# Methods of a writer that are called here.
_USED = ("add_scalar", "add_text", "add_image", "flush")

# Tag of the notes; a user's prefix is in front.
NUMBERS = "flopcallback"

# Characters that a text card shows in a window 1400 pixels wide, without scrolling.
TREE_WIDTH = 120


class TensorBoardTracker:
    """A tracker that writes through a `SummaryWriter`.

    Everything that it shows is in the section `workload`. A scalar in TensorBoard is a float32: exact integers are in
    the texts, in the files beside the events, and in notes among them, which TensorBoard does not show. Numbers that
    are not charted become hyperparameters when the tracker is closed, unless the run has some by then. A writer that is
    given belongs to the caller and stays open.

    Figures and page take longer than everything else, and show times. A profile of a training that has none yet gets
    them with the next numbers of a later step or by `close`, unless the same profile with times comes first.

    TensorBoard shows every text that was ever written under a tag. So a second fit or a resumed run adds its profile
    only if `flopcallback.json` beside the events has other counts, or has no times or no whole step yet. Without that
    file, everything is written.

    Args:
        target: the writer, of `torch.utils.tensorboard` or tensorboardX, or Lightning's logger around one. The string
            `"tensorboard"` makes a writer as `SummaryWriter()` does, in a new folder under `runs/`; `close` closes it.
        prefix: prefix of the tags of texts and figures, and of the files' names.

    Raises:
        TypeError: `target` is none of these.
        ModuleNotFoundError: `target` is `"tensorboard"`, which is not installed.
    """

    def __init__(self, target: Any, *, prefix: str = "") -> None:
        self._is_own = target == "tensorboard"  # True if nobody else closes the writer
        if self._is_own:
            target = _new_writer()
        writer = target if hasattr(target, "add_scalar") else getattr(target, "experiment", None)
        if not all(callable(getattr(writer, method, None)) for method in _USED):
            raise TypeError(
                f"TensorBoardTracker: {target!r} is no SummaryWriter and has none as its .experiment. Make one and "
                "give it: torch.utils.tensorboard.SummaryWriter(folder); 'tensorboard' makes one in runs/."
            )
        self.writer: Any = writer
        self.prefix = prefix
        self._has_hyperparameters = bool(getattr(target, "hparams", None))  # Lightning's logger has written them
        self._notes: list[tuple[str, int]] = []  # texts and steps that wait until the writer is open
        self._kept: dict[str, int | float] = {}  # numbers that are to be hyperparameters
        self._undrawn: tuple[ModelProfile, int] | None = (
            None  # profile of a training that awaits its times, and its step
        )

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Add one point to each chart, and a note with all numbers.

        TensorBoard keeps a point as a float32.
        """
        charts, kept = placed(values)
        for name, value in charts.items():
            self.writer.add_scalar(name, float(value), step)
        self._kept.update((name, value) for name, value in kept.items() if describes_run(name))
        numbers = {name: finite(value) for name, value in values.items()}
        self._notes.append((json.dumps(numbers, allow_nan=False), step))
        self._write_notes()
        if self._undrawn is not None and step > self._undrawn[1] and not _are_times(values):
            self._draw_undrawn()

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Add texts `workload/tree`, `workload/modules`, `workload/operators` and figures.

        The figures are `workload/by_module` and, with times, `workload/latency`. Operators have no times, so their text
        is added only if it changed. `flopcallback.json` and `flopcallback.html`, which TensorBoard cannot show, are
        written beside the events if these are in a local folder.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; texts and files are written nevertheless.
        """
        shown = self._shown_profile(profile)
        if shown is not None and _is_shown(shown, profile):
            return
        tag = self.prefix + profile.phase_prefix
        self.writer.add_text(tag + card("tree"), _fenced(plain_table(profile, width=TREE_WIDTH)), step)
        self.writer.add_text(tag + card("modules"), markdown_top(profile), step)
        operators = markdown_operators(profile)
        if shown is None or operators != markdown_operators(shown):
            self.writer.add_text(tag + card("operators"), operators, step)
        self._write_files(profile, ".json")
        self._write_notes()
        self.writer.flush()
        if profile.phase == "train":
            self._undrawn = profile, step
        if profile.phase != "train" or profile.latency is not None:
            self._draw(profile, step)

    def log_training(self, profile: ModelProfile) -> None:
        """Replace the files beside the events.

        The charts have the numbers as they were logged.
        """
        self._write_files(profile, ".json", ".html")

    def close(self) -> None:
        """Draw what waits, add hyperparameters, flush the writer, and leave it open for its owner.

        A closed writer opens another file of events in its folder when it is written to again.
        """
        try:
            self._draw_undrawn()
        finally:
            # As late as possible: TensorBoard shows a run's first ones, and they may be the user's.
            if self._kept and not self._has_hyperparameters and self._is_open:
                self._has_hyperparameters = True
                hyperparameters(self.writer, self._kept)
            self.writer.flush()
            if self._is_own:
                self.writer.close()

    def page_of(self, profile: ModelProfile) -> str | None:
        """Return the path of the page beside the events; None in a bucket."""
        folder = self._folder()
        return None if folder is None else str(folder / f"{self._stem(profile)}.html")

    @property
    def log_dir(self) -> str | None:
        """Folder of the events that nobody else knows; None for a writer that was given."""
        return str(self.writer.log_dir) if self._is_own else None

    @property
    def _is_open(self) -> bool:
        """False for a writer that was closed. Its next text, image or scalar opens it."""
        return self.writer.file_writer is not None

    def _write_notes(self) -> None:
        while self._notes and self._is_open:
            text, step = self._notes.pop(0)
            note(self.writer, f"{self.prefix}{NUMBERS}", text, step)

    def _draw_undrawn(self) -> None:
        if self._undrawn is not None:
            self._draw(*self._undrawn)

    def _draw(self, profile: ModelProfile, step: int) -> None:
        """Write the page, and add the figures."""
        if profile.phase == "train":
            self._undrawn = None  # even if it fails: it is reported, and not tried again
        tag = self.prefix + profile.phase_prefix
        self._write_files(profile, ".html")
        self._add_figure(tag + card("by_module"), module_chart(profile), step)
        if measured_leaves(profile):
            self._add_figure(tag + card("latency"), latency_chart(profile), step)
        self.writer.flush()

    def _add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add a figure as an image."""
        # Not the writers' `add_figure`, which imports pyplot, and so chooses a backend for the whole process.
        self.writer.add_image(tag, pixels(figure), step, dataformats="HWC")

    def _shown_profile(self, profile: ModelProfile) -> ModelProfile | None:
        """Return the profile in the folder, of the same phase and prefix.

        What an older version showed was in other units, and counts as nothing.
        """
        folder = self._folder()
        if folder is None or not (folder / f"{self._stem(profile)}.html").is_file():  # the last that is written
            return None
        file = folder / f"{self._stem(profile)}.json"
        try:
            content = file.read_bytes()
            return None if is_old(content) else ModelProfile.from_json(content)
        except (OSError, ValueError):  # unreadable, not one of ours, or of another schema
            return None

    def _write_files(self, profile: ModelProfile, *suffixes: str) -> None:
        folder = self._folder()
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in report_files(profile, suffixes=suffixes):
            write_file(folder / f"{self._stem(profile)}{suffix}", text)

    def _folder(self) -> Path | None:
        """Return the local folder of the events; None for a bucket.

        Only the writer knows how to write to a bucket.
        """
        # torch's attribute and that of tensorboardX, which is None if nothing is written to disk.
        folder = getattr(self.writer, "log_dir", None) or getattr(self.writer, "logdir", None)
        return None if folder is None or "://" in str(folder) else Path(folder)

    def _stem(self, profile: ModelProfile) -> str:
        return re.sub(r"[^\w.-]+", "-", f"{self.prefix}{profile.file_stem}")


def _new_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "TensorBoardTracker needs TensorBoard: pip install tensorboard", name="tensorboard"
        ) from error
    return SummaryWriter()


def _are_times(values: Mapping[str, int | float]) -> bool:
    """Return whether numbers are those of a profile that has got its times, and comes next."""
    return any(name.endswith(FORWARD_MS.name) for name in values)


def _is_shown(shown: ModelProfile, profile: ModelProfile) -> bool:
    """Return whether the shown profile has all that the new one has.

    These are the same counts, and times and a whole step if the new one has them.
    """
    has_times = shown.latency is not None or profile.latency is None
    has_step = shown.step is not None or profile.step is None
    return has_times and has_step and shown.fingerprint() == profile.fingerprint()


def _fenced(text: str) -> str:
    """Put a text into a code block, for monospace.

    The fence is longer than any run of backticks in the text.
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
