"""ComputeMeter: from a training's steps, as they begin and end, to the numbers of `compute/*` and `perf/*`."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from flopcallback.batches import BatchSizes, shapes_of, whole_number
from flopcallback.measuring.compute import ComputeLedger, StepCost, StepKey, StepStart
from flopcallback.measuring.throughput import Throughput, Totals, Work, rates, sum_of, totals, work_of
from flopcallback.ranks import Ranks, are_several, rank_of
from flopcallback.troubles import Troubles

__all__ = ["ComputeMeter"]

STATE = 1
"""Goes up whenever an older reader would misread what `ComputeMeter.state` gives."""

MOST_CALLS = 1024
"""Of the model in a step, whose shapes tell it from others: a step whose optimizer is idle may never end."""

REFRESH = 64
"""Steps after which the model is asked again which parameters it has."""

_requires_grad = attrgetter("requires_grad")


@dataclass(slots=True)
class _Step:
    """One that is under way."""

    trainable: str
    nodes_before: int
    is_timed: bool = True
    is_counted: bool = False
    calls: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    batches: int = 0
    samples: int | None = 0
    tokens: int | None = 0
    hw_flops: int | None = None
    cost: StepCost | None = None


class ComputeMeter:
    """Books every step of a training, and sums up what was done since it began and since the last reading.

    A step is `begin_step`, `add_call` for each call of the model in it, `end_step`; in between, adapters count what
    happens in `backwards` and `stepped`. Nothing in a step waits for the device, or for another rank, but where a step
    is left out.

    Args:
        model: whose parameters say which of them are trained.
        sizes: samples and tokens of batches.
        flops_fn: hardware FLOPs of a step, from the batch; the user's.
        budget: hardware FLOPs of all ranks after which training is to stop.
        measures_waiting: whether what lies between two steps is known to be waiting for data.
        troubles: where failures go.
        clock: seconds.
        ranks: of this training; by default those of the process group that there is when they are first asked.

    Attributes:
        backwards: in the step under way.
        stepped: numbers of the optimizers that stepped in it, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: BatchSizes,
        *,
        flops_fn: Callable[[Any], int] | None = None,
        budget: float | None = None,
        measures_waiting: bool = False,
        troubles: Troubles | None = None,
        clock: Callable[[], float] = time.perf_counter,
        ranks: Ranks | None = None,
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._flops_fn = flops_fn
        self._budget = budget
        self._measures_waiting = measures_waiting
        self._troubles = troubles or Troubles()
        self._ledger = ComputeLedger()
        self._throughput = Throughput(clock, self._synchronize)
        self.backwards = 0
        self.stepped: list[int] = []
        self._of_all = ranks
        self._is_spent = False
        self._next_check = 0
        self._device = torch.device("cpu")
        self._peak: float | None = None
        self._samples: int | None = 0
        self._tokens: int | None = 0
        self._step: _Step | None = None
        self._steps = 0  # in this process
        self._parameters: list[nn.Parameter] = []
        self._flags: list[bool] = []
        self._trainable = ""

    # --- Steps --------------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """A step begins; one that has not ended is forgotten."""
        self._step = _Step(self._read_trainable(), torch._C._autograd._get_sequence_nr())
        self.backwards, self.stepped = 0, []
        self._throughput.begin_step()

    def add_call(self, inputs: Any, batch: Any, *, is_new: bool = True) -> None:
        """The model is called in the step.

        Args:
            inputs: all that it is given.
            batch: what samples, tokens and FLOPs are asked of.
            is_new: False where the call goes on with the batch of the one before, as the second network of a GAN does.
        """
        step = self._step
        if step is None:
            return
        shapes = shapes_of(inputs)
        if len(step.calls) < MOST_CALLS:
            step.calls.append(shapes)
        if not is_new:
            return
        step.batches += 1
        samples, tokens = self._sizes.of(batch, inputs, shapes)
        step.samples = None if samples is None or step.samples is None else step.samples + samples
        step.tokens = None if tokens is None or step.tokens is None else step.tokens + tokens
        if self._flops_fn is not None:
            try:
                step.hw_flops = (step.hw_flops or 0) + whole_number(self._flops_fn, "flops_fn", batch)
            except Exception as error:  # noqa: BLE001 - then it is counted, as without the function
                self._flops_fn, step.hw_flops = None, None
                self._troubles.report("flops_fn failed: compute is counted", error)

    def leave_out(self) -> None:
        """The step that began does more than training: its time, and what it does in it, are left out of throughput."""
        if self._step is not None:
            self._step.is_timed = False
            self._throughput.stop()

    def pause(self) -> None:
        """Something else than training begins; the next step goes on."""
        self._throughput.stop()

    def interrupted(self) -> AbstractContextManager[None]:
        """Goes around what is done between two steps and is not training's: its time is left out of throughput."""
        return self._throughput.interrupted()

    @property
    def wants_observation(self) -> bool:
        """Whether the step that began is worth observing; asked once a step, after its first call was added."""
        step = self._step
        if step is None or not step.calls or self._flops_fn is not None:
            return False
        return self._ledger.should_observe(StepStart(step.calls[0], step.trainable))

    def observed(self, cost: StepCost) -> None:
        """What the step that is about to end cost."""
        if self._step is not None:
            self._step.cost = cost

    def counted(self, forward: int, device: torch.device, peak: float | None) -> None:
        """In the step that is about to end, calls of the model were counted.

        Args:
            forward: hardware FLOPs of those of one batch.
            device: where they ran.
            peak: FLOP/s of the device; None where it is not known.
        """
        self._device, self._peak = device, peak
        if self._step is not None:
            self._step.is_counted = True
            self._step.cost = StepCost(0, forward * max(1, self._step.batches))

    def end_step(self, *, has_stepped: bool = True) -> None:
        """The step ended, and is booked.

        Args:
            has_stepped: False where no optimizer stepped, and gradients accumulate.
        """
        step, self._step = self._step, None
        if step is None:
            return
        self._steps += 1
        samples, tokens, spent = step.samples, step.tokens, step.hw_flops
        self._samples = None if samples is None or self._samples is None else self._samples + samples
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        if spent is None:
            nodes = torch._C._autograd._get_sequence_nr() - step.nodes_before
            key = StepKey(tuple(step.calls), step.trainable, self.backwards, tuple(self.stepped), nodes)
            if step.cost is not None:
                self._take_in(step.cost, key, is_counted=step.is_counted)
            self._ledger.add(key)
        else:
            self._ledger.add_flops(spent)
        if step.is_timed:
            done = key if spent is None else spent
            self._throughput.end_step(done, samples=samples, tokens=tokens, has_stepped=has_stepped)

    def _take_in(self, cost: StepCost, key: StepKey, *, is_counted: bool) -> None:
        if is_counted:
            self._ledger.count(key, cost.forward)
        else:
            self._ledger.learn(key, cost)

    def _read_trainable(self) -> str:
        if self._steps % REFRESH == 0:
            self._parameters = list(self._model.parameters())
        flags = list(map(_requires_grad, self._parameters))
        if flags != self._flags:
            self._flags = flags
            self._trainable = f"{sum(flags)} of {len(flags)}: {zlib.crc32(bytes(flags)):08x}"
        return self._trainable

    # --- Numbers ------------------------------------------------------------------------------------------------------

    def totals(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """`compute/*`: what all ranks have spent so far. Every rank has to ask; those but the first get nothing.

        Args:
            topic: what it is asked for; the same on all ranks.
            wait: for ranks that are behind.
        """
        said = self._gather(topic, {"totals": asdict(self._totals())}, wait=wait)
        return {} if said is None else totals([Totals(**each["totals"]) for each in said])

    def live_totals(self) -> dict[str, int | float]:
        """`compute/*` of a training on one rank, without asking anybody; nothing, where there are several."""
        return {} if are_several() or not self._ledger.steps else totals([self._totals()])

    def numbers(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """`compute/*`, and `perf/*` over the steps since it was last asked for; as `totals`."""
        work = work_of(self._throughput.read(), self._ledger.cost_of)
        said = self._gather(topic, {"totals": asdict(self._totals()), "work": asdict(work)}, wait=wait)
        if said is None:
            return {}
        of_ranks = [Work(**each["work"]) for each in said]
        return {
            **totals([Totals(**each["totals"]) for each in said]),
            **rates(of_ranks, self._peak, measures_waiting=self._measures_waiting),
        }

    @property
    def is_in_use(self) -> bool:
        """Whether steps ended since training began in this process."""
        return self._steps > 0

    def is_spent(self) -> bool:
        """Whether all ranks together have spent the budget: every rank asks after every step, and gets the same answer.

        Ranks tell each other what they have spent at steps that they all know beforehand, the closer to each other the
        less is left.
        """
        budget = self._budget
        if budget is None or self._is_spent:
            return self._is_spent
        if not self._ranks.are_several:
            self._is_spent = self._ledger.hw_flops >= budget
        elif self._steps >= self._next_check:
            topic = f"budget/{self._steps}"
            said = self._gather("budget", {"hw_flops": self._ledger.hw_flops, "largest": self._ledger.largest})
            mine = None if said is None else [sum(each[name] for each in said) for name in ("hw_flops", "largest")]
            spent, largest = self._ranks.agree(topic, mine)
            self._is_spent = spent >= budget
            # Half of the way there, since later steps may be larger.
            self._next_check = self._steps + max(1, int(budget - spent) // max(1, largest) // 2)
        return self._is_spent

    def state(self, *, wait: bool = True) -> dict[str, Any]:
        """What a checkpoint keeps, of all ranks; every rank has to ask, and those but the first get nothing."""
        mine = {"ledger": self._ledger.state(), "samples": self._samples, "tokens": self._tokens}
        said = self._gather("state", mine, wait=wait)
        if said is None:
            return {}
        return {
            "version": STATE,
            "ledger": ComputeLedger.merged(each["ledger"] for each in said).state(),
            "samples": sum_of(each["samples"] for each in said),
            "tokens": sum_of(each["tokens"] for each in said),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept: on one rank, so that another number of ranks has the same sum.

        Raises:
            ValueError: another version wrote it.
        """
        if not state:
            return
        if state.get("version") != STATE:
            raise ValueError(f"state of compute has version {state.get('version')!r}, expected {STATE}")
        is_first = rank_of() == 0
        self._ledger.load(state["ledger"], costs_only=not is_first)
        if is_first:
            self._samples = sum_of((self._samples, state["samples"]))
            self._tokens = sum_of((self._tokens, state["tokens"]))

    @property
    def _ranks(self) -> Ranks:
        if self._of_all is None:
            self._of_all = Ranks()
        return self._of_all

    def _gather(self, topic: str, mine: Mapping[str, Any], *, wait: bool = True) -> list[Any] | None:
        said = self._ranks.gather(f"{topic}/{self._steps}", mine, wait=wait)
        missing = [] if said is None else sorted({*self._ranks.lost, *self._ranks.absent})
        if missing:
            error = RuntimeError(f"nothing was heard of rank {', '.join(map(str, missing))}")
            self._troubles.report("compute of all ranks is not complete", error)
        return said

    def _totals(self) -> Totals:
        return Totals(self._ledger.hw_flops, self._ledger.estimated, self._samples, self._tokens)

    def _synchronize(self) -> None:
        if self._device.type not in ("cpu", "meta"):
            torch.get_device_module(self._device).synchronize(self._device)
