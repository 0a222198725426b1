"""`measure_latency`: one call of a model, counted and timed without training."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn

from flopcallback.measuring.latency import Latency, LatencyWindow
from flopcallback.modules.snapshot import Snapshot, left_as_found, private_copies
from flopcallback.modules.structures import tensors_in
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary
from flopcallback.profiling.checks import checked_options, warn_of_fma
from flopcallback.profiling.on_demand import Call
from flopcallback.tracing.regions import without_compilation
from flopcallback.tracing.run import AUTO, DISPATCH, ObservedRun, filtered_warnings, observe

__all__ = ["measure_latency"]


def measure_latency(
    model: nn.Module | Callable[..., Any],
    inputs: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    elementwise: bool = False,
    warmup_steps: int = 5,
    latency_steps: int = 20,
    peak_flops: float | str | None = None,
    max_s: float = 60.0,
    engine: str = AUTO,
    fma: int | None = None,
) -> ModelProfile:
    """Count and time one call of a model, by module.

    The result is the callback's profile, without training. The model is called as it is: `model.training`, grad mode,
    autocast and the number of threads are the caller's. For inference, call this after `model.eval()` and within
    `torch.no_grad()`. Afterwards the model, its buffers and grads, the inputs and the random states are as they were
    found, also when the model raises.

    The time of the whole call, in `profile.latency` and in the row of the model, is that of a user's call, without any
    clock on a module: `torch.utils.benchmark` takes it, and waits for the device before and after. Times of modules
    come from clocks around their forwards, in other calls that alternate with those. A clock takes time too, about a
    microsecond on a CPU, and that adds to the time of every module around it; so a module is given its share of those
    calls, times what a user waits, and all of them add up to that. Every table says what a module's time contains.

    Two calls are observed: one is counted, and the other shows what has to be restored. `warmup_steps` calls are not
    timed. Then each of `latency_steps` rounds makes one call with clocks and three without, of which the first two warm
    up.

    Args:
        model: a module, a method of one, or any callable on modules, as for `FlopCountAnalysis`.
        inputs: a tensor, or a tuple of positional arguments of any structure; anything else is a single argument.
        kwargs: keyword arguments of the call.
        elementwise: whether elementwise operators and reductions count as `macs`; they are no FLOPs.
        warmup_steps: calls before the first timed one.
        latency_steps: rounds; medians are over these.
        peak_flops: dense peak of the device in FLOP/s, to compare achieved FLOP/s with; by default the known peak of
            the device. `"measure"` measures it once by a matrix product.
        max_s: seconds after which no further round begins (half of it: no further warm-up call). The first round is
            made in any case; `profile.latency.steps` says how many were.
        engine: counting engine, `"auto"`, `"trace"`, `"dispatch"` or `"observer"`, as for `FlopCountAnalysis`.
        fma: deprecated, without effect. FLOPs are 2 per multiply-add.

    Raises:
        TypeError: `model` is no module and cannot be called.
        ValueError: an argument is invalid, or the model cannot be run: it is on the meta device, or has lazy modules
            that are not initialised.
        RuntimeError: the engine is `"trace"`, and the tracer cannot count this call.
        Exception: whatever the model raises by itself.

    Example:
        >>> import torch
        >>> from flopcallback import measure_latency
        >>> profile = measure_latency(torch.nn.Linear(3, 5), torch.ones(2, 3))
        >>> profile.forward_flops, profile.latency.steps, profile.forward_ms > 0
        (60, 20, True)
    """
    warn_of_fma("measure_latency", fma)
    options = checked_options(
        "measure_latency",
        elementwise=elementwise,
        warmup_steps=warmup_steps,
        latency_steps=latency_steps,
        peak_flops=peak_flops,
    )
    call = Call.of("measure_latency", model, inputs, kwargs)
    warmup_steps, latency_steps = options["warmup_steps"], options["latency_steps"]
    _check_counts(latency_steps, max_s)
    _check_device(call.root, (call.args, call.kwargs))
    conditions = call.conditions(options["peak_flops"])
    profile, run = call.count(conditions, engine, elementwise=elementwise)
    # The warm-up is made here, in calls, and stops early when time is short.
    window = LatencyWindow(run.names, conditions.device, warmup_steps=0, steps=latency_steps, methods=run.methods)
    latency = _time(call, run, window, warmup_steps, max_s)
    clocks = f"{latency.how}, the whole call by torch.utils.benchmark"
    summary = LatencySummary(latency.forward_ms, None, latency.steps, clocks)
    return profile.with_latency(summary, latency.modules, latency.spreads)


def _time(counted: Call, run: ObservedRun, window: LatencyWindow, warmup_steps: int, max_s: float) -> Latency:
    """Time calls like the counted one."""
    from torch.utils.benchmark import Timer

    call, args, kwargs = counted.model, counted.args, counted.kwargs

    def fresh() -> Any:
        """Copy the inputs: state in them, such as a cache, starts anew."""
        return private_copies((args, kwargs))

    statement, names = "call(*inputs[0], **inputs[1])", {"call": call, "fresh": fresh}
    timer = Timer(statement, "inputs = fresh()", globals=names, num_threads=torch.get_num_threads())  # 1 by default
    bare_ms: list[float] = []
    with left_as_found(run.names.unique.values(), (args, kwargs)) as snapshot:
        _save_written_tensors(call, run, fresh(), snapshot)
        begin_s = time.monotonic()
        for _ in range(warmup_steps):
            own_args, own_kwargs = fresh()
            call(*own_args, **own_kwargs)
            if time.monotonic() - begin_s > max_s / 2:
                break
        # One round is made whatever the time: without it there are no medians.
        while window.is_open and (not bare_ms or time.monotonic() - begin_s < max_s):
            own_args, own_kwargs = fresh()
            window.begin_step()
            with window.timed_call():
                call(*own_args, **own_kwargs)
            window.end_step()
            # The timer makes two calls of its own before the one that it times.
            bare_ms += [1e3 * seconds for seconds in timer.timeit(1).raw_times]
        latency = window.read()
    assert latency is not None  # at least one round was made
    return latency.within(bare_ms)


def _save_written_tensors(call: Callable[..., Any], run: ObservedRun, inputs: Any, snapshot: Snapshot) -> None:
    """Observe one more call, to save the tensors that it writes to.

    These are parameters and inputs; no others have to be saved.
    """
    args, kwargs = inputs
    bound = functools.partial(call, *args, **kwargs)
    with without_compilation(list(run.names.unique.values())), filtered_warnings("no_tracer_warning"):
        observe(bound, run.names, inputs, engine=DISPATCH, snapshot=snapshot)


def _check_counts(latency_steps: int, max_s: Any) -> None:
    if latency_steps < 1:
        raise ValueError(
            f"measure_latency: latency_steps is {latency_steps}, expected 1 or more. FlopCountAnalysis counts and "
            "times nothing."
        )
    # True would be a second; infinity is allowed.
    is_number = isinstance(max_s, Real) and not isinstance(max_s, bool)
    if not is_number or math.isnan(max_s) or max_s < 0:
        raise ValueError(f"measure_latency: max_s is {max_s!r}, expected seconds, 0 or more")


def _check_device(root: nn.Module, inputs: Any) -> None:
    if any(tensor.is_meta for tensor in (*root.parameters(), *tensors_in(inputs))):
        raise ValueError(
            "measure_latency: the model is on the meta device, where nothing is computed that could be timed. Move it, "
            "as in model.to_empty(device='cpu'), or count it by FlopCountAnalysis."
        )
