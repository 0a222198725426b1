"""RunRecord: what one training left behind, as plain data without any tracker."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from flopcallback.profile import metrics
from flopcallback.profile.model_profile import PHASES
from flopcallback.profile.numbers import is_whole
from flopcallback.profile.old_names import warn_of_older_version
from flopcallback.profile.old_profiles import FMA

__all__ = [
    "COMPUTE",
    "FoundRun",
    "RunRecord",
    "RunsError",
    "Series",
    "is_our_name",
    "number",
    "reason_of",
    "step_number",
    "without_password",
]

Series = tuple[tuple[int, int | float], ...]
"""Pairs of step and value in order of steps. Of several values at one step, the last logged comes last."""

COMPUTE = metrics.COMPUTE.name
"""Name under which a training logs its FLOPs so far."""

# Names of totals, which begin at 0 and grow.
_TOTALS = tuple(metric.name for metric in metrics.METRICS if metric.name.endswith("_total"))

_PHASES = tuple(f"{phase}/" for phase in PHASES)
# Every run of ours has one of these names; a user's prefix is what precedes it.
_OUR_NAME = re.compile(f"(.*?)(?:{'|'.join(map(re.escape, (metrics.FORWARD.name, COMPUTE, *metrics.MACS.values())))})")
# Names of older versions, and those that had another meaning there.
_OLD_NAME = re.compile(f"(.*?)({'|'.join(map(re.escape, metrics.OLD_NAMES))})")
_OLD_FORWARD = re.compile(f"(.*?)({'|'.join(map(re.escape, metrics.MACS))})")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, whose numbers have today's names.

    Those of a dashboard's charts get their logged names back, and those of an older version are renamed. Its FLOPs of a
    forward counted 1 per multiply-add: they are called `macs/forward`, and are not compared with anybody's FLOPs.

    Attributes:
        name: name shown to people.
        place: folder or address from which it was read.
        figures: last value under each name; an exact int if the source has one.
        series: all values under each name; numbers that were logged once may be missing.
        config: conditions of the count (`flops.dtype`, ...), and other configuration that the source has.

    Raises:
        RunsError: the name or the place is no text, a figure or a value is no number that a float64 can hold, a total
            is below 0, or a step is no integer.
    """

    name: str
    place: str
    figures: Mapping[str, int | float] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A reader may be anybody's. The dataclass is frozen, so `object.__setattr__` stores what was made plain.
        try:
            for attribute in ("name", "place"):
                if not isinstance(getattr(self, attribute), str):
                    raise ValueError(f"the {attribute} of a run is {reprlib.repr(getattr(self, attribute))}, no text")
            figures = {name: number(value, name) for name, value in self.figures.items()}
            series = {name: _plain_series(name, points) for name, points in self.series.items()}
            figures, series = _logged(figures, series)
            _require_totals(figures, series)
        except ValueError as error:
            raise RunsError(f"{self.place}: {error}") from error
        config = self.config
        if _is_old({*figures, *series}, config):
            figures, series, config = _renewed(figures, series, config)
        object.__setattr__(self, "figures", figures)
        object.__setattr__(self, "series", series)
        object.__setattr__(self, "config", config)

    def prefixes(self) -> list[str]:
        """Return the prefixes in front of our names in this run.

        They are what users gave as `prefix=`; mostly `[""]`, or `[]` if nothing is ours.
        """
        names = (_OUR_NAME.fullmatch(name) for name in {*self.figures, *self.series})
        return sorted({_without_phase(match[1]) for match in names if match})

    def without_prefix(self, prefix: str) -> RunRecord:
        """Return a copy in which our names have this prefix no more.

        Names of ours with another prefix stay as they are.
        """
        if not prefix:
            return self
        return replace(
            self,
            figures=_stripped(self.figures, prefix),
            series=_stripped(self.series, prefix),
            config=_stripped(self.config, prefix),
        )

    def own_metrics(self) -> set[str]:
        """Return the names of the user's own numbers that were logged repeatedly."""
        return {name for name in self.series if not is_our_name(name)}


def is_our_name(name: str) -> bool:
    """Return whether flopcallback logs a number under this name.

    A phase in front is part of the name; a prefix is not.
    """
    phase = next((phase for phase in _PHASES if name.startswith(phase)), "")
    bare = name.removeprefix(phase)
    return bare.startswith((*metrics.GROUPS, metrics.card(""))) or bare in metrics.MACS.values()


def _logged(
    figures: Mapping[str, int | float], series: Mapping[str, Series]
) -> tuple[dict[str, int | float], dict[str, Series]]:
    """Return numbers of charts by their logged names.

    A number that has its logged name already is exact where a chart's may be rounded, and wins.
    """
    merged: dict[str, Series] = {}
    for name, points in series.items():
        _add_points(merged, metrics.logged_name(name), points)
    return {**{metrics.logged_name(name): value for name, value in figures.items()}, **_unchanged(figures)}, merged


def _unchanged(figures: Mapping[str, int | float]) -> dict[str, int | float]:
    return {name: value for name, value in figures.items() if metrics.logged_name(name) == name}


