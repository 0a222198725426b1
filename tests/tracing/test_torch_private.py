"""One file names what is private in torch, and any one of these names may be gone, if torch itself does without."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree

import flopcallback
from flopcallback.modules.batches import samples_in
from flopcallback.tracing import torch_private
from flopcallback.tracing.torch_private import ATTRIBUTES, NAMES, RECORDS, TRACER
from flopcallback.training import meter as meter_file
from flopcallback.training.batch_sizes import BatchSizes
from flopcallback.training.failures import Failures
from flopcallback.training.ledger import StepCost
from flopcallback.training.meter import ComputeMeter

HERE = Path(__file__).parent
PACKAGE = Path(flopcallback.__file__).parent

PATHS = [private.path for private in NAMES]
OWNERS = {path.rpartition(".")[0] for path in PATHS}
OWNERS |= {owner.rpartition(".")[0] for owner in OWNERS}
PRIVATE_OWNERS = sorted(owner for owner in OWNERS if "._" in owner)

# A plain call, a backward, or a call under a `TorchDispatchMode` is not possible without these (2.13).
NEEDED_BY_TORCH = {
    "torch._C",
    "torch._C._get_tracing_state",
    "torch.autograd._engine_run_backward",
    "torch.nn.Module._compiled_call_impl",
    "torch.utils._python_dispatch",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._is_in_torch_dispatch_mode",
    "torch.utils._python_dispatch._is_in_non_infra_torch_dispatch_mode",
}

ROWS, INPUTS, OUTPUTS, STEPS = 2, 3, 5, 2
PRODUCTS = ROWS * INPUTS * OUTPUTS
FORWARD = 2 * PRODUCTS  # two for a multiply-add
STEP = FORWARD + 2 * INPUTS * ROWS * OUTPUTS  # and the gradient of the weight; that of the input nobody asks for


@pytest.fixture(scope="module")
def torch_without():
    """A process that tells what is seen in a torch without a name, one after the other."""
    if not hasattr(os, "fork"):
        pytest.skip("children are forked, so that torch is imported once")
    script = [sys.executable, str(HERE / "torch_without.py")]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(path):
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            while not (line := process.stdout.readline()).startswith("{"):  # what flopcallback shows comes before
                assert line, "the process has ended"
            return json.loads(line)

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("path", ["", *PATHS, *PRIVATE_OWNERS])
def test_any_one_name_may_be_gone_that_torch_does_without(torch_without, path):
    seen = torch_without(path)
    assert bool(seen["torch"]) == (path in NEEDED_BY_TORCH), seen
    if seen["torch"]:
        return
    assert "error" not in seen, seen["error"]
    lost = [private for private in NAMES if path and f"{private.path}.".startswith(f"{path}.")]
    assert seen["total"] == PRODUCTS
    assert seen["is_identical"]
    for_tracer = [private.path for private in lost if private.needed_by == TRACER]
    engine, reason = seen["engine"]
    assert engine == ("dispatch" if for_tracer else "trace")
    assert all(name in reason for name in for_tracer)
    numbers = seen["numbers"]
    assert numbers["flops/forward"] == FORWARD
    for_steps = [private.path for private in lost if private.needed_by == RECORDS]
    if for_steps:  # never a number that is called exact
        assert numbers["compute/estimated_pct"] == 100
        assert numbers["compute/flops_total"] == STEPS * 3 * FORWARD
    else:
        assert numbers["compute/estimated_pct"] == 0
        assert numbers["compute/flops_total"] == STEPS * STEP
    if for_steps:
        (text,) = seen["warnings"]
        assert all(name in text for name in ("no whole step could be observed", *for_steps))
    else:
        assert seen["warnings"] == []


def test_a_row_says_what_is_lost_and_comes_once():
    assert len(set(PATHS)) == len(PATHS)
    assert all(private.lost and private.used_by and private.since for private in NAMES)
    assert {private.needed_by for private in NAMES} == {"", TRACER, RECORDS}


def test_this_torch_lacks_nothing():
    assert torch_private.why_no_tracer() == torch_private.why_no_records() == ""


# --- Fallbacks that a small model does not come by --------------------------------------------------------------------


@pytest.fixture
def leaf():
    return torch.ones(2, 3, requires_grad=True)


def test_a_backward_is_noticed_by_the_node_that_runs(monkeypatch, leaf):
    monkeypatch.setattr(torch_private, "_graph_task", None)
    seen = []
    product = leaf * 2
    product.register_hook(lambda grad: seen.append(torch_private.is_backward_running()))
    product.sum().backward()
    assert seen == [True]
    assert not torch_private.is_backward_running()


def test_a_fake_mode_is_found_on_the_stack_of_modes(monkeypatch):
    monkeypatch.setattr(torch_private, "_mode_of", None)
    assert torch_private.fake_mode() is None
    with FakeTensorMode() as mode:
        assert torch_private.fake_mode() is mode


@pytest.mark.parametrize("operator", ["aten::add", "aten::view", "aten::no_such_operator", "no_such::operator"])
def test_schemas_come_from_the_operators_too(monkeypatch, operator):
    schemas = torch_private.schemas_of(operator)
    monkeypatch.setattr(torch_private, "_schemas_of", None)
    # `torch.ops` leaves out what TorchScript alone has, for numbers: `aten::add.int`.
    found = [text for text in schemas if "Tensor" in text]
    assert [text for text in torch_private.schemas_of(operator) if "Tensor" in text] == found


def test_a_view_is_told_by_its_base(leaf):
    class WithoutTheQuestion:
        _base = leaf

    assert torch_private.is_view(WithoutTheQuestion())
    assert torch_private.is_view(leaf.view(3, 2))
    assert not torch_private.is_view(leaf)


STRUCTURES = [1, [], {}, [1, (2, {"a": 3, "b": [4]})], {"a": (), "b": [None]}]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_plain_structures_are_the_same_without_pytree(structure):
    leaves = [leaf for leaf in _pytree.tree_leaves(structure) if leaf is not None]
    assert [leaf for leaf in torch_private._plain_leaves(structure) if leaf is not None] == leaves
    assert torch_private._plain_map(repr, structure) == _pytree.tree_map(repr, structure)


def booked(state=None, *, cost=None):
    """A meter after one step, whose model makes all nodes of the graph: the loss is inside."""
    model = torch.nn.Linear(INPUTS, OUTPUTS)
    x = torch.ones(ROWS, INPUTS)
    meter = ComputeMeter(model, BatchSizes(None, None, samples_in, Failures()))
    meter.load(state or {})
    meter.begin_step((x,), x)
    with meter.counting_nodes():
        loss = model(x).sum()
    loss.backward()
    if cost is None:
        meter.set_counted_forward(FORWARD, torch.device("cpu"), None)
    else:
        meter.set_observed_cost(cost)
    meter.end_step()
    return meter


def test_a_step_without_numbers_of_nodes_is_like_none_that_another_process_observed(monkeypatch):
    state = booked(cost=StepCost(STEP, FORWARD)).state()
    assert booked(state).live_totals()["compute/estimated_pct"] == 0
    monkeypatch.setattr(meter_file, "can_count_nodes", False)
    monkeypatch.setattr(meter_file, "nodes_so_far", lambda: 0)
    totals = booked(state).live_totals()
    assert totals["compute/flops_total"] == 2 * STEP
    assert totals["compute/estimated_pct"] == 50


# --- No other file names what is private ------------------------------------------------------------------------------

# What instances alone have, and what is not in use any more.
OTHERS = {private.path for private in ATTRIBUTES} | {"_qualified_op_name", "_schema", "_target", "_worker"}
PARTS = {part for path in PATHS for part in path.split(".") if part.startswith("_")} | OTHERS

EXEMPT = {
    # A ground that imports no other room; `_schema` is on every operator that it has.
    ("formulas/torch_flop_registry.py", "_schema"),
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_private_text(text):
    return text in PARTS or re.fullmatch(r"torch(\.\w+)*\._\w+(\.\w+)*", text) is not None


def private_names_in(source):
    """What of torch's, or of the thread pools', a file names that is private.

    Chains (`torch._C.x`, `nn.Module._x`) and imports are seen whatever they name. What is in a row of the table is seen
    at the end of any chain but `self`, and as a text, which is what `getattr` and replacements take.
    """
    tree = ast.parse(source)
    roots = {"torch": "torch"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("torch", "concurrent"):
            for alias in node.names:
                roots[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if any(map(is_private, (*node.module.split("."), alias.name))):
                    found.add(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in ("torch", "concurrent"):
                    roots[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                    if any(map(is_private, alias.name.split("."))):
                        found.add(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *parts = ast.unparse(node).split(".")
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if root in roots and all(map(str.isidentifier, parts)) and is_private(node.attr):
                found.add(".".join((roots[root], *parts)))
            elif node.attr in PARTS and not is_own:
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private_text(node.value):
            found.add(node.value)
    return found


def test_no_other_file_names_what_is_private():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        if path.name != "torch_private.py"
        for name in private_names_in(path.read_text(encoding="utf-8"))
    }
    assert found == EXEMPT


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\ntorch._C.f()", "torch._C"),
        ("import torch\ndef f(x: torch._ops.OpOverload): ...", "torch._ops"),
        ("import torch\ntorch.jit._trace.is_tracing()", "torch.jit._trace"),
        (
            "from torch import nn\nnn.Module._replicate_for_data_parallel",
            "torch.nn.Module._replicate_for_data_parallel",
        ),
        ("import torch.autograd.function as f\nf._X", "torch.autograd.function._X"),
        ("from torch._C import _f", "torch._C._f"),
        ("from torch.overrides import _pop_mode", "torch.overrides._pop_mode"),
        ("def f():\n    import torch._dynamo", "torch._dynamo"),
        ("from concurrent.futures.thread import _worker", "concurrent.futures.thread._worker"),
        ("x._is_view()", "_is_view"),
        ("getattr(x, '_is_view')", "_is_view"),
        ("'torch._dynamo' in modules", "torch._dynamo"),
    ],
)
def test_the_check_above_would_see_a_name(source, name):
    assert name in private_names_in(source)


@pytest.mark.parametrize("source", ["self._modules", "torch.x", "from torch.nn import Linear", "sys._getframe(1)"])
def test_the_check_above_sees_private_names_alone(source):
    assert private_names_in(source) == set()
