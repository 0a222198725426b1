"""TensorBoard runs, read from their event files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flopcallback.profile.metrics import FORWARD
from flopcallback.reporting import ModelProfile
from flopcallback.runs import FoundRun, RunRecord, RunsError, folder_name, series_of

__all__ = ["find_runs"]

EVENTS = "*tfevents*"

# The profile beside the events; a user's prefix is in front.
PROFILE = "*flopcallback.json"


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
        folders = {file.parent for file in path.rglob(EVENTS)}
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


def _read(folder: Path, name: str) -> RunRecord:
    series = series_of(_points(_accumulator(folder).Reload()))
    exact: dict[str, int | float] = {}
    config: dict[str, Any] = {}
    for file in sorted(folder.glob(PROFILE)):
        prefix, profile = _prefix(file, series), _read_profile(file)
        exact |= {prefix + key: value for key, value in profile.scalars().items()}
        config |= {prefix + key: value for key, value in profile.config.items()}
    last = {name: values[-1][1] for name, values in series.items()}
    return RunRecord(name, str(folder), figures={**last, **exact}, series=series, config=config)


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


def _prefix(file: Path, series: dict[str, Any]) -> str:
    """Return the user's prefix of a profile's file.

    The file's name begins with it, but has other characters where file names allow none of the prefix's.
    """
    if file.name == PROFILE[1:]:
        return ""
    stem = file.name.removesuffix(PROFILE[1:])
    prefixes = (name.removesuffix(FORWARD.name) for name in series if name.endswith(FORWARD.name))
    return next((prefix for prefix in prefixes if prefix and len(prefix) == len(stem)), f"{stem.removesuffix('-')}/")


def _read_profile(file: Path) -> ModelProfile:
    try:
        return ModelProfile.from_json(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunsError(f"{file} is no profile of flopcallback's: {error}") from error
