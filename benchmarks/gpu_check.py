"""Hold what is said about GPUs against one: counts, trainings, times, peaks, memory, numerics.

Usage: python benchmarks/gpu_check.py [--device cuda] [--quick] [--seconds 450] [--only TEXT] [--json gpu_check.json]

No network is needed. Each check is a line of the table: right, wrong or skipped, and what was seen; one that fails is a
line with its error. No check is begun after --seconds. Without a CUDA device nothing is checked, and that is no
failure; `--device cpu --quick` runs what a CPU can, to try the script itself. The exit status is 1 if a line is wrong.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Read when cuBLAS is first used: without it, no training on a GPU repeats itself to the bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from gpu_cases import OperatorCase, Perceptron, operator_cases
from report import environment, markdown
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import BytesCountAnalysis, FlopCountAnalysis, FlopHook
from flopcallback.measuring.hardware import measured_peak, peak_for, peak_in_table
from flopcallback.trackers import MemoryTracker

WINDOW = 40  # steps: more than are counted, warmed up and timed
MODES = ("eager", "default", "reduce-overhead", "max-autotune")
PRECISIONS = ("float32", "bfloat16")


class Skip(Exception):  # noqa: N818 - nothing went wrong
    """Reason for not checking something here."""


@dataclass(frozen=True)
class Seen:
    """What a check has seen.

    Attributes:
        is_right: whether it is as it should be; None if that is not judged.
        text: what was seen.
        figures: the numbers, for the JSON file.
    """

    is_right: bool | None
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    name: str
    status: str
    text: str
    seconds: float
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Machine:
    """What is checked, and how large.

    Attributes:
        device: the device.
        is_quick: whether everything is small, and times are not judged.
    """

    device: torch.device
    is_quick: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def rows(self) -> int:
        return 64 if self.is_quick else 4096

    def net(self) -> Perceptron:
        """Return the same network each time."""
        torch.manual_seed(0)
        sizes = (24, 32, 2, 10) if self.is_quick else (512, 1024, 4, 1000)
        return Perceptron(*sizes).to(self.device)

    def batch(self, wide: int) -> torch.Tensor:
        torch.manual_seed(1)
        return torch.randn(self.rows, wide, device=self.device)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def needs_cuda(self) -> None:
        if not self.is_cuda:
            raise Skip("needs a CUDA device")


Check = Callable[[], Seen]


# --- Trainings --------------------------------------------------------------------------------------------------------


@dataclass
class Training:
    """A plain loop, with a hook or without.

    Args:
        machine: where it runs.
        mode: of `torch.compile`, or "eager".
        precision: "float32", or "bfloat16" under autocast.
        watch: what the loop runs in, given model and optimizer; yields the hook.
    """

    machine: Machine
    mode: str = "eager"
    precision: str = "float32"
    watch: Callable[[Any, Any], AbstractContextManager[Any]] = lambda model, optimizer: nullcontext()
    step_ms: list[float] = field(default_factory=list)
    hook: FlopHook | None = None

    def __post_init__(self) -> None:
        self.net = self.machine.net()
        self.called = self.net
        if self.mode != "eager":
            self.called = torch.compile(self.net, mode=None if self.mode == "default" else self.mode)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)
        self.x = self.machine.batch(self.net.sizes[0])

    def step(self) -> None:
        with torch.autocast(self.machine.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.called(self.x).float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, steps: int) -> Training:
        with self.watch(self.called, self.optimizer) as self.hook:
            for _ in range(steps):
                with timed(self.machine, self.step_ms):
                    self.step()
        return self

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.net.parameters()]


@contextmanager
def timed(machine: Machine, into: list[float]) -> Iterator[None]:
    """Time by events of CUDA's own, or by the clock on a CPU."""
    if not machine.is_cuda:
        begin = time.perf_counter()
        yield
        into.append(1e3 * (time.perf_counter() - begin))
        return
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    yield
    end.record()
    end.synchronize()
    into.append(begin.elapsed_time(end))


