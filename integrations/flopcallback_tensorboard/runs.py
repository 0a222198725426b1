"""Runs of TensorBoard's, read back from their event files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flopcallback.profile.metrics import FORWARD
from flopcallback.reporting import ModelProfile
from flopcallback.runs import FoundRun, RunRecord, RunsError, folder_name, series_of

__all__ = ["find_runs"]

EVENTS = "*tfevents*"

PROFILE = "*flopcallback.json"
"""Beside the events; with the user's prefix in front."""


def find_runs(place: str) -> list[FoundRun]:
    """The folders with event files, at or below a folder; each is a run, as TensorBoard has it.

    Raises:
        ModuleNotFoundError: there are some, and TensorBoard is not installed.
    """
    path = Path(place)
    if path.is_file():
        folders, path = ({path.parent} if path.match(EVENTS) else set()), path.parent
    else:
        folders = {file.parent for file in path.rglob(EVENTS)}
    if folders:
        _accumulator(path)
    return [_found(folder, path) for folder in sorted(folders)]


def _found(folder: Path, root: Path) -> FoundRun:
    return FoundRun(str(folder), lambda: _read(folder, folder_name(folder, root)))


def _accumulator(folder: Path) -> Any:
    """What reads all scalars of a folder, where it otherwise keeps 10,000 of each."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ModuleNotFoundError(
            "TensorBoard's runs are read with TensorBoard: pip install tensorboard", name="tensorboard"
        ) from error
    keep = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}
    return EventAccumulator(str(folder), size_guidance=keep)


def _read(folder: Path, name: str) -> RunRecord:
    series = series_of(_points(_accumulator(folder).Reload()))
    exact: dict[str, int | float] = {}
    config: dict[str, Any] = {}
    for file in sorted(folder.glob(PROFILE)):
        prefix, profile = _prefix(file, series), _profile(file)
        exact |= {prefix + key: value for key, value in profile.scalars().items()}
        config |= {prefix + key: value for key, value in profile.config.items()}
    last = {name: values[-1][1] for name, values in series.items()}
    return RunRecord(name, str(folder), figures={**last, **exact}, series=series, config=config)


def _points(events: Any) -> Iterator[tuple[str, int, float]]:
    """Scalars of either form: PyTorch writes plain values, TensorFlow tensors without dimensions."""
    tags = events.Tags()
    for tag in tags["scalars"]:
        yield from ((tag, event.step, event.value) for event in events.Scalars(tag))
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            from tensorboard.util.tensor_util import make_ndarray

            for event in events.Tensors(tag):
                yield tag, event.step, float(make_ndarray(event.tensor_proto))


def _prefix(file: Path, series: dict[str, Any]) -> str:
    """The user's prefix: the file's name has it too, with what no file's name may have replaced."""
    if file.name == PROFILE[1:]:
        return ""
    stem = file.name.removesuffix(PROFILE[1:])
    fronts = (name.removesuffix(FORWARD.name) for name in series if name.endswith(FORWARD.name))
    return next((front for front in fronts if front and len(front) == len(stem)), f"{stem.removesuffix('-')}/")


def _profile(file: Path) -> ModelProfile:
    try:
        return ModelProfile.from_json(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunsError(f"{file} is no profile of flopcallback's: {error}") from error
