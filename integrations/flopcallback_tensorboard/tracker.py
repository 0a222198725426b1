"""TensorBoardTracker: what TensorBoard can show of a profile, written through a SummaryWriter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

__all__ = ["TensorBoardTracker"]

_USED = ("add_scalar", "add_text", "add_image", "flush")

TREE_WIDTH = 120
"""Characters that the card of a text shows in a window 1400 pixels wide; what is beyond has to be scrolled."""


class TensorBoardTracker:
    """Writes to a `SummaryWriter` of `torch.utils.tensorboard` or tensorboardX, or to Lightning's logger around one.

    A scalar in TensorBoard is a float32: exact integers stand in the texts and in the files beside the events.
    The writer belongs to the caller and stays open.

    TensorBoard shows every text that was ever written under a tag. So a second fit or a resumed run adds its profile
    only where `flopcallback.json` beside the events is not of the same counts, or has no times or no whole step yet.
    Without that file, all is written anew.

    Args:
        target: the writer or the logger.
        prefix: stands in front of the tags of texts and figures, and of the files' names.

    Raises:
        TypeError: `target` is neither.
    """

    def __init__(self, target: Any, *, prefix: str = "") -> None:
        writer = target if hasattr(target, "add_scalar") else getattr(target, "experiment", None)
        if not all(callable(getattr(writer, method, None)) for method in _USED):
            raise TypeError(
                f"TensorBoardTracker: {target!r} is no SummaryWriter and has none as its .experiment. Make one and "
                "give it: torch.utils.tensorboard.SummaryWriter(folder)."
            )
        self.writer: Any = writer
        self.prefix = prefix

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Adds one point to each chart; TensorBoard keeps it as a float32."""
        for name, value in values.items():
            self.writer.add_scalar(name, float(value), step)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Adds texts `flops/tree`, `flops/modules`, `flops/operators`, and the figure `flops/by_module`.

        A profile with times adds the figure `flops/latency`. Operators have no times, and are not written again where
        the same are shown. `flopcallback.json` and `flopcallback.html`, which TensorBoard itself cannot show, stand
        beside the events where they are in a local folder.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; texts and files are written nevertheless.
        """
        earlier = self._earlier(profile)
        if earlier is not None and _shows(earlier, profile):
            return
        tag = self.prefix + profile.phase_prefix
        self.writer.add_text(f"{tag}flops/tree", _fenced(plain_table(profile, width=TREE_WIDTH)), step)
        self.writer.add_text(f"{tag}flops/modules", markdown_top(profile), step)
        operators = markdown_operators(profile)
        if earlier is None or operators != markdown_operators(earlier):
            self.writer.add_text(f"{tag}flops/operators", operators, step)
        self._write_files(profile)
        self.writer.flush()
        self._add_figure(f"{tag}flops/by_module", module_chart(profile), step)
        if measured_leaves(profile):
            self._add_figure(f"{tag}flops/latency", latency_chart(profile), step)
        self.writer.flush()

    def log_training(self, profile: ModelProfile) -> None:
        """Writes the files beside the events anew; the charts have the numbers as they went."""
        self._write_files(profile)

    def close(self) -> None:
        """Flushes the writer, and leaves it open for its owner."""
        self.writer.flush()

    def _add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """As an image: the writers' own `add_figure` imports pyplot, and with it picks a backend for the process."""
        self.writer.add_image(tag, pixels(figure), step, dataformats="HWC")

    def _earlier(self, profile: ModelProfile) -> ModelProfile | None:
        """What the folder shows already, of the same phase and prefix."""
        folder = self._folder()
        if folder is None or not (file := folder / f"{self._stem(profile)}.json").is_file():
            return None
        try:
            return ModelProfile.from_json(file.read_bytes())
        except ValueError:  # Not one of ours, or of another schema.
            return None

    def _write_files(self, profile: ModelProfile) -> None:
        folder = self._folder()
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in report_files(profile, suffixes=(".json", ".html")):
            (folder / f"{self._stem(profile)}{suffix}").write_text(text, encoding="utf-8")

    def _folder(self) -> Path | None:
        """Where the events are; None for a bucket, to which the writer alone knows how to write."""
        # torch's attribute and tensorboardX's; the latter has None where it writes nothing to disk.
        folder = getattr(self.writer, "log_dir", None) or getattr(self.writer, "logdir", None)
        return None if folder is None or "://" in str(folder) else Path(folder)

    def _stem(self, profile: ModelProfile) -> str:
        return re.sub(r"[^\w.-]+", "-", f"{self.prefix}{profile.file_stem}")


def _shows(earlier: ModelProfile, profile: ModelProfile) -> bool:
    """Whether the earlier one has the same counts, with times and a whole step where the other has them."""
    has_times = earlier.latency is not None or profile.latency is None
    has_step = earlier.step is not None or profile.step is None
    return has_times and has_step and earlier.fingerprint() == profile.fingerprint()


def _fenced(text: str) -> str:
    """The text as a block that stands in monospace; the fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
