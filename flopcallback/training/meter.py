"""ComputeMeter: `compute/*` and `perf/*` from the steps of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import nn

from flopcallback.measuring.hardware import Peak
from flopcallback.measuring.latency import is_captured
from flopcallback.modules.structures import tensors_in
from flopcallback.profile.numbers import sum_of
from flopcallback.tracing.torch_private import UNKNOWN_NODES, can_count_nodes, nodes_so_far
from flopcallback.training.audits import AUTO, ObservationSchedule, Observe
from flopcallback.training.batch_sizes import BatchSizes, StepSizes, whole_number
from flopcallback.training.failures import Failures
from flopcallback.training.kinds import MARKED, Kind, StepCost, StepKey, StepStart
from flopcallback.training.known_inputs import Beginning, End, InputTable, KnownCall, KnownInputs
from flopcallback.training.ledger import ComputeLedger
from flopcallback.training.ranks import END, Gathered, Ranks, are_several, is_initialized
from flopcallback.training.sample_groups import fingerprint_of, first_rank_on_samples
from flopcallback.training.saved_state import checked_state
from flopcallback.training.throughput import Throughput, Totals, Work, rates, totals, work_of
from flopcallback.training.trainable import TrainableFingerprint

__all__ = ["ComputeMeter", "OpenStep", "merged_ledger"]

STATE = 2
"""Version of `ComputeMeter.state`; raised whenever an older version would misread it."""

MOST_CALLS = 1024
"""Model calls that are kept for the key of a step: without an optimizer's step, a step may never end."""


@dataclass(slots=True)
class OpenStep(StepSizes):
    """Step in progress, with the samples and tokens of its batches.

    Attributes:
        beginning: what is known when it begins.
        nodes_before: autograd nodes made in this thread before the step.
        calls: the first `MOST_CALLS` calls of the model.
        backwards: number of backwards.
        nodes_inside: autograd nodes made inside the counted calls; their number depends on the counting itself.
        is_timed: False once the step is left out of throughput.
        batches: number of batches; several calls may share one.
        stepped: numbers of the optimizers that stepped, in order.
        flops: sum of the results of the user's `flops_fn`; None without one.
        counted: FLOPs of one batch's forward, in a counted step.
        cost: cost of an observed step.
    """

    beginning: Beginning
    nodes_before: int
    calls: list[KnownCall]
    backwards: int
    nodes_inside: int = 0
    is_timed: bool = True
    batches: int = 0
    stepped: tuple[int, ...] = ()
    flops: int | None = None
    counted: int | None = None
    cost: StepCost | None = None