def _add_points(merged: dict[str, Series], name: str, points: Series) -> None:
    """Add points to a series that may have some already: a training may have gone on with another version."""
    merged[name] = tuple(sorted((*merged[name], *points), key=lambda point: point[0])) if name in merged else points


def _is_old(names: Iterable[str], config: Mapping[str, Any]) -> bool:
    """Return whether an older version logged a run, whatever its prefix."""
    return any(map(_OLD_NAME.fullmatch, names)) or any(key.endswith(FMA) for key in config)


def _renewed(
    figures: Mapping[str, int | float], series: Mapping[str, Series], config: Mapping[str, Any]
) -> tuple[dict[str, int | float], dict[str, Series], dict[str, Any]]:
    """Return the numbers and the config of an older run as they are called today."""
    warn_of_older_version()
    is_macs = not any(str(value) == "2" for key, value in config.items() if key.endswith(FMA))
    merged: dict[str, Series] = {}
    for name, points in series.items():
        if new := _new_name(name, is_macs=is_macs):
            _add_points(merged, new, points)
    # Today's name comes last, and so wins.
    ranked = sorted(figures, key=lambda name: _OLD_NAME.fullmatch(name) is None)
    renamed = {_new_name(name, is_macs=is_macs): figures[name] for name in ranked}
    renamed.pop("", None)
    return renamed, merged, {key: value for key, value in config.items() if not key.endswith(FMA)}


def _new_name(name: str, *, is_macs: bool) -> str:
    """Return today's name of a number in an older run; empty if it has none."""
    if match := _OLD_NAME.fullmatch(name):
        new = metrics.OLD_NAMES[match[2]]
    elif match := _OLD_FORWARD.fullmatch(name):
        new = metrics.MACS[match[2]] if is_macs else ""
    else:
        return name
    return match[1] + new if new else ""


def _without_phase(prefix: str) -> str:
    return prefix.removesuffix(next((phase for phase in _PHASES if prefix.endswith(phase)), ""))


def _stripped(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Remove the prefix from our names only.

    The user's own names may begin with the same text.
    """
    renamed = {}
    for name, value in values.items():
        bare = name.removeprefix(prefix)
        renamed[bare if is_our_name(bare) or bare.startswith("flops.") else name] = value
    return renamed


def number(value: object, name: str) -> int | float:
    """Return a value as a Python number.

    NumPy's numbers are converted. NaN and infinities are numbers.

    Args:
        value: the value.
        name: its name, for the error.

    Raises:
        ValueError: it is no number, or an integer that a float64 cannot hold.
    """
    if type(value) is float or is_whole(value):  # nearly all
        return value  # type: ignore[return-value]
    if isinstance(value, Real) and not isinstance(value, (bool, int)):
        plain = int(value) if isinstance(value, Integral) else float(value)
        if isinstance(plain, float) or is_whole(plain):
            return plain
    what = "too large to be compared" if isinstance(value, int) and not isinstance(value, bool) else "no number"
    raise ValueError(f"{name} is {_shown(value)}, which is {what}")


def step_number(value: object) -> int:
    """Return a step as a Python integer.

    Raises:
        ValueError: it is no integer, or one that a float64 cannot hold.
    """
    if is_whole(value):
        return value  # type: ignore[return-value]
    plain = int(value) if isinstance(value, Integral) and not isinstance(value, (bool, int)) else None
    if plain is None or not is_whole(plain):
        raise ValueError(f"a step is {_shown(value)}, which is no whole number that could be one")
    return plain


def _shown(value: object) -> str:
    # Python writes no integer of more than 4,300 digits.
    is_long = isinstance(value, int) and value.bit_length() > 10_000
    return "an integer of more than 3,000 digits" if is_long else reprlib.repr(value)


def _require_totals(figures: Mapping[str, int | float], series: Mapping[str, Series]) -> None:
    """Check that no total is below 0, as in a checkpoint."""
    for name in {*figures, *series}:
        if name.endswith(_TOTALS):
            lowest = min([figures.get(name, 0), *(value for _, value in series.get(name, ()) if value < 0)])
            if lowest < 0:
                raise ValueError(f"{name} is {lowest:.6g}, and a total is 0 or more")


def _plain_series(name: str, points: Series) -> Series:
    # All but a few series are plain already.
    if all(type(value) is float and type(step) is int and is_whole(step) for step, value in points):
        return points
    return tuple((step_number(step), number(value, name)) for step, value in points)


class RunsError(ValueError):
    """Error for a place without runs, or with an unreadable one.

    The text says why, and what to do.
    """


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run that was found but not read yet.

    Attributes:
        place: its folder or address.
        reader: function that reads it; `read` calls it.
    """

    place: str
    reader: Callable[[], RunRecord]

    def read(self) -> RunRecord:
        """Read the run.

        Raises:
            RunsError: it cannot be read, whatever its reader raised.
        """
        try:
            return self.reader()
        except RunsError:
            raise
        except Exception as error:
            raise RunsError(f"{self.place}: it cannot be read: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's text, with its type where that says more."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = str(error).strip().splitlines()
    if isinstance(error, ValueError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def without_password(address: str) -> str:
    """Return an address as errors and tables may show it."""
    return re.sub(r"(?<=://)([^/@]*?):[^/]*@", r"\1:***@", address)
