"""What has to hold for every model of the zoo: engines and hooks agree, sums add up, the forward is undisturbed."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from flopcallback import FlopCountAnalysis
from flopcallback.formulas.registry import Counted, Family, lookup
from flopcallback.modules.names import ModuleNames, find_modules
from flopcallback.tracing.observer import observe_records
from flopcallback.tracing.record import Operation
from flopcallback.tracing.run import filtered_warnings, observe

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


@dataclass(frozen=True)
class Mode:
    """How a model is called: in training or not, and within which context."""

    training: bool
    context: Callable[[], AbstractContextManager[Any]]


MODES = {
    "train": Mode(True, torch.enable_grad),
    "eval": Mode(False, torch.enable_grad),
    "no-grad": Mode(False, torch.no_grad),
    "inference": Mode(False, torch.inference_mode),
    "autocast": Mode(True, lambda: torch.autocast("cpu", torch.bfloat16)),
}


@dataclass
class Specimen:
    """A call to be counted, in one of the modes; every run starts from the same state, inputs and random numbers."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    context: Callable[[], AbstractContextManager[Any]]

    @cached_property
    def model(self) -> nn.Module | None:
        """The module whose state a run may change; None where only a function is called."""
        model = getattr(self.call, "__self__", self.call)
        return model if isinstance(model, nn.Module) else None

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers, copied."""
        return copy.deepcopy(self.model.state_dict()) if self.model is not None else {}

    def new_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies: a cache among the inputs is written to."""
        return copy.deepcopy((self.arguments, self.keywords))

    def run(self) -> Any:
        """The plain call."""
        arguments, keywords = self.new_inputs()
        seed_everything()
        with self.context():
            return self.call(*arguments, **keywords)

    def run_in_flight(self, engine: str) -> Any:
        """What the call returns while an engine looks on."""
        arguments, keywords = self.new_inputs()
        names = ModuleNames(find_modules(self.call, arguments))
        seed_everything()
        inputs = arguments, keywords

        def call() -> Any:
            return self.call(*arguments, **keywords)

        with filtered_warnings("no_tracer_warning"), self.context():
            if engine == "observer":
                return observe_records(call, names, inputs)[0]
            return observe(call, names, inputs, engine=engine)[0]

    def analysis(self) -> FlopCountAnalysis:
        """The count of it, not run yet; its results are to be asked for within the context."""
        arguments, keywords = self.new_inputs()
        seed_everything()
        return FlopCountAnalysis(self.call, arguments, keywords)


def seed_everything() -> None:
    """The same random numbers from every source that models draw from."""
    random.seed(7)
    torch.manual_seed(7)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(7)


def check(specimen: Specimen, *, unknown: Collection[str] = (), other_digits: Collection[str] = ()) -> None:
    """Everything that has to hold.

    Args:
        specimen: the call.
        unknown: operators that have no formula; one engine may see what they are made of, and the other not.
        other_digits: engines in whose presence the result may differ in the last digits.
    """
    state = specimen.state()
    flops = specimen.analysis()
    with specimen.context():
        assert flops.total() >= 0
        assert flops.engine == "trace", flops.engine_reason
        found = (*flops.verify(), *flops.verify(engines=("trace", "observer")))
        differences = [str(difference) for difference in found]
    assert same(specimen.state(), state), "the count left something behind"
    assert set(flops.unknown_ops()) <= set(unknown), flops.unknown_reasons()
    assert flops.unknown_ops() or differences == []
    assert sums_that_do_not_add_up(flops) == {}

    with layers_seen_by_hooks(specimen.model) as seen:
        plain = specimen.run()
    hardware = flops.hardware_flops()
    assert {name: hardware[name] for name in seen} == {name: 2 * count for name, count in seen.items()}
    for engine in {"trace", "dispatch", "observer"}.difference(other_digits):
        if specimen.model is not None:
            specimen.model.load_state_dict(state)
        assert same(specimen.run_in_flight(engine), plain), f"{engine} changes what is computed"


def sums_that_do_not_add_up(flops: FlopCountAnalysis) -> dict[str, tuple[int, int]]:
    """Modules whose total is not their own work and their children's: (total, sum)."""
    totals, below, own = flops.by_module(), Counter[str](), _own_flops(flops)
    for name, total in totals.items():
        if name:
            below[name.rpartition(".")[0]] += total
    return {
        name: (total, own[name] + below[name]) for name, total in totals.items() if total != own[name] + below[name]
    }


def _own_flops(flops: FlopCountAnalysis) -> Counter[str]:
    """FLOPs by the module at work alone, straight from the record: nobody's descendants are added."""
    own: Counter[str] = Counter()
    for operation in flops._run().record.operations():
        for inner, row in _counted(operation):
            own[inner.scope.module] += row.formula(inner.call()).flops()
    return own


def _counted(operation: Operation) -> Iterator[tuple[Operation, Counted]]:
    row = lookup(operation.operator)
    if isinstance(row, Counted):
        if row.family is not Family.ELEMENTWISE:
            yield operation, row
    else:
        for inner in operation.body or ():
            yield from _counted(inner)


@contextmanager
def layers_seen_by_hooks(model: nn.Module | None) -> Iterator[Counter[str]]:
    """Multiply-adds of every plain linear and convolutional layer, by a hook on each: an oracle of another kind."""
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, layer in () if model is None else model.named_modules():
            if type(layer) in PLAIN_LAYERS:
                stack.callback(layer.register_forward_hook(_adding_to(seen, name)).remove)
        yield seen


def _adding_to(seen: Counter[str], name: str) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        positions = args[0].numel() if isinstance(layer, TRANSPOSED) else output.numel()
        seen[name] += positions * (layer.in_features if isinstance(layer, nn.Linear) else layer.weight[0].numel())

    return hook


def same(left: Any, right: Any) -> bool:
    """Whether two results hold the same tensors, bit by bit."""
    pairs = list(zip(_tensors(left), _tensors(right), strict=True))
    return all(a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN is equal to NaN here."""
    return torch.nan_to_num(tensor.detach()) if tensor.is_floating_point() else tensor.detach()
