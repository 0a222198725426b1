"""TensorBoard runs, read from their event files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flopcallback.profile.metrics import FORWARD
from flopcallback.runs import FoundRun, RunRecord, RunsError, Series, folder_name, read_profile, series_of
from flopcallback_tensorboard.events import PLUGIN

__all__ = ["find_runs"]

EVENTS = "*tfevents*"

# The profile beside the events; a user's prefix is in front.
PROFILE = "*flopcallback.json"

# Bytes of a record: its length, a checksum of that, the event, a checksum of it.
LENGTH, CHECKSUM = 8, 4


def find_runs(place: str) -> list[FoundRun]:
    """Return the folders with event files at or below a place.

    As in TensorBoard, each such folder is a run.

    Raises:
        ModuleNotFoundError: there are event files, and TensorBoard is not installed.
    """
    path = Path(place)
    if path.is_file():
        folders, path = ({path.parent} if path.match(EVENTS) else set()), path.parent
    else:
        folders = {file.parent for file in path.rglob(EVENTS) if file.is_file()}
    if folders:
        # Raises here, and not at the first read, if TensorBoard is missing.
        _accumulator(path)
    return [_found_run(folder, path) for folder in sorted(folders)]


def _found_run(folder: Path, root: Path) -> FoundRun:
    return FoundRun(str(folder), lambda: _read(folder, folder_name(folder, root)))


def _accumulator(folder: Path) -> Any:
    """Return a reader of all scalars in a folder."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ModuleNotFoundError(
            "TensorBoard's runs are read with TensorBoard: pip install tensorboard", name="tensorboard"
        ) from error
    # 0 is all; the default of TensorBoard is a sample of 10,000 scalars each.
    keep = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}
    return EventAccumulator(str(folder), size_guidance=keep)


def _count_whole(file: Path) -> int:
    """Count the records of an undamaged file of events.

    TensorBoard itself stops without a word at the first record that is not what was written, and the numbers before it
    would pass for all. A last record that is cut off is none: a run that is going on may end anywhere.

    Raises:
        RunsError: a record is not what its checksums say.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    content, at, count = file.read_bytes(), 0, 0
    while at + LENGTH + CHECKSUM <= len(content):
        length, checksum = struct.unpack_from("<QI", content, at)
        begin = at + LENGTH + CHECKSUM
        end = begin + length
        is_whole = masked_crc32c(content[at : at + LENGTH]) == checksum
        if is_whole and end + CHECKSUM > len(content):
            return count
        is_whole = is_whole and (masked_crc32c(content[begin:end]),) == struct.unpack_from("<I", content, end)
        if not is_whole:
            # A file system that was cut off leaves zeros at the end.
            if not content[at:].strip(b"\0"):
                return count
            raise RunsError(f"{file} is damaged at byte {at}")
        at, count = end + CHECKSUM, count + 1
    return count


def _read(folder: Path, name: str) -> RunRecord:
    counts = [_count_whole(events) for events in sorted(folder.glob(EVENTS)) if events.is_file()]
    if not any(counts) and not any(folder.glob(PROFILE)):
        raise RunsError(f"{folder}: nothing is in its files of events yet")
    events = _accumulator(folder).Reload()
    noted = series_of(_noted_points(events))  # exact, where the scalars of the same numbers are float32
    charted = series_of(_points(events))
    exact: dict[str, int | float] = {}
    config: dict[str, Any] = {}
    convention: dict[str, Any] = {}
    for file in sorted(folder.glob(PROFILE)):
        prefix, (profile, of_older) = _prefix(file, {**charted, **noted}), read_profile(file)
        convention |= of_older
        exact |= {prefix + key: value for key, value in profile.scalars().items()}
        config |= {prefix + key: value for key, value in profile.config.items()}
    # The last note wins over the file beside the events, which has the totals of the last training that has ended.
    exact |= {name: values[-1][1] for name, values in noted.items()}
    last = {name: values[-1][1] for name, values in charted.items()}
    # What an older version has charted is of its convention; notes never are.
    run = RunRecord(name, str(folder), figures=last, series=charted, config=convention)
    return replace(run, figures={**run.figures, **exact}, series=_joined(run.series, noted), config=config)


def _points(events: Any) -> Iterator[tuple[str, int, float]]:
    """Yield the scalars in both forms that event files have.

    PyTorch writes plain values, TensorFlow tensors without dimensions.
    """
    tags = events.Tags()
    for tag in tags["scalars"]:
        yield from ((tag, event.step, event.value) for event in events.Scalars(tag))
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            from tensorboard.util.tensor_util import make_ndarray

            for event in events.Tensors(tag):
                yield tag, event.step, float(make_ndarray(event.tensor_proto))


def _joined(charted: Mapping[str, Series], noted: Mapping[str, Series]) -> dict[str, Series]:
    """Return all series, with the points of charts from before the first note, which an older version has written."""
    series = dict(noted)
    for name, points in charted.items():
        first = noted[name][0][0] if name in noted else math.inf
        series[name] = (*(point for point in points if point[0] < first), *series.get(name, ()))
    return series


def _noted_points(events: Any) -> Iterator[tuple[str, int, int | float]]:
    """Yield the numbers in the notes of `TensorBoardTracker`."""
    for tag in events.Tags()["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == PLUGIN:
            for event in events.Tensors(tag):
                numbers = json.loads(event.tensor_proto.string_val[0])
                for name, value in numbers.items():
                    yield name, event.step, math.nan if value is None else value


def _prefix(file: Path, series: dict[str, Any]) -> str:
    """Return the user's prefix of a profile's file.

    The file's name begins with it, but has other characters where file names allow none of the prefix's.
    """
    if file.name == PROFILE[1:]:
        return ""
    stem = file.name.removesuffix(PROFILE[1:])
    prefixes = (name.removesuffix(FORWARD.name) for name in series if name.endswith(FORWARD.name))
    return next((prefix for prefix in prefixes if prefix and len(prefix) == len(stem)), f"{stem.removesuffix('-')}/")
