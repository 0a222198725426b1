"""ComputeMeter: from a training's steps, as they begin and end, to the numbers of `compute/*` and `perf/*`."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from flopcallback.modules.structures import shapes_of
from flopcallback.training.batch_sizes import BatchSizes, whole_number
from flopcallback.training.failures import Troubles
from flopcallback.training.ledger import ComputeLedger, StepCost, StepKey, StepStart
from flopcallback.training.ranks import END, Heard, Ranks, are_several, is_initialized
from flopcallback.training.throughput import Throughput, Totals, Work, rates, sum_of, totals, work_of

__all__ = ["ComputeMeter"]

STATE = 1
"""Goes up whenever an older reader would misread what `ComputeMeter.state` gives."""

MOST_CALLS = 1024
"""Of the model in a step, whose shapes tell it from others: a step whose optimizer is idle may never end."""

GROWTH = 16
"""By how much a later step may cost more than all before, and the budget of several ranks is still kept to the step."""

REFRESH = 64
"""Steps after which the model is asked again which parameters it has."""

_nodes_so_far = torch._C._autograd._get_sequence_nr
"""Nodes that autograd has made in this thread: it numbers them."""

_requires_grad = attrgetter("requires_grad")


@dataclass(slots=True)
class _Step:
    """One that is under way."""

    trainable: str
    nodes_before: int
    nodes_inside: int = 0
    is_timed: bool = True
    calls: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    batches: int = 0
    samples: int | None = 0
    tokens: int | None = 0
    hw_flops: int | None = None
    counted: int | None = None
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
        ranks: of this training; by default those of the process group that there is now or, where there is none yet,
            when the first step begins.

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
        self._loaded: Mapping[str, Any] = {}
        self._is_spent = self._is_held_back = False
        self._next_check = 0
        self._device = torch.device("cpu")
        self._peak: float | None = None
        self._samples: int | None = 0
        self._tokens: int | None = 0
        self._step: _Step | None = None
        self._steps = 0  # in this process
        self._parameters: list[nn.Parameter] = []
        self._elements = 0
        self._flags: list[bool] = []
        self._trainable = ""
        if ranks is None and is_initialized():
            self._join()

    # --- Steps --------------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """A step begins; one that has not ended is forgotten."""
        if self._of_all is None or self._loaded:
            self._join()
        self._step = _Step(self._read_trainable(), _nodes_so_far())
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
    def counts(self) -> bool:
        """Whether steps cost what is counted, rather than what the user's function says."""
        return self._flops_fn is None

    @property
    def wants_observation(self) -> bool:
        """Whether the step that began is worth observing; asked once a step, after its first call was added."""
        step = self._step
        if step is None or not step.calls or self._flops_fn is not None:
            return False
        return self._ledger.should_observe(StepStart(step.calls[0], step.trainable))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Goes around each call in a step that is counted, and around the same calls in one that is observed."""
        before = _nodes_so_far()
        try:
            yield
        finally:
            if self._step is not None:
                self._step.nodes_inside += _nodes_so_far() - before

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
            self._step.counted = forward

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
            nodes = _nodes_so_far() - step.nodes_before
            key = StepKey(tuple(step.calls), step.trainable, self.backwards, tuple(self.stepped), nodes)
            if step.counted is not None:
                self._ledger.count(key, step.counted * max(1, step.batches), nodes - step.nodes_inside)
            elif step.cost is not None:
                self._ledger.learn(key, step.cost, nodes - step.nodes_inside)
            self._ledger.add(key)
        else:
            self._ledger.add_flops(spent)
        if step.is_timed:
            done = key if spent is None else spent
            self._throughput.end_step(done, samples=samples, tokens=tokens, has_stepped=has_stepped)
        else:
            self._throughput.end_left_out(has_stepped=has_stepped)

    def _read_trainable(self) -> str:
        if self._steps % REFRESH == 0:
            self._parameters = list(self._model.parameters())
            try:
                elements = sum(map(torch.numel, self._parameters))
            except ValueError:  # of one that is not initialized yet
                elements = 0
            if elements != self._elements:  # a layer was replaced
                self._elements, self._flags = elements, []
        flags = list(map(_requires_grad, self._parameters))
        if flags != self._flags:
            self._flags = flags
            self._trainable = f"{sum(flags)} of {len(flags)}, {self._elements} elements: {zlib.crc32(bytes(flags)):08x}"
        return self._trainable

    # --- Numbers ------------------------------------------------------------------------------------------------------

    def totals(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """`compute/*`: what all ranks have spent so far. Every rank has to ask; those but the first get nothing.

        Args:
            topic: what it is asked for; the same on all ranks.
            wait: for ranks that are behind.
        """
        heard = self._gather(topic, wait=wait)
        return {} if heard is None else totals([self._totals(heard)])

    def live_totals(self) -> dict[str, int | float]:
        """`compute/*` of a training on one rank, without asking anybody; nothing, where there are several."""
        is_one_of_several = are_several() if self._of_all is None else self._of_all.are_several
        return {} if is_one_of_several or not self._ledger.steps else totals([self._totals()])

    def numbers(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """`compute/*`, and `perf/*` over the steps since it was last asked for; as `totals`."""
        work = work_of(self._throughput.read(), self._ledger.cost_of)
        heard = self._gather(topic, {"work": asdict(work)}, wait=wait)
        if heard is None:
            return {}
        numbers = totals([self._totals(heard)])
        if heard.is_whole and all("work" in word for word in heard.words.values()):
            works = [Work(**word["work"]) for word in heard.words.values()]
            numbers |= rates(works, self._peak, measures_waiting=self._measures_waiting)
        return numbers

    @property
    def has_budget(self) -> bool:
        """Whether training is to stop at some compute."""
        return self._budget is not None

    @property
    def is_in_use(self) -> bool:
        """Whether steps ended since training began in this process."""
        return self._steps > 0

    def is_spent(self, *, is_settling: bool = False) -> bool:
        """Whether all ranks together have spent the budget: every rank asks after every step, and gets the same answer.

        Ranks tell each other what they have spent at steps that they all know beforehand, the closer to each other the
        less is left. Where no step was observed yet, it is judged a step later, when more is known.

        Args:
            is_settling: whether the next step may be observed.
        """
        if self._budget is None or self._is_spent:
            return self._is_spent
        ranks = self._joined()
        if not ranks.are_several:
            self._is_spent = self._decide(self._ledger, is_settling=is_settling)
        elif self._steps >= self._next_check:
            topic = f"budget/{self._steps}"
            heard = self._gather("budget")
            mine = None if heard is None else self._decided(heard, is_settling=is_settling)
            self._is_spent, steps = ranks.agree(topic, mine)
            self._next_check = self._steps + steps
        return self._is_spent

    def state(self, *, wait: bool = True) -> dict[str, Any]:
        """What a checkpoint keeps, of all ranks; every rank has to ask, and those but the first get nothing."""
        heard = self._gather("state", wait=wait)
        if heard is None:
            return {}
        return {"version": STATE, "ledger": _merged(heard).state(), **self._sizes_of(heard)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept: on one rank, so that another number of ranks has the same sum.

        It is taken in when the first step begins: before, there may be no process group, and all ranks be the first.

        Raises:
            ValueError: another version wrote it.
        """
        if not state:
            return
        if state.get("version") != STATE:
            raise ValueError(f"state of compute has version {state.get('version')!r}, expected {STATE}")
        sum_of((state["samples"], state["tokens"]))
        ComputeLedger().load(state["ledger"])  # raises here and now what it may raise
        self._loaded = state

    def leave(self) -> None:
        """Nothing more is booked here, so that what was booked is too little: other ranks are not to wait."""
        if self._of_all is not None:
            self._of_all.gather(END, None, wait=False)

    # --- Ranks --------------------------------------------------------------------------------------------------------

    def _joined(self) -> Ranks:
        return self._join() if self._of_all is None or self._loaded else self._of_all

    def _join(self) -> Ranks:
        ranks = self._of_all = self._of_all or Ranks(type(self._model).__name__)
        state, self._loaded = self._loaded, {}
        if state:
            is_first = ranks.rank == 0
            self._ledger.load(state["ledger"], costs_only=not is_first)
            if is_first:
                self._samples = sum_of((self._samples, state["samples"]))
                self._tokens = sum_of((self._tokens, state["tokens"]))
        return ranks

    def _gather(self, name: str, more: Mapping[str, Any] | None = None, *, wait: bool = True) -> Heard | None:
        """What all ranks have booked."""
        ranks = self._joined()
        mine = {"ledger": self._ledger.state(), "samples": self._samples, "tokens": self._tokens, **(more or {})}
        heard = ranks.gather(name if name == END else f"{name}/{self._steps}", mine, wait=wait)
        if heard is not None and not heard.is_whole:
            self._troubles.report("compute of all ranks is not complete", RuntimeError(heard.missing))
        return heard

    def _totals(self, heard: Heard | None = None) -> Totals:
        if heard is None or len(heard.words) == 1:
            return Totals(self._ledger.hw_flops, self._ledger.estimated, self._samples, self._tokens)
        ledger = _merged(heard)  # a kind of step that one rank did not observe, another may have
        return Totals(ledger.hw_flops, ledger.estimated, **self._sizes_of(heard))

    def _sizes_of(self, heard: Heard) -> dict[str, int | None]:
        return {name: sum_of(word[name] for word in heard.words.values()) for name in ("samples", "tokens")}

    def _decided(self, heard: Heard, *, is_settling: bool) -> tuple[bool, int]:
        """Whether the budget is spent, and else how many steps later that is asked again."""
        ledger, budget = _merged(heard), self._budget
        assert budget is not None
        if self._decide(ledger, is_settling=is_settling):
            return True, 0
        largest = len(heard.words) * ledger.largest
        return False, max(1, int(budget - ledger.hw_flops) // largest // GROWTH if largest else 1)

    def _decide(self, ledger: ComputeLedger, *, is_settling: bool) -> bool:
        assert self._budget is not None
        if ledger.hw_flops < self._budget:
            return False
        is_rough = is_settling and ledger.estimated > 0 and not ledger.largest
        is_held_back, self._is_held_back = self._is_held_back, True
        return is_held_back or not is_rough

    def _synchronize(self) -> None:
        if self._device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self._device)


def _merged(heard: Heard) -> ComputeLedger:
    return ComputeLedger.merged(word["ledger"] for word in heard.words.values())
