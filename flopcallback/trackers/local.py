"""LocalTracker: files in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from flopcallback.profile.numbers import finite
from flopcallback.reporting import ModelProfile, report_files

__all__ = ["LocalTracker"]


class LocalTracker:
    """Files in a folder: `scalars.jsonl`, and per phase the profile as `flopcallback.json`, `.html`, `.txt` and `.md`.

    The folder is made when the first file is written. A line of `scalars.jsonl` is one call of `log_scalars`; integers
    are exact, and numbers that are not finite stand as null. The file holds the numbers of one tracker: its first call
    begins it anew, as the profile of an earlier run is replaced.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._has_begun = False
        self._steps: dict[str, int] = {}

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Adds one line of JSON."""
        numbers = {"step": step, **{name: finite(value) for name, value in values.items()}}
        line = json.dumps(numbers, ensure_ascii=False, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "scalars.jsonl").open("a" if self._has_begun else "w", encoding="utf-8") as file:
            self._has_begun = True
            file.write(line + "\n")

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Writes the four files of the profile's phase anew; only `step` of the latest call can be read from them."""
        self._steps[profile.phase] = step
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in report_files(profile, step):
            (self.folder / f"{profile.file_stem}{suffix}").write_text(text, encoding="utf-8")

    def log_training(self, profile: ModelProfile) -> None:
        """Writes the files of the profile anew."""
        self.log_profile(profile, self._steps.get(profile.phase, 0))

    def close(self) -> None:
        """Does nothing: every call has written its files."""
