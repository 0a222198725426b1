"""LocalTracker: a tracker that writes files into a folder."""

from __future__ import annotations

import itertools
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from flopcallback.profile.numbers import finite, plain_number
from flopcallback.reporting import ModelProfile, report_files, write_file

__all__ = ["LocalTracker", "next_number"]

next_number = itertools.count().__next__
"""Return the next number in the order of logging. All folders of this process share one order."""


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
        # Place of each line in the order of logging.
        self._numbers = array("q")
        # The same of the last profile, by phase; and its step, for `log_training`, which is given none.
        self._profiles: dict[str, int] = {}
        self._steps: dict[str, int] = {}

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Append one line of JSON."""
        self.insert_scalars([(next_number(), step, values)])

    def insert_scalars(self, entries: Sequence[tuple[int, int, Mapping[str, int | float]]]) -> None:
        """Write lines of JSON where they belong among the others.

        Args:
            entries: for each line its place in the order of logging (`next_number`), its step and its numbers.
        """
        new = sorted(((number, _line(values, step)) for number, step, values in entries), key=lambda line: line[0])
        if not new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "scalars.jsonl"
        if self._numbers and new[0][0] < self._numbers[-1]:
            written = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
            # Otherwise somebody else writes there, too, and the places of the lines are not known.
            if len(written) == len(self._numbers):
                lines = sorted([*zip(self._numbers, written, strict=True), *new], key=lambda line: line[0])
                write_file(file, "".join(f"{line}\n" for _, line in lines))
                self._numbers = array("q", (number for number, _ in lines))
                return
        with file.open("a" if self._has_written else "w", encoding="utf-8") as opened:
            self._has_written = True
            opened.write("".join(f"{line}\n" for _, line in new))
        self._numbers.extend(number for number, _ in new)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Replace the four files of the profile's phase.

        Only the step of the last call is in them.
        """
        self.insert_profile(next_number(), step, profile)

    def insert_profile(self, number: int, step: int, profile: ModelProfile) -> None:
        """Replace the four files, unless they have a later profile.

        Args:
            number: place in the order of logging (`next_number`).
            step: step of the training.
            profile: the profile.
        """
        if number < self._profiles.get(profile.phase, number):
            return
        self._profiles[profile.phase], self._steps[profile.phase] = number, step
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in report_files(profile, step):
            write_file(self.folder / f"{profile.file_stem}{suffix}", text)

    def log_training(self, profile: ModelProfile) -> None:
        """Replace the files of the profile."""
        self.log_profile(profile, self._steps.get(profile.phase, 0))

    def page_of(self, profile: ModelProfile) -> str:
        """Return the path of the page."""
        return str(self.folder / f"{profile.file_stem}.html")

    def close(self) -> None:
        """Do nothing: every call has written its files."""


def _line(values: Mapping[str, int | float], step: int) -> str:
    numbers = {"step": int(step), **{name: finite(plain_number(value)) for name, value in values.items()}}
    return json.dumps(numbers, ensure_ascii=False, allow_nan=False)
