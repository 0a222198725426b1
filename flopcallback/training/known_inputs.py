"""KnownInputs: what steps and calls with equal inputs have in common, found by one look-up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flopcallback.modules.structures import CallKey, Facts, facts_of, key_of
from flopcallback.training.call_keys import CallKeys
from flopcallback.training.kinds import Kind, StepStart
from flopcallback.training.ledger import StartOfKinds
from flopcallback.training.throughput import Alike

__all__ = ["Beginning", "End", "InputTable", "KnownCall", "KnownInputs"]

MOST_INPUTS = 1024
"""Different inputs that are remembered; with more, all are forgotten, and looked up anew."""

MOST_BEGINNINGS = 16
"""Beginnings of steps with the same inputs, likewise."""

MOST_ENDS = 16
"""Ends of steps that begin alike, likewise."""


@dataclass(slots=True, eq=False)
class KnownInputs:
    """Inputs of a call, or a batch, that have been met.

    Compared by identity: there is one for each key.

    Attributes:
        key: what tells them apart from others; None if nothing does.
        sizes: samples and tokens of a batch of them; None if each batch is to be asked.
        beginnings: beginnings of steps with them, by which parameters require grad.
    """

    key: CallKey | None
    sizes: tuple[int | None, int | None] | None = None
    beginnings: dict[str, Beginning] = field(default_factory=dict)

    def begin(self, trainable: str) -> Beginning:
        """Return a new beginning of steps, and remember it."""
        if len(self.beginnings) >= MOST_BEGINNINGS:
            self.beginnings.clear()
        beginning = self.beginnings[trainable] = Beginning(StepStart(self.key, trainable))
        return beginning


KnownCall = tuple[str, bool, KnownInputs]
"""A call of a module in a step: name of the module, whether autograd is on, and its inputs."""

End = tuple[tuple[KnownCall, ...], int, tuple[int, ...], int, "int | None", "int | None"]
"""What is known of a step when it has ended: calls, number of backwards, optimizers that stepped, nodes, samples and
tokens."""


@dataclass(slots=True, eq=False)
class Beginning:
    """What is known of a step when it begins.

    Attributes:
        start: the same as part of a key.
        group: kinds that begin so, as the ledger has them; None if none were met so far.
        ends: steps by how they have ended, so that most steps make no key.
    """

    start: StepStart
    group: StartOfKinds | None = None
    ends: dict[End, Alike] = field(default_factory=dict)

    def note(self, end: End, kind: Kind) -> None:
        """Note the kind of steps that end so."""
        if len(self.ends) >= MOST_ENDS:
            self.ends.clear()
        self.ends[end] = Alike(kind, *end[-2:])


class InputTable:
    """All inputs that have been met in a training.

    Attributes:
        raw: key of the inputs that were looked up last, with all numbers and names, by which sizes are known.
    """

    __slots__ = ("_by_facts", "_by_key", "_keys", "_unknown", "raw")

    def __init__(self) -> None:
        self._keys = CallKeys()
        self._by_facts: dict[Facts | None, KnownInputs] = {}
        self._by_key: dict[CallKey, KnownInputs] = {}
        self._unknown = KnownInputs(None)
        self.raw: CallKey | None = None

    def look_up(self, inputs: Any) -> KnownInputs:
        """Return what is known of a call's inputs.

        Args:
            inputs: a batch, or `(args, kwargs)`.
        """
        facts = facts_of(inputs)
        known = self._by_facts.get(facts)
        if known is None:
            return self._look_up_key(inputs, facts)
        self.raw = known.key
        return known

    def _look_up_key(self, inputs: Any, facts: Facts | None) -> KnownInputs:
        self.raw = raw = key = key_of(inputs)
        if raw is None or key is None:
            return self._unknown
        if raw.names or raw.numbers:
            key = self._keys.settled(raw)
        known = self._by_key.get(key)
        if known is None:
            if len(self._by_key) >= MOST_INPUTS:
                self._by_key.clear()
                self._by_facts.clear()
            known = self._by_key[key] = KnownInputs(key)
        # Names that were left out of the key are facts, and tell where tokens are.
        if facts is not None and raw == key and len(self._by_facts) < MOST_INPUTS:
            self._by_facts[facts] = known
        return known
