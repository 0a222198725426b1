"""The content of a run, whichever way it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Content", "Store", "has_history"]

# Groups that are logged at one step. The run itself has their values, while a history costs one query per metric.
_LOGGED_ONCE = ("flops/", "model/", "latency/")


@dataclass(frozen=True, slots=True)
class Content:
    """One run.

    Attributes:
        name: name of the run, or its id.
        metrics: last value under each name.
        params: texts by name; so are `tags`.
        points: triples of name, step and value, in the order they were logged.
    """

    name: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Sequence[tuple[str, int, float]]


class Store(Protocol):
    """A place with experiments and their runs."""

    def experiments(self) -> list[tuple[str, str]]:
        """Return ids and names of the active experiments."""

    def runs(self, experiments: Sequence[str]) -> Iterator[tuple[str, Callable[[], Content]]]:
        """Yield the active runs of experiments, oldest first.

        Each is an id and the function that reads the run.
        """


def has_history(name: str) -> bool:
    """Return whether a metric is logged repeatedly."""
    return not any(f"/{group}" in f"/{name}" for group in _LOGGED_ONCE)