def hooked(**options: Any) -> Callable[[Any, Any], AbstractContextManager[FlopHook]]:
    """Return a watch that has a hook with these options."""
    options = {"summary": False, "strict": True, "log_every_n_steps": 10**6, **options}
    return lambda model, optimizer: FlopHook(model, optimizer, **options)


# --- Counts -----------------------------------------------------------------------------------------------------------


def multiply_adds(call: Callable[..., Any], case: OperatorCase, engine: str) -> int:
    return FlopCountAnalysis(call, case.inputs, engine=engine).hardware_flops()[""] // 2


def check_operator(machine: Machine, case: OperatorCase) -> Seen:
    """Hold the engines, forward and with gradients, against the figure on paper."""
    if case.needs_gpu:
        machine.needs_cuda()
    try:
        case.step(*case.inputs)
    except RuntimeError as error:
        raise Skip(f"not on this device: {str(error).splitlines()[0]}") from error
    figures = {f"{engine}": multiply_adds(case.run, case, engine) for engine in ("trace", "dispatch", "observer")}
    figures |= {f"{engine}, step": multiply_adds(case.step, case, engine) for engine in ("dispatch", "observer")}
    with FlopCounterMode(display=False) as counter:
        case.step(*case.inputs)
    figures["FlopCounterMode, step"] = counter.get_total_flops() // 2
    records = FlopCountAnalysis(case.step, case.inputs, engine="observer")
    on_paper = {name: case.forward_and_backward if name.endswith("step") else case.forward for name in figures}
    differ = {name: figure / on_paper[name] for name, figure in figures.items() if figure != on_paper[name]}
    ours = [name for name in differ if not name.startswith("FlopCounterMode")]
    operators = ", ".join(records.by_operator()) + "".join(f", unknown: {name}" for name in records.unknown_ops())
    off = "".join(f"; {name} is {factor:.4f} of it" for name, factor in differ.items())
    return Seen(
        not ours and not records.unknown_ops(),
        f"{case.forward:,} multiply-adds, {case.forward_and_backward:,} with gradients{off} ({operators})",
        {**figures, "forward on paper": case.forward, "step on paper": case.forward_and_backward},
    )


def check_training(machine: Machine, mode: str, precision: str) -> Seen:
    """Hold the FLOPs of a training against the figure on paper."""
    torch._dynamo.reset()
    training = Training(machine, mode, precision, hooked()).run(WINDOW)
    assert training.hook is not None
    numbers = training.hook.metrics()
    on_paper = WINDOW * training.net.step_flops(machine.rows)
    total, estimated_pct = numbers["compute/flops_total"], numbers["compute/estimated_pct"]
    is_exact, forward = total == on_paper, training.net.forward_flops(machine.rows)
    text = f"{total / on_paper:.4f} of the figure on paper, {estimated_pct:.0f} % estimated"
    return Seen(
        (is_exact if estimated_pct == 0 else True) and numbers["flops/forward"] == forward,
        text + (", which it says" if estimated_pct else "") + f"; {numbers['compute/audited_steps']} steps audited",
        {"total": total, "on paper": on_paper, "estimated %": estimated_pct},
    )


# --- Numerics ---------------------------------------------------------------------------------------------------------


def check_identity(machine: Machine, mode: str, precision: str) -> Seen:
    """Train with us and without, and compare all weights bit by bit."""
    steps, ends = 12, []
    torch.use_deterministic_algorithms(True)
    try:
        for watch in (hooked(latency_steps=4, warmup_steps=1), None, None):
            torch._dynamo.reset()
            training = Training(machine, mode, precision, *([watch] if watch else []))
            ends.append(training.run(steps).weights())
    finally:
        torch.use_deterministic_algorithms(False)
    with_us, without, again = ends
    if not all(map(torch.equal, without, again)):
        raise Skip("this training does not repeat itself without us either")
    differ = sum(not torch.equal(a, b) for a, b in zip(with_us, without, strict=True))
    return Seen(differ == 0, f"{differ} of {len(without)} tensors differ after {steps} steps")


