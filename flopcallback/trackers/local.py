"""LocalTracker: a tracker that writes files into a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from flopcallback.profile.numbers import finite, plain_number
from flopcallback.reporting import ModelProfile, report_files, write_file

__all__ = ["LocalTracker"]


class LocalTracker:
    """A tracker that writes `scalars.jsonl` and the files of each phase's profile.

    These are `flopcallback.json`, `.html`, `.txt` and `.md`. The folder is made when the first file is written. A line
    of `scalars.jsonl` is one call of `log_scalars`; integers are exact, and numbers that are not finite are null. The
    file has the numbers of one tracker: its first call empties it, as the profile of an earlier run is replaced. The
    files of a profile are replaced as a whole, so that none is ever half written.

    Args:
        folder: the folder; `~` is the home folder.

    Raises:
        ValueError: `folder` is empty.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not os.fspath(folder):
            raise ValueError("LocalTracker: folder is '', expected a folder; '.' is the working directory")
        self.folder = Path(folder).expanduser()
        # False until the first call, which replaces the file of an earlier run. Later calls append.
        self._has_written = False
        # Step of the last profile by phase, for `log_training`, which is given none.
        self._steps: dict[str, int] = {}

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Append one line of JSON."""
        numbers = {"step": int(step), **{name: finite(plain_number(value)) for name, value in values.items()}}
        line = json.dumps(numbers, ensure_ascii=False, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "scalars.jsonl").open("a" if self._has_written else "w", encoding="utf-8") as file:
            self._has_written = True
            file.write(line + "\n")

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Replace the four files of the profile's phase.

        Only the step of the last call is in them.
        """
        self._steps[profile.phase] = step
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in report_files(profile, step):
            write_file(self.folder / f"{profile.file_stem}{suffix}", text)

    def log_training(self, profile: ModelProfile) -> None:
        """Replace the files of the profile."""
        self.log_profile(profile, self._steps.get(profile.phase, 0))

    def close(self) -> None:
        """Do nothing: every call has written its files."""