class ComputeMeter:
    """Meter of compute and throughput over the steps of a training.

    A step is `begin_step`, `add_call` and `add_batch` for each further model call and batch, `end_step`. None of these
    waits for the device or for another rank; `leave_out` waits for the device.

    Args:
        model: model under training.
        sizes: samples and tokens of a batch.
        flops_fn: the user's function from a batch to the FLOPs of its step.
        observe: which steps to observe; see `ObservationSchedule`.
        measures_waiting: whether the time between two steps is known to be a wait for data.
        failures: reports failures.
        clock: returns seconds.
        ranks: ranks of this training; by default those of the process group, which may be created as late as before the
            first step.

    Attributes:
        ledger: compute booked by this rank.
        steps: number of steps that ended in this process.
        loaded: state of a checkpoint until the first step adds it to the ledger; empty before and after.
        recorded_step: FLOPs and bytes of a step whose operators were recorded; set by the caller, None before.
        step: step in progress, or None; the caller updates its `backwards` and `stepped`.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: BatchSizes,
        *,
        flops_fn: Callable[[Any], int] | None = None,
        observe: Observe = "auto",
        measures_waiting: bool = False,
        failures: Failures | None = None,
        clock: Callable[[], float] = time.perf_counter,
        ranks: Ranks | None = None,
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._inputs = InputTable()
        self._marked = KnownInputs(MARKED)
        self._flops_fn = flops_fn
        self._measures_waiting = measures_waiting
        self._failures = failures or Failures()
        self.ledger = ComputeLedger()
        self._throughput = Throughput(clock, self._synchronize)
        self._ranks = ranks  # None until the ranks are known, at the latest at the first step
        self.loaded: Mapping[str, Any] = {}
        self._device = torch.device("cpu")  # device of the counted call
        self._peak: Peak | None = None  # its peak rates; None if unknown
        self.recorded_step: tuple[int, int] | None = None
        self._samples: int | None = 0  # since training began; None as soon as one step's number is unknown
        self._tokens: int | None = 0  # likewise
        self.step: OpenStep | None = None  # None between two steps
        self.steps = 0
        self._last_start: StepStart | None = None  # how the step before began
        self._number = 0  # of the next step among those of the training, the same on all ranks
        self._schedule = ObservationSchedule(observe)
        self._is_auto = observe == AUTO
        self._trainable = TrainableFingerprint(model)
        self._takes_gradients = False  # whether the inputs of the first step require gradients
        self._fingerprint: int | None = None  # of the model; None before the first message to other ranks
        self._counts_samples = True  # False on a rank whose samples another one counts; known with the fingerprint
        if ranks is None and is_initialized():  # otherwise at the first step
            self._join_ranks()

    # --- Steps --------------------------------------------------------------------------------------------------------

    def begin_step(
        self, inputs: Any, batch: Any, *, site: str | None = None, has_grad: bool = True, backwards: int = 0
    ) -> bool:
        """Begin a step; forget one that has not ended.

        Args:
            inputs: the batch, or all inputs of the step's first call; `MARKED` before that, without a gradient.
            batch: argument of the user's functions for samples, tokens and FLOPs.
            site: name of the module that is called first; None if `inputs` is the batch.
            has_grad: whether autograd is on in that call; if not, the batch is that of a further one.
            backwards: number of backwards that are taken for granted.

        Returns:
            Whether the step is to be observed for its cost: False, or True if `decide_observation` is to be asked.
        """
        if self._ranks is None or self.loaded:
            self._join_ranks()
        if not self.steps:
            self._takes_gradients = any(tensor.requires_grad for tensor in tensors_in(inputs))
        known = self._marked if inputs is MARKED else self._inputs.look_up(inputs)
        trainable = self._trainable.read()
        beginning = known.beginnings.get(trainable) or known.begin(trainable)
        calls = [] if site is None else [(site, has_grad, known)]
        # By position: with names, it takes a third longer.
        step = self.step = OpenStep(0, 0, 0, beginning, nodes_so_far(), calls, backwards)
        if has_grad:
            if known.sizes is not None and known.key is self._inputs.raw:  # else names that tell of tokens may differ
                step.samples, step.tokens = known.sizes
                step.batches = 1
            else:
                self._add_batch(step, known, inputs, batch)
        self._throughput.begin_step()
        group = beginning.group
        if group is None or not group.kinds:  # no kind so far, or all were forgotten
            group = beginning.group = self.ledger.starts.get(beginning.start)
        # For nearly all steps nothing is left to ask.
        if group is None or group.unseen or not self._is_auto or known.key is None:
            return True
        return bool(group.due) and self._number >= group.quiet_until

    def add_call(self, site: str, inputs: Any, *, has_grad: bool = True) -> None:
        """Add a further call of the model to the step.

        Args:
            site: name of the module.
            inputs: all inputs of the call.
            has_grad: whether autograd is on.
        """
        step = self.step
        if step is not None:
            known = self._inputs.look_up(inputs)
            if len(step.calls) < MOST_CALLS:
                step.calls.append((site, has_grad, known))

    def add_batch(self, inputs: Any, batch: Any, *, is_new: bool = True) -> None:
        """Add the batch of the last call to the step, which then has its samples and tokens.

        Args:
            inputs: all inputs of the call.
            batch: argument of the user's functions for samples, tokens and FLOPs.
            is_new: False if the call reuses the batch of the one before, as the second network of a GAN does.
        """
        step = self.step
        if step is None:
            return
        known = self._inputs.look_up(inputs)
        if is_new:
            self._add_batch(step, known, inputs, batch)
        else:
            self._sizes.add(step, batch, inputs, self._inputs.raw, is_new=False)

    def _add_batch(self, step: OpenStep, known: KnownInputs, inputs: Any, batch: Any) -> None:
        """Add a batch, whose inputs were looked up just now."""
        raw = self._inputs.raw
        self._sizes.add(step, batch, inputs, raw)
        step.batches += 1
        if self._flops_fn is None:
            if raw == known.key:
                known.sizes = self._sizes.known(raw)
            return
        try:
            step.flops = (step.flops or 0) + whole_number(self._flops_fn, "flops_fn", batch)
        except Exception as error:  # noqa: BLE001 - compute is then counted, as without the function
            self._flops_fn, step.flops = None, None
            self._failures.report("flops_fn failed: compute is counted", error)

    def leave_out(self) -> None:
        """Leave the current step out of throughput.

        It does more than training. Its cost is booked all the same.
        """
        if self.step is not None:
            self.step.is_timed = False
            self._throughput.stop()

    def pause(self) -> None:
        """Leave the time until the next step out of throughput."""
        self._throughput.stop()

    def interrupted(self) -> AbstractContextManager[None]:
        """Return a context manager that leaves its time out of throughput.

        It is for work between two steps.
        """
        return self._throughput.interrupted()

    @property
    def is_in_counted_step(self) -> bool:
        """True if the current step's calls were counted."""
        return self.step is not None and self.step.counted is not None

    @property
    def uses_counted_flops(self) -> bool:
        """True if FLOPs are counted, False if the user's `flops_fn` gives them."""
        return self._flops_fn is None

    def decide_observation(self, *, is_timing: bool = False) -> bool:
        """Decide whether to observe the current step for its cost.

        Call it once per step: attempts are counted.

        Args:
            is_timing: whether steps are being timed.
        """
        step = self.step
        if step is None or self._flops_fn is not None:
            return False
        start, ledger = step.beginning.start, self.ledger
        kinds = ledger.starts.get(start)
        is_known = start.inputs is not None
        return self._schedule.should_observe(kinds, self._number, ledger.steps, is_known=is_known, is_timing=is_timing)

    def expects_observation(self, *, is_timing: bool = False) -> bool:
        """Return whether the next step is to be observed, should it begin like the last one."""
        start = self._last_start
        if start is None or self._flops_fn is not None:
            return False
        kinds = self.ledger.starts.get(start)
        if self._is_auto and kinds is not None and not (kinds.unseen or kinds.due):  # nearly always
            return False
        return self._schedule.expects(kinds, self._number, self.ledger.steps, is_timing=is_timing)

    def take_back_observation(self) -> None:
        """Take back a decision to observe the current step, which could not be carried out."""
        if self.step is not None:
            self._schedule.take_back(self.ledger.starts.get(self.step.beginning.start))

    @contextmanager
    def counting_nodes(self) -> Iterator[None]:
        """Attribute autograd nodes made inside to the counted calls.

        Wrap the counted calls, and the same calls in an observed step: the nodes outside of them are then comparable.
        """
        before = nodes_so_far()
        try:
            yield
        finally:
            if self.step is not None:
                self.step.nodes_inside += nodes_so_far() - before

    def set_observed_cost(self, cost: StepCost) -> None:
        """Set the observed cost of the current step."""
        if self.step is not None:
            self.step.cost = cost

    def set_counted_forward(self, forward: int, device: torch.device, peak: Peak | None) -> None:
        """Record the counted forward FLOPs of the current step.

        Args:
            forward: FLOPs of the model calls of one batch.
            device: device of these calls.
            peak: peak rates of the device; None if unknown.
        """
        self._device, self._peak = device, peak
        if self.step is not None:
            self.step.counted = forward

    def end_step(self, *, has_stepped: bool = True) -> None:
        """End the step and book its cost.

        Args:
            has_stepped: False if gradients only accumulated and no optimizer stepped.
        """
        step, self.step = self.step, None
        if step is None:
            return
        self._last_start = step.beginning.start
        self.steps += 1
        self._number += 1
        samples, tokens = step.samples, step.tokens
        # A sum with an unknown part is unknown.
        self._samples = None if samples is None or self._samples is None else self._samples + samples
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        if step.cost is None and step.counted is None and step.flops is None:
            nodes = nodes_so_far() - step.nodes_before
            end = tuple(step.calls), step.backwards, step.stepped, nodes, samples, tokens
            alike = step.beginning.ends.get(end)
            if alike is not None and (flops := alike.kind.plain) is not None and step.is_timed and has_stepped:
                # Nearly all steps. Kinds are noted, not FLOPs: the cost of one may be learned after its steps.
                self.ledger.add_plain(alike.kind, flops)
                schedule = self._schedule
                schedule.plain_s += self._throughput.end_alike(alike)
                schedule.plain += 1
                return
            kind: Kind | int | None = self._book_unobserved(step, end)
        elif step.flops is not None:
            self.ledger.add_flops(step.flops)
            kind = step.flops
        else:
            kind = self._book(step)
        if not step.is_timed or kind is None:
            seconds = self._throughput.end_left_out(has_stepped=has_stepped)
            if step.cost is not None and step.counted is None:
                self._schedule.note_observed(seconds)
            return
        self._schedule.plain_s += self._throughput.end_step(
            kind, samples=samples, tokens=tokens, has_stepped=has_stepped
        )
        self._schedule.plain += 1

    def _key_of(self, step: OpenStep, nodes: int) -> StepKey | None:
        """Return the kind of a step; None if nothing is known that tells it from others."""
        inputs, trainable = step.beginning.start
        calls = tuple((site, has_grad, known.key) for site, has_grad, known in step.calls)
        if (inputs is None or inputs is MARKED) and all(key is None for _, _, key in calls):
            return None
        if not can_count_nodes:  # no step is observed then; the key must not match one from another process
            nodes = UNKNOWN_NODES
        return StepKey(inputs, trainable, calls, step.backwards, step.stepped, nodes)

    def _book_unobserved(self, step: OpenStep, end: End) -> Kind:
        """Book a step at the cost of its kind; return the kind."""
        key = self._key_of(step, end[3])
        kind = self.ledger.add(key)
        if key is not None:
            step.beginning.note(end, kind)
        return kind

    def _book(self, step: OpenStep) -> Kind | None:
        """Book a counted or observed step; return its kind, or None if it is of none."""
        nodes = nodes_so_far() - step.nodes_before
        outside = nodes - step.nodes_inside if can_count_nodes else UNKNOWN_NODES
        key, ledger = self._key_of(step, nodes), self.ledger
        if step.counted is not None:
            if step.cost is not None:
                ledger.add_both(key, step.cost)
            else:  # `counted` is one batch's; the others of an accumulated step are like it
                ledger.add_counted(key, step.counted * max(1, step.batches), outside)
            return None
        assert step.cost is not None
        kind = ledger.add_observed(key, step.cost, outside)
        self._schedule.plan_audit(kind, None if key is None else ledger.starts.get(key.start))
        return kind

    # --- Numbers ------------------------------------------------------------------------------------------------------

    def totals(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """Return `compute/*` of all ranks so far.

        Every rank has to call it; those other than rank 0 get an empty dict.

        Args:
            topic: name of the occasion, the same on all ranks.
            wait: whether to wait for ranks that are behind.
        """
        gathered = self.gather(topic, wait=wait)
        return {} if gathered is None else totals(self._totals(gathered))

    def live_totals(self) -> dict[str, int | float]:
        """Return `compute/*` as of now, without asking other ranks.

        With several ranks it is an empty dict.
        """
        is_one_of_several = are_several() if self._ranks is None else self._ranks.are_several
        return {} if is_one_of_several or not self.ledger.steps else totals(self._totals())

    def numbers(self, topic: str, *, wait: bool = True) -> dict[str, int | float]:
        """Return `compute/*` so far, and `perf/*` since the last call.

        Arguments and ranks are as in `totals`.
        """
        work = work_of(self._throughput.read(), self.ledger.cost_of, self.recorded_step)
        if self.joined_ranks().are_several and not self._finds_out_samples():
            work = replace(work, samples=0, tokens=0)
        gathered = self.gather(topic, {"work": astuple(work)}, wait=wait)
        if gathered is None:
            return {}
        numbers = totals(self._totals(gathered))
        # Rates need the work of every rank. A late or ended rank may be represented by a message without it.
        if gathered.is_whole and all("work" in message for message in gathered.messages.values()):
            works = [Work(*message["work"]) for message in gathered.messages.values()]
            if not _knows_sizes(gathered):
                works = [replace(each, samples=None, tokens=None) for each in works]
            flops_per_s, bandwidth = (None, None) if self._peak is None else self._peak.rates
            numbers |= rates(works, flops_per_s, bandwidth=bandwidth, measures_waiting=self._measures_waiting)
        return numbers

    @property
    def is_in_use(self) -> bool:
        """True if any step has ended in this process."""
        return self.steps > 0

    def state(self, *, wait: bool = True) -> dict[str, Any]:
        """Return the state of all ranks for a checkpoint.

        Every rank has to call it; those other than rank 0 get an empty dict.
        """
        gathered = self.gather("state", {"ledger": self.ledger.state()}, wait=wait)
        if gathered is None:
            return {}
        ledger = self.ledger if len(gathered.messages) == 1 else merged_ledger(gathered)
        return {"version": STATE, "step": self._number, "ledger": ledger.state(), **self._sizes_of(gathered)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Rank 0 alone books its totals, so that the sum is the same on any number of ranks. This happens when the first
        step begins: before, there may be no process group, and every process would take itself for rank 0.

        Raises:
            ValueError: it is no such state, or has another version.
        """
        if state == {}:  # a rank other than 0, or a training without steps
            return
        self.loaded = checked_state(state, STATE)

    def leave(self) -> None:
        """Stop taking part after a failure.

        Other ranks then neither wait for this one nor use its totals, which are too low from now on.
        """
        if self._ranks is not None:
            self._ranks.gather(END, None, wait=False)

    # --- Ranks --------------------------------------------------------------------------------------------------------

    def joined_ranks(self) -> Ranks:
        """Return the ranks, after adding a loaded state to the totals."""
        return self._join_ranks() if self._ranks is None or self.loaded else self._ranks

    def _join_ranks(self) -> Ranks:
        ranks = self._ranks = self._ranks or Ranks(type(self._model).__name__)
        state, self.loaded = self.loaded, {}
        if state:
            is_first = ranks.rank == 0
            # Every rank learns the costs. The steps go to rank 0 alone, or the sum would have them once per rank.
            self.ledger.load(state["ledger"], costs_only=not is_first)
            self._number += state["step"]
            if is_first:
                self._samples = sum_of((self._samples, state["samples"]))
                self._tokens = sum_of((self._tokens, state["tokens"]))
        return ranks

    def gather(self, name: str, extra: Mapping[str, Any] | None = None, *, wait: bool = True) -> Gathered | None:
        """Gather the books of all ranks on rank 0.

        Every rank has to call it.

        Args:
            name: name of the occasion, the same on all ranks.
            extra: further entries of this rank's message, or others in place of the usual ones.
            wait: whether to wait for ranks that are behind.
        """
        ranks = self.joined_ranks()
        message = {"ledger": self.ledger.summary(), "samples": self._samples, "tokens": self._tokens, **(extra or {})}
        if ranks.are_several:
            message |= {} if self._finds_out_samples() else {"samples": 0, "tokens": 0}
            message["model"] = self._fingerprint
        gathered = ranks.gather(name if name == END else f"{name}/{self.steps}", message, wait=wait)
        if gathered is not None and not gathered.is_whole:
            self._failures.report("compute of all ranks is not complete", RuntimeError(gathered.missing))
        return gathered

    def _totals(self, gathered: Gathered | None = None) -> Totals:
        if gathered is None or len(gathered.messages) == 1:
            return self._totals_of(self.ledger, self._samples, self._tokens)
        return self._totals_of(merged_ledger(gathered), **self._sizes_of(gathered))

    @staticmethod
    def _totals_of(ledger: ComputeLedger, samples: int | None, tokens: int | None) -> Totals:
        return Totals(ledger.sums, ledger.steps, ledger.audited, samples, tokens)

    def _sizes_of(self, gathered: Gathered) -> dict[str, int | None]:
        if not _knows_sizes(gathered):
            return {"samples": None, "tokens": None}
        return {name: sum_of(message[name] for message in gathered.messages.values()) for name in ("samples", "tokens")}

    def _finds_out_samples(self) -> bool:
        """Return whether this rank's samples count: of ranks that share samples, those of the first do."""
        if self._fingerprint is None and self.steps:
            self._fingerprint = fingerprint_of(self._model, takes_gradients=self._takes_gradients)
            rank = self.joined_ranks().rank
            self._counts_samples = first_rank_on_samples(self._model, rank) == rank
        return self._counts_samples

    def _synchronize(self) -> None:
        # A CPU runs nothing asynchronously, and a step that the user captures in a graph must not be waited for.
        if self._device.type not in ("cpu", "meta") and not is_captured(self._device):
            torch.accelerator.synchronize(self._device)


def _knows_sizes(gathered: Gathered) -> bool:
    """Return whether samples and tokens add up: each stage of a pipeline, a model of its own, sees them all."""
    models = {message["model"] for message in gathered.messages.values() if message.get("model") is not None}
    return len(models) <= 1


def merged_ledger(gathered: Gathered) -> ComputeLedger:
    """Return a ledger with the steps of all gathered ranks."""
    return ComputeLedger.merged(message["ledger"] for message in gathered.messages.values())
