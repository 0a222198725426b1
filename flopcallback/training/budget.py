"""Budget: a limit on compute, kept by all ranks together."""

from __future__ import annotations

from flopcallback.training.ledger import ComputeLedger
from flopcallback.training.meter import ComputeMeter, merged_ledger
from flopcallback.training.ranks import Gathered, are_several, is_initialized

__all__ = ["GROWTH", "Budget"]

GROWTH = 16
"""Several ranks keep a budget to the step unless a step costs this many times the largest one before."""


class Budget:
    """Limit on the FLOPs of all ranks together.

    Args:
        flops: the limit, in FLOPs.
        meter: meter of this training.

    Attributes:
        is_spent: result of the last poll; once True, it stays True.
    """

    def __init__(self, flops: float, meter: ComputeMeter) -> None:
        self.is_spent = False
        self._flops = flops
        self._meter = meter
        self._is_held_back = False  # True once a decision was put off, by one poll, since it rested on an estimate
        self._next_check = 0  # with several ranks: number of the step of the next exchange, the same on all

    def poll(self, *, is_settling: bool) -> bool:
        """Decide whether the budget is spent, with the same result on all ranks.

        Every rank has to call it after every step. Ranks exchange their totals only at steps that all of them know in
        advance; the less is left of the budget, the closer together these steps are.

        Args:
            is_settling: whether the next step may be observed. A total that rests on an estimate alone is then judged
                one poll later.
        """
        if self.is_spent:
            return True
        ranks, steps = self._meter.joined_ranks(), self._meter.steps
        if not ranks.are_several:
            self.is_spent = self._is_reached(self._meter.ledger, is_settling=is_settling)
        elif steps >= self._next_check:
            gathered = self._meter.gather("budget")
            decision = None if gathered is None else self._decision(gathered, is_settling=is_settling)
            self.is_spent, pause = ranks.broadcast_from_rank0(f"budget/{steps}", decision)
            self._next_check = steps + pause
        return self.is_spent

    def poll_at_load(self) -> None:
        """Decide whether a checkpoint that the meter has loaded has already spent the budget.

        Every rank has to call it. Several processes without a process group decide after their first step instead.
        """
        if is_initialized():
            self.poll(is_settling=False)
        elif self._meter.loaded and not are_several():
            ledger = ComputeLedger()
            ledger.load(self._meter.loaded["ledger"])
            self.is_spent = ledger.flops >= self._flops

    def _decision(self, gathered: Gathered, *, is_settling: bool) -> tuple[bool, int]:
        """Return whether the budget is spent, and the steps until the next exchange."""
        ledger = merged_ledger(gathered)
        if self._is_reached(ledger, is_settling=is_settling):
            return True, 0
        # An upper bound of what all ranks spend in one step, as long as no step costs more than any before.
        largest = len(gathered.messages) * ledger.largest
        left = int(self._flops - ledger.flops)
        return False, max(1, left // largest // GROWTH if largest else 1)

    def _is_reached(self, ledger: ComputeLedger, *, is_settling: bool) -> bool:
        if ledger.flops < self._flops:
            return False
        # Nothing was observed so far: the total is a multiple of the counted forward.
        is_rough = is_settling and ledger.estimated > 0 and not ledger.largest
        is_held_back, self._is_held_back = self._is_held_back, True
        return is_held_back or not is_rough
