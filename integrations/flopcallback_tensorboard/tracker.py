"""TensorBoardTracker: what TensorBoard can show of a profile, written through a SummaryWriter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcallback.reporting import (
    html_page,
    latency_chart,
    markdown_operators,
    markdown_top,
    module_chart,
    pixels,
    plain_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from flopcallback.reporting import ModelProfile

__all__ = ["TensorBoardTracker"]

_USED = ("add_scalar", "add_text", "add_image", "flush")


class TensorBoardTracker:
    """Writes to a `SummaryWriter` of `torch.utils.tensorboard` or tensorboardX, or to Lightning's logger around one.

    A scalar in TensorBoard is a float32: exact integers stand in the texts and in the files beside the events.
    The writer belongs to the caller and stays open.

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

        A profile with times adds the figure `flops/latency`. `flopcallback.json` and `flopcallback.html`, which
        TensorBoard itself cannot show, stand beside the events where they are in a local folder.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; texts and files are written nevertheless.
        """
        tag = self.prefix + profile.phase_prefix
        self.writer.add_text(f"{tag}flops/tree", _fenced(plain_table(profile)), step)
        self.writer.add_text(f"{tag}flops/modules", markdown_top(profile), step)
        self.writer.add_text(f"{tag}flops/operators", markdown_operators(profile), step)
        self._write_files(profile)
        self.writer.flush()
        self._add_figure(f"{tag}flops/by_module", module_chart(profile), step)
        if any((row.forward_ms or 0.0) > 0 for row in profile.modules):
            self._add_figure(f"{tag}flops/latency", latency_chart(profile), step)
        self.writer.flush()

    def close(self) -> None:
        """Flushes the writer, and leaves it open for its owner."""
        self.writer.flush()

    def _add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """As an image: the writers' own `add_figure` imports pyplot, and with it picks a backend for the process."""
        self.writer.add_image(tag, pixels(figure), step, dataformats="HWC")

    def _write_files(self, profile: ModelProfile) -> None:
        # torch's attribute and tensorboardX's; the latter has None where it writes nothing to disk.
        folder = getattr(self.writer, "log_dir", None) or getattr(self.writer, "logdir", None)
        if folder is None or "://" in str(folder):
            return  # A bucket: the writer alone knows how to write there.
        stem = re.sub(r"[^\w.-]+", "-", f"{self.prefix}{profile.file_stem}")
        Path(folder).mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", profile.to_json(indent=1)), (".html", html_page(profile))):
            (Path(folder) / f"{stem}{suffix}").write_text(text + "\n", encoding="utf-8")


def _fenced(text: str) -> str:
    """The text as a block that stands in monospace; the fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
