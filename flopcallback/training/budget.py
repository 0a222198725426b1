"""Budget: the compute after which a training stops, on all ranks at the same step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flopcallback.training.ledger import ComputeLedger
from flopcallback.training.meter import ComputeMeter, merged_ledger
from flopcallback.training.ranks import Heard, are_several, is_initialized

__all__ = ["GROWTH", "Budget"]

GROWTH = 16
"""How much more a later step may cost than any before, with the budget of several ranks still kept to the step."""


class Budget:
    """Hardware FLOPs that all ranks together may spend.

    Args:
        hw_flops: the limit.
        meter: knows what was spent.

    Attributes:
        is_spent: the decision, which stays once it was made.
    """

    def __init__(self, hw_flops: float, meter: ComputeMeter) -> None:
        self.is_spent = False
        self._hw_flops = hw_flops
        self._meter = meter
        self._is_held_back = False  # a decision was put off until more is known; that happens once
        self._next_check = 0  # number of steps before which ranks need not ask each other

    def poll(self, *, is_settling: bool) -> bool:
        """Decide whether the budget is spent, together with all other ranks.

        Every rank has to ask after every step, and gets the same answer. Ranks tell each other what they have spent at
        steps that they all know beforehand, the closer to each other the less is left.

        Args:
            is_settling: whether the next step may be observed: an estimate alone is then judged a step later.
        """
        if self.is_spent:
            return True
        ranks, steps = self._meter.joined_ranks(), self._meter.steps
        if not ranks.are_several:
            self.is_spent = self._is_reached(self._meter.ledger, is_settling=is_settling)
        elif steps >= self._next_check:
            heard = self._meter.gather("budget")
            mine = None if heard is None else self._decision(heard, is_settling=is_settling)
            self.is_spent, pause = ranks.agree(f"budget/{steps}", mine)
            self._next_check = steps + pause
        return self.is_spent

    def poll_at_load(self, state: Mapping[str, Any]) -> None:
        """Decide whether what a checkpoint holds is all there was to spend; every rank has to load one.

        Where several processes have no process group yet, they decide after their first step.

        Args:
            state: as `ComputeMeter.state` gives it; empty on ranks that were given none.
        """
        if is_initialized():
            self.poll(is_settling=False)
        elif state and not are_several():
            ledger = ComputeLedger()
            ledger.load(state["ledger"])
            self.is_spent = ledger.hw_flops >= self._hw_flops

    def _decision(self, heard: Heard, *, is_settling: bool) -> tuple[bool, int]:
        """Return whether the budget is spent and, if not, for how many steps nobody needs to ask again."""
        ledger = merged_ledger(heard)
        if self._is_reached(ledger, is_settling=is_settling):
            return True, 0
        largest = len(heard.words) * ledger.largest
        left = int(self._hw_flops - ledger.hw_flops)
        return False, max(1, left // largest // GROWTH if largest else 1)

    def _is_reached(self, ledger: ComputeLedger, *, is_settling: bool) -> bool:
        if ledger.hw_flops < self._hw_flops:
            return False
        is_rough = is_settling and ledger.estimated > 0 and not ledger.largest
        is_held_back, self._is_held_back = self._is_held_back, True
        return is_held_back or not is_rough
