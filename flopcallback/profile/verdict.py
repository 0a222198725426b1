"""The result of comparing two counting engines, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LATER_FIELDS", "Difference", "EngineDifference", "Verdict"]

LATER_FIELDS = ("observer", "differing_operators", "engines")
"""Fields that verdicts of older versions do not have."""

_VERBS = {"trace": "traced", "dispatch": "dispatched", "observer": "observed"}


@dataclass(frozen=True, slots=True)
class Difference:
    """A family of operators in a module, counted differently by two engines.

    An engine that was not asked has None.

    Attributes:
        module: canonical name, `""` for the model. Modules inside it are counted with it.
        family: `"convolution"`, `"matmul"`, `"attention"`, `"recurrent"`, `"linear algebra"`, `"custom"` or
            `"spectral"`.
        trace: FLOPs counted by the tracer.
        dispatch: FLOPs counted by the dispatcher.
        observer: FLOPs counted by the observer.
        differing_operators: operators of the family with different FLOPs, by the names that the two engines have for
            them. They explain a difference, and are not compared with those of another.
    """

    module: str
    family: str
    trace: int | None = None
    dispatch: int | None = None
    observer: int | None = None
    differing_operators: tuple[str, ...] = field(default=(), compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """FLOPs by engine, of the two that were asked."""
        counts = {engine: getattr(self, engine) for engine in _VERBS}
        return {engine: count for engine, count in counts.items() if count is not None}

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {_VERBS[engine]}" for engine, count in self.counts.items())
        operators = f" ({', '.join(self.differing_operators)})" if self.differing_operators else ""
        return f"{self.module or '(model)'}, {self.family}: {counts}{operators}"


EngineDifference = Difference
"""The same class under the name that `flopcallback.reporting` exports."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of counting one call with two engines.

    They agree if there are no differences and no reason.

    Attributes:
        differences: in FLOPs, outermost modules first.
        reason: why one of the engines could not count the call; empty if both could.
        engines: the two engines.
    """

    differences: tuple[Difference, ...] = ()
    reason: str = ""
    engines: tuple[str, str] = ("trace", "dispatch")
