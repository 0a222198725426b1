"""ComputeMeter: from a training's steps, as they begin and end, to the numbers of `compute/*` and `perf/*`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from flopcallback.modules.structures import shapes_of
from flopcallback.tracing.torch_private import UNKNOWN_NODES, can_count_nodes, nodes_so_far
from flopcallback.training.batch_sizes import BatchSizes, whole_number
from flopcallback.training.failures import Failures
from flopcallback.training.ledger import ComputeLedger, StepCost, StepKey, StepStart
from flopcallback.training.ranks import END, Heard, Ranks, are_several, is_initialized
from flopcallback.training.throughput import Throughput, Totals, Work, rates, sum_of, totals, work_of
from flopcallback.training.trainable import TrainableFingerprint

__all__ = ["ComputeMeter", "OpenStep", "merged_ledger"]

STATE = 1
"""Goes up whenever an older reader would misread what `ComputeMeter.state` gives."""

MOST_CALLS = 1024
"""Of the model in a step, whose shapes tell it from others: a step whose optimizer is idle may never end."""


@dataclass(slots=True)
class OpenStep:
    """A step that is under way."""

    trainable: str
    nodes_before: int
    nodes_inside: int = 0
    is_timed: bool = True
    calls: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    batches: int = 0
    samples: int | None = 0
    tokens: int | None = 0
    backwards: int = 0
    stepped: list[int] = field(default_factory=list)  # numbers of the optimizers, in order
    hw_flops: int | None = None  # what the user's function says
    counted: int | None = None  # FLOPs of the forwards, in the counted step
    cost: StepCost | None = None  # of a step that was observed


class ComputeMeter:
    """Books every step of a training, and sums up what was done since it began and since the last reading.

    A step is `begin_step`, `add_call` for each call of the model in it, `end_step`. Nothing in a step waits for the
    device, or for another rank, but where a step is left out.

    Args:
        model: whose parameters say which of them are trained.
        sizes: samples and tokens of batches.
        flops_fn: hardware FLOPs of a step, from the batch; the user's.
        measures_waiting: whether what lies between two steps is known to be waiting for data.
        failures: where failures go.
        clock: seconds.
        ranks: of this training; by default those of the process group that there is now or, where there is none yet,
            when the first step begins.

    Attributes:
        ledger: what this rank has booked.
        steps: that ended in this process.
        step: the one under way, in which whoever drives the training counts backwards and optimizers.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: BatchSizes,
        *,
        flops_fn: Callable[[Any], int] | None = None,
        measures_waiting: bool = False,
        failures: Failures | None = None,
        clock: Callable[[], float] = time.perf_counter,
        ranks: Ranks | None = None,
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._flops_fn = flops_fn
        self._measures_waiting = measures_waiting
        self._failures = failures or Failures()
        self.ledger = ComputeLedger()
        self._throughput = Throughput(clock, self._synchronize)
        self._of_all = ranks
        self._loaded: Mapping[str, Any] = {}
        self._device = torch.device("cpu")
        self._peak: float | None = None
        self._samples: int | None = 0
        self._tokens: int | None = 0
        self.step: OpenStep | None = None
        self.steps = 0  # in this process
        self._trainable = TrainableFingerprint(model)
        if ranks is None and is_initialized():
            self._join()

    # --- Steps --------------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """A step begins; one that has not ended is forgotten."""
        if self._of_all is None or self._loaded:
            self._join()
        self.step = OpenStep(self._trainable.read(), nodes_so_far())
        self._throughput.begin_step()

    def add_call(self, inputs: Any, batch: Any, *, is_new: bool = True) -> None:
        """The model is called in the step.

        Args:
            inputs: all that it is given.
            batch: what samples, tokens and FLOPs are asked of.
            is_new: False where the call goes on with the batch of the one before, as the second network of a GAN does.
        """
        step = self.step
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
                self._failures.report("flops_fn failed: compute is counted", error)

    def leave_out(self) -> None:
        """The step that began does more than training: its time, and what it does in it, are left out of throughput."""
        if self.step is not None:
            self.step.is_timed = False
            self._throughput.stop()

    def pause(self) -> None:
        """Something else than training begins; the next step goes on."""
        self._throughput.stop()

    def interrupted(self) -> AbstractContextManager[None]:
        """Goes around what is done between two steps and is not training's: its time is left out of throughput."""
        return self._throughput.interrupted()

    @property
    def uses_counted_flops(self) -> bool:
        """Whether steps cost what is counted, rather than what the user's function says."""
        return self._flops_fn is None

    def decide_observation(self) -> bool:
        """Decide whether to observe the step that began; asked once a step, after its first call was added."""
        step = self.step
        if step is None or not step.calls or self._flops_fn is not None:
            return False
        return self.ledger.should_observe(StepStart(step.calls[0], step.trainable))

    @contextmanager
    def counting_nodes(self) -> Iterator[None]:
        """Goes around each call in a step that is counted, and around the same calls in one that is observed."""
        before = nodes_so_far()
        try:
            yield
        finally:
            if self.step is not None:
                self.step.nodes_inside += nodes_so_far() - before

    def set_observed_cost(self, cost: StepCost) -> None:
        """What the step that is about to end cost."""
        if self.step is not None:
            self.step.cost = cost

    def set_counted_forward(self, forward: int, device: torch.device, peak: float | None) -> None:
        """In the step that is about to end, calls of the model were counted.

        Args:
            forward: hardware FLOPs of those of one batch.
            device: where they ran.
            peak: FLOP/s of the device; None where it is not known.
        """
        self._device, self._peak = device, peak
        if self.step is not None:
            self.step.counted = forward

    def end_step(self, *, has_stepped: bool = True) -> None:
        """The step ended, and is booked.

        Args:
            has_stepped: False where no optimizer stepped, and gradients accumulate.
        """
        step, self.step = self.step, None
        if step is None:
            return
        self.steps += 1
        samples, tokens, spent = step.samples, step.tokens, step.hw_flops
        self._samples = None if samples is None or self._samples is None else self._samples + samples
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        if spent is None:
            nodes = nodes_so_far() - step.nodes_before
            outside = nodes - step.nodes_inside
            if not can_count_nodes:  # no step is observed then, and none is like one that another process observed
                nodes = outside = UNKNOWN_NODES
            key = StepKey(tuple(step.calls), step.trainable, step.backwards, tuple(step.stepped), nodes)
            if step.counted is not None:
                self.ledger.count(key, step.counted * max(1, step.batches), outside)
            elif step.cost is not None:
                self.ledger.learn(key, step.cost, outside)
            self.ledger.add(key)
        else:
            self.ledger.add_flops(spent)
        if step.is_timed:
            done = key if spent is None else spent
            self._throughput.end_step(done, samples=samples, tokens=tokens, has_stepped=has_stepped)
        else:
            self._throughput.end_left_out(has_stepped=has_stepped)

    # --- Numbers ------------------------------------------------------------------------------------------------------

    def totals(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """`compute/*`: what all ranks have spent so far. Every rank has to ask; those but the first get nothing.

        Args:
            topic: what it is asked for; the same on all ranks.
            wait: for ranks that are behind.
        """
        heard = self.gather(topic, wait=wait)
        return {} if heard is None else totals([self._totals(heard)])

    def live_totals(self) -> dict[str, int | float]:
        """`compute/*` of a training on one rank, without asking anybody; nothing, where there are several."""
        is_one_of_several = are_several() if self._of_all is None else self._of_all.are_several
        return {} if is_one_of_several or not self.ledger.steps else totals([self._totals()])

    def numbers(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """`compute/*`, and `perf/*` over the steps since it was last asked for; as `totals`."""
        work = work_of(self._throughput.read(), self.ledger.cost_of)
        heard = self.gather(topic, {"work": asdict(work)}, wait=wait)
        if heard is None:
            return {}
        numbers = totals([self._totals(heard)])
        if heard.is_whole and all("work" in word for word in heard.words.values()):
            works = [Work(**word["work"]) for word in heard.words.values()]
            numbers |= rates(works, self._peak, measures_waiting=self._measures_waiting)
        return numbers

    @property
    def is_in_use(self) -> bool:
        """Whether steps ended since training began in this process."""
        return self.steps > 0

    def state(self, *, wait: bool = True) -> dict[str, Any]:
        """What a checkpoint keeps, of all ranks; every rank has to ask, and those but the first get nothing."""
        heard = self.gather("state", wait=wait)
        if heard is None:
            return {}
        return {"version": STATE, "ledger": merged_ledger(heard).state(), **self._sizes_of(heard)}

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

    def joined_ranks(self) -> Ranks:
        """Return the ranks of this training, with what was loaded taken in."""
        return self._join() if self._of_all is None or self._loaded else self._of_all

    def _join(self) -> Ranks:
        ranks = self._of_all = self._of_all or Ranks(type(self._model).__name__)
        state, self._loaded = self._loaded, {}
        if state:
            is_first = ranks.rank == 0
            self.ledger.load(state["ledger"], costs_only=not is_first)
            if is_first:
                self._samples = sum_of((self._samples, state["samples"]))
                self._tokens = sum_of((self._tokens, state["tokens"]))
        return ranks

    def gather(self, name: str, more: Mapping[str, Any] | None = None, *, wait: bool = True) -> Heard | None:
        """Gather what all ranks have booked, on rank 0; every rank has to ask.

        Args:
            name: what it is asked for; the same on all ranks.
            more: what this rank adds.
            wait: for ranks that are behind.
        """
        ranks = self.joined_ranks()
        mine = {"ledger": self.ledger.state(), "samples": self._samples, "tokens": self._tokens, **(more or {})}
        heard = ranks.gather(name if name == END else f"{name}/{self.steps}", mine, wait=wait)
        if heard is not None and not heard.is_whole:
            self._failures.report("compute of all ranks is not complete", RuntimeError(heard.missing))
        return heard

    def _totals(self, heard: Heard | None = None) -> Totals:
        if heard is None or len(heard.words) == 1:
            return Totals(self.ledger.hw_flops, self.ledger.estimated, self._samples, self._tokens)
        ledger = merged_ledger(heard)  # a kind of step that one rank did not observe, another may have
        return Totals(ledger.hw_flops, ledger.estimated, **self._sizes_of(heard))

    def _sizes_of(self, heard: Heard) -> dict[str, int | None]:
        return {name: sum_of(word[name] for word in heard.words.values()) for name in ("samples", "tokens")}

    def _synchronize(self) -> None:
        if self._device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self._device)


def merged_ledger(heard: Heard) -> ComputeLedger:
    """Return one ledger with the steps of all ranks that were heard."""
    return ComputeLedger.merged(word["ledger"] for word in heard.words.values())