def check_graph_capture(machine: Machine) -> Seen:
    """Have the user capture a step in a CUDA graph under our hook, and replay it."""
    machine.needs_cuda()
    ends = []
    for watch in (hooked(), None):
        training = Training(machine, watch=watch) if watch else Training(machine)
        with training.watch(training.called, training.optimizer):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(12):
                    training.step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                training.step()
            for _ in range(3):
                graph.replay()
            machine.synchronize()
            ends.append(training.weights())
    worst = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    return Seen(worst < 1e-4, f"captured and replayed; weights differ by {worst:.1e}")


# --- Times, rates -----------------------------------------------------------------------------------------------------


def check_step_time(machine: Machine, mode: str) -> Seen:
    """Hold our step time against events of CUDA's around steps without us."""
    torch._dynamo.reset()
    plain = Training(machine, mode).run(WINDOW)
    torch._dynamo.reset()
    watched = Training(machine, mode, watch=hooked()).run(WINDOW)
    assert watched.hook is not None
    ours, theirs = watched.hook.metrics()["latency/step_ms"], statistics.median(plain.step_ms[WINDOW // 2 :])
    forward = watched.hook.metrics()["latency/forward_ms"]
    is_right = None if machine.is_quick else 0.85 < ours / theirs < 1.15
    text = f"ours {ours:.3f} ms, by events {theirs:.3f} ms: {ours / theirs:.3f}; forward {forward:.3f} ms"
    return Seen(is_right, text, {"ours ms": ours, "events ms": theirs})


def check_modules_add_up(machine: Machine) -> Seen:
    """Hold the times of modules against that of the call around them."""
    training = Training(machine, watch=hooked(latency_steps=20)).run(WINDOW)
    profile = training.hook.profile if training.hook else None
    assert profile is not None
    parts = [row.forward_ms or 0.0 for row in profile.modules if row.depth == 1]
    whole = profile.modules[0].forward_ms or 0.0
    is_right = None if machine.is_quick else 0.7 < sum(parts) / whole < 1.1
    return Seen(is_right, f"children {sum(parts):.3f} ms of {whole:.3f} ms: {sum(parts) / whole:.3f}")


def check_rates(machine: Machine, precision: str) -> Seen:
    """Hold throughput and MFU against FLOPs on paper over times by events."""
    tracker = MemoryTracker()
    peak = peak_for(machine.device, getattr(torch, precision)) if machine.is_cuda else None
    given = peak.flops_per_s if peak else 1e12
    watch = hooked(to=tracker, log_every_n_steps=10, peak_flops=given)
    watched = Training(machine, precision=precision, watch=watch).run(3 * WINDOW)
    plain = Training(machine, precision=precision).run(WINDOW)
    numbers = next(values for _, values in reversed(tracker.scalars) if "perf/tflops_per_sec" in values)
    ms = statistics.median(plain.step_ms[WINDOW // 2 :])
    rate = watched.net.step_flops(machine.rows) / ms * 1e3
    ours, mfu = numbers["perf/tflops_per_sec"], numbers["perf/mfu_pct"]
    text = f"ours {ours:.2f} TFLOP/s, by events {rate / 1e12:.2f}; MFU {mfu:.1f} % of {given / 1e12:.0f} TFLOP/s"
    is_right = None if machine.is_quick else 0.8 < 1e12 * ours / rate < 1.2 and 0 < mfu <= 102
    return Seen(is_right, text + ("" if peak else " (taken)"), {"ours": ours, "events": rate / 1e12, "mfu %": mfu})


def check_peak(machine: Machine, precision: str) -> Seen:
    """Hold the table's peak against the fastest product."""
    machine.needs_cuda()
    name, dtype = torch.cuda.get_device_name(machine.device), getattr(torch, precision)
    known, (measured, how) = peak_in_table(name, dtype), measured_peak(machine.device, dtype)
    if known is None:
        raise Skip(f"no {precision} for {name!r} in the table; measured {measured / 1e12:.1f} TFLOP/s")
    reached = measured / known.flops_per_s
    text = f"{name}: {measured / 1e12:.1f} of {known.flops_per_s / 1e12:.1f} TFLOP/s: {100 * reached:.0f} % ({how})"
    return Seen(0.4 < reached <= 1.03, text, {"measured": measured, "table": known.flops_per_s})


def check_bandwidth(machine: Machine) -> Seen:
    """Hold the table's memory bandwidth against a large addition, and our bytes against its own."""
    elements = 1 << (16 if machine.is_quick else 28)
    left, right = (torch.ones(elements, device=machine.device) for _ in range(2))
    moved = BytesCountAnalysis(torch.add, (left, right)).total()
    times: list[float] = []
    for _ in range(10):
        with timed(machine, times):
            torch.add(left, right)
    rate, on_paper = moved / min(times) * 1e3, 3 * 4 * elements
    known = peak_in_table(torch.cuda.get_device_name(machine.device), "bfloat16") if machine.is_cuda else None
    text, is_right = f"{rate / 1e9:.0f} GB/s", moved == on_paper
    if known is not None and known.bytes_per_s is not None:
        mbu = rate / known.bytes_per_s
        text += f" of {known.bytes_per_s / 1e9:.0f}: MBU {100 * mbu:.0f} %"
        is_right &= 0.5 < mbu <= 1.03
    return Seen(is_right, text, {"bytes": moved, "bytes on paper": on_paper, "bytes/s": rate})


# --- What we cost -----------------------------------------------------------------------------------------------------


def check_memory(machine: Machine) -> Seen:
    """Hold the most memory of a training with us against one without."""
    machine.needs_cuda()
    most = []
    for watch in (None, hooked()):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(machine.device)
        (Training(machine, watch=watch) if watch else Training(machine)).run(WINDOW)
        most.append(torch.cuda.max_memory_allocated(machine.device))
    return Seen(most[1] <= 1.01 * most[0], f"{most[1] / 2**20:.1f} MiB, without us {most[0] / 2**20:.1f}")


def check_booking(machine: Machine) -> Seen:
    """Time known steps with us and without, which take turns."""
    with hooked()(*_pair(with_us := Training(machine))):
        without = Training(machine)
        for _ in range(WINDOW):
            with_us.step()
        taken: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(200 if machine.is_quick else 600):
            machine.synchronize()
            begin = time.perf_counter()
            (with_us if turn % 2 else without).step()
            taken[bool(turn % 2)].append(1e6 * (time.perf_counter() - begin))
            machine.synchronize()
    ours, theirs = statistics.median(taken[True]), statistics.median(taken[False])
    is_right = None if machine.is_quick else ours - theirs < max(30, 0.01 * theirs)
    text = f"the Python of a step {ours:.0f} us, without us {theirs:.0f} us: {ours - theirs:+.0f} us"
    return Seen(is_right, text, {"with us": ours, "without": theirs})


def _pair(training: Training) -> tuple[Any, Any]:
    return training.called, training.optimizer


def check_no_waiting(machine: Machine) -> Seen:
    """Make known steps while PyTorch raises at whatever waits for the device."""
    machine.needs_cuda()
    training = Training(machine)
    with hooked()(*_pair(training)):
        for _ in range(WINDOW):
            training.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(30):
                training.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Seen(True, "30 booked steps, none of which waits")


def check_users_profiler(machine: Machine) -> Seen:
    """Have the user profile a step under our hook: all kernels are theirs, as many as without us."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if machine.is_cuda else []
    found: list[tuple[int, int]] = []
    for watch in (None, hooked()):
        training = Training(machine, watch=watch) if watch else Training(machine)
        with training.watch(*_pair(training)) as hook:
            for _ in range(WINDOW):
                training.step()
            with torch.profiler.profile(activities=activities) as profiler:
                training.step()
                machine.synchronize()
            training.step()
        events = list(profiler.events())
        kernels = sum(event.device_type != torch.autograd.DeviceType.CPU for event in events)
        found.append((sum(event.name.startswith("aten::") for event in events), kernels))
    is_whole = hook.metrics()["compute/flops_total"] == (WINDOW + 2) * training.net.step_flops(machine.rows)
    text = f"operators, kernels: {found[1]}, without us {found[0]}; the total is {'right' if is_whole else 'WRONG'}"
    return Seen(found[0] == found[1] and is_whole and (found[0][1] > 0) == machine.is_cuda, text)


# --- All of them ------------------------------------------------------------------------------------------------------


def checks(machine: Machine) -> Iterator[tuple[str, Check]]:
    """Yield names and checks; those that tell most come first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = list(operator_cases(machine.device, torch.bfloat16))
    for case in cases:
        yield f"count: {case.name}", functools.partial(check_operator, machine, case)
    modes = ("eager", "default") if machine.is_quick else MODES
    for mode in modes:
        for precision in PRECISIONS:
            name = f"{mode}, {precision}"
            yield f"training: {name}", functools.partial(check_training, machine, mode, precision)
    for mode in modes[:3]:
        for precision in PRECISIONS:
            yield f"bit by bit: {mode}, {precision}", functools.partial(check_identity, machine, mode, precision)
    yield "the user's profiler", functools.partial(check_users_profiler, machine)
    yield "no step waits", functools.partial(check_no_waiting, machine)
    yield "a step captured in a CUDA graph", functools.partial(check_graph_capture, machine)
    for mode in modes[:3]:
        yield f"step time: {mode}", functools.partial(check_step_time, machine, mode)
    yield "times of modules add up", functools.partial(check_modules_add_up, machine)
    for precision in PRECISIONS:
        yield f"rate and MFU: {precision}", functools.partial(check_rates, machine, precision)
        yield f"peak: {precision}", functools.partial(check_peak, machine, precision)
    yield "bandwidth and MBU", functools.partial(check_bandwidth, machine)
    yield "memory", functools.partial(check_memory, machine)
    yield "booking a step", functools.partial(check_booking, machine)


def line_of(name: str, check: Check, *, is_late: bool = False) -> Line:
    """Make a check, whatever happens in it."""
    begin = time.perf_counter()
    try:
        if is_late:
            raise Skip("no time left")
        seen = check()
        status = {True: "right", False: "WRONG", None: "seen"}[seen.is_right]
        text, figures = seen.text, seen.figures
    except Skip as reason:
        status, text, figures = "skipped", str(reason), {}
    except Exception as error:  # noqa: BLE001 - one failing check is one line
        status, text, figures = (
            "WRONG",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            {},
        )
    return Line(name, status, text, round(time.perf_counter() - begin, 2), figures)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes; times are not judged")
    parser.add_argument("--seconds", type=float, default=450, help="begin no check after so many")
    parser.add_argument("--only", default="", help="checks with this text in their names")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    options = parser.parse_args(arguments)
    machine = Machine(torch.device(options.device), options.quick)
    if machine.is_cuda and not torch.cuda.is_available():
        print("no CUDA device: skipped")
        return 0
    begin = time.perf_counter()
    print(environment(), torch.cuda.get_device_name(machine.device) if machine.is_cuda else "", flush=True)
    lines = []
    for name, check in checks(machine):
        if options.only in name:
            lines.append(line_of(name, check, is_late=time.perf_counter() - begin > options.seconds))
            print(f"{lines[-1].status:8}{name}: {lines[-1].text}", flush=True)
    rows = [(line.name, line.status, f"{line.seconds:.1f}", line.text) for line in lines]
    print("\n" + markdown(("check", "", "s", "what was seen"), rows))
    record = {"environment": environment(), "device": str(machine.device), "lines": [asdict(line) for line in lines]}
    options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return int(any(line.status == "WRONG" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
