"""A call by the profiler's records: what ran is counted once, by its own shapes, and what is not known says so."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import Cost, FlopCountAnalysis, register_formula, unregister_formula
from flopcallback.formulas.op_call import UNSEEN, OpCall, Value
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.marks import Marks
from flopcallback.tracing.observer import NotRecorded, StepRecorder
from flopcallback.tracing.recorded_values import outputs_of

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2


def count(model, *inputs, **options):
    return FlopCountAnalysis(model, inputs, engine="observer", fma=2, **options)


def test_layers_have_their_products_by_module_and_by_operator():
    net = nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))
    analysis = count(net, torch.ones(BATCH, WIDE))
    first, second = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT
    assert analysis.by_module() == {"": first + second, "0": first, "1": 0, "2": second}
    assert analysis.by_operator() == {"addmm": first + second}
    assert analysis.engine == "observer"
    assert analysis.module_calls() == {"": 1, "0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_convolution_counts_once_whatever_kernels_it_is_made_of(dtype):
    """oneDNN has none for float64, whose kernel is another one."""
    net = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, dtype=dtype)
    # Rows (11 + 2 - 3) // 2 + 1 = 6, columns 13 - 2 + 1 = 12.
    analysis = count(net, torch.ones(BATCH, 4, 11, 13, dtype=dtype))
    assert analysis.by_operator() == {"conv": 2 * BATCH * 6 * 6 * 12 * (4 // 2) * 3 * 2}


def test_a_transposed_convolution_spreads_its_input():
    net = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)
    assert count(net, torch.ones(BATCH, 4, 5, 7)).total() == 2 * BATCH * 4 * 5 * 7 * 6 * 3 * 3


def test_padding_that_is_a_word_is_what_the_records_inside_say():
    net = nn.Conv1d(4, 6, 3, padding="same")
    assert count(net, torch.ones(BATCH, 4, 11)).total() == 2 * BATCH * 6 * 11 * 4 * 3


def test_an_equation_is_what_its_products_say():
    def multiply(x, y):
        return torch.einsum("bij,bjk->bik", x, y)

    assert count(multiply, torch.ones(2, 3, 5), torch.ones(2, 5, 7)).by_operator() == {"bmm": 2 * 2 * 3 * 5 * 7}


def test_an_lstm_has_its_matrices_at_each_step():
    analysis = count(nn.LSTM(WIDE, INNER), torch.ones(11, BATCH, WIDE))
    assert analysis.by_operator() == {"mkldnn_rnn_layer": 2 * 11 * BATCH * 4 * INNER * (WIDE + INNER)}


def test_attention_is_two_products():
    def attend(x):
        return F.scaled_dot_product_attention(x, x, x)

    assert count(attend, torch.ones(2, 3, 5, 7)).total() == 2 * 2 * (2 * 3 * 5 * 5 * 7)


def test_elementwise_work_has_the_shapes_of_its_results():
    """A record has none; these follow from the arguments, in meta tensors."""

    def add(x, y):
        return F.gelu(x + y)

    assert count(add, torch.ones(BATCH, 1), torch.ones(1, WIDE), elementwise=True).total() == 2 * BATCH * WIDE


def test_a_norm_counts_as_itself_and_not_as_what_it_is_made_of():
    norm, x = nn.RMSNorm(WIDE), torch.ones(BATCH, WIDE)
    assert count(norm, x).total() == FlopCountAnalysis(norm, x, engine="trace").total() > 0


# --- What stands for other tensors ------------------------------------------------------------------------------------


def test_under_vmap_all_examples_count_and_not_the_one_that_it_shows():
    def each(x):
        return torch.vmap(lambda row: torch.ones(OUT, WIDE) @ row)(x)

    assert count(each, torch.ones(BATCH, WIDE, INNER)).total() == 2 * BATCH * OUT * WIDE * INNER


def test_gradients_by_a_transform_count():
    def gradients(x, w):
        return torch.vmap(torch.func.grad(lambda w, x: (x @ w).sum()), (None, 0))(w, x)

    product = 2 * BATCH * INNER * WIDE * OUT  # the forward, and the gradient of each example
    assert count(gradients, torch.ones(BATCH, INNER, WIDE), torch.ones(WIDE, OUT)).total() == 2 * product


def test_forward_mode_multiplies_the_value_and_the_derivative_of_each_factor():
    with torch.autograd.forward_ad.dual_level():
        pair = [torch.autograd.forward_ad.make_dual(torch.ones(*s), torch.ones(*s)) for s in ((3, 5), (5, 7))]
        observer = StepRecorder(ModuleNames({}), reads_all=True)
        with observer.watching():
            torch.mm(*pair)
    calls = observer.whole_run().record.calls
    assert [call.operator for call in calls if call.operator == "aten::mm"] == 3 * ["aten::mm"]


class Wrapper(torch.Tensor):
    """A tensor that holds half of its rows; its operators run on these."""

    @staticmethod
    def __new__(cls, half):
        return torch.Tensor._make_wrapper_subclass(cls, (2 * half.shape[0], *half.shape[1:]), dtype=half.dtype)

    def __init__(self, half):
        self.half = half

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*[arg.half if isinstance(arg, Wrapper) else arg for arg in args], **(kwargs or {}))


def test_a_sharded_tensor_counts_as_the_share_that_is_here():
    observer = StepRecorder(ModuleNames({}), reads_all=True)
    with observer.watching():
        torch.mm(Wrapper(torch.ones(BATCH, WIDE)), torch.ones(WIDE, OUT))
    (call,) = [call for call in observer.whole_run().record.calls if call.operator == "aten::mm"]
    assert [value.shape for value in call.inputs] == [(BATCH, WIDE), (WIDE, OUT)]


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDE, OUT)

    def forward(self, adjacency, x):
        return adjacency @ self.layer(x)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse invariant")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_a_sparse_matrix_that_a_module_was_given_takes_part_by_its_elements(layout):
    dense = torch.ones(INNER, INNER).tril()
    analysis = count(Graph(), dense.to_sparse(layout=layout), torch.ones(INNER, WIDE))
    stored, layer = INNER * (INNER + 1) // 2, 2 * INNER * WIDE * OUT
    assert analysis.by_module() == {"": layer + 2 * stored * OUT, "layer": layer}


def test_one_that_nobody_saw_is_unknown_and_so_is_the_dense_product_that_lies_inside(caplog):
    def multiply(x):
        return torch.sparse.mm(torch.eye(BATCH).to_sparse(), x)

    analysis = count(multiply, torch.ones(BATCH, WIDE))
    assert analysis.total() == 0
    assert analysis.unknown_ops() == {"aten::_sparse_addmm": 1}
    assert analysis.is_lower_bound
    assert "lower bound" in caplog.text


class Propagation(nn.Module):
    def forward(self, graph, x):
        return torch.sparse.mm(graph, x)


def test_sparse_matrices_of_a_moment_are_told_apart():
    """The second may lie in memory where the first one was."""
    near, far = Propagation(), Propagation()

    def forward(x):
        x = near(torch.eye(6).to_sparse(), x)
        return far(torch.ones(6, 6).to_sparse(), x)

    with torch.no_grad():
        analysis = count(forward, torch.ones(6, WIDE))
        assert analysis.by_module() == {"": 2 * 42 * WIDE, "near": 2 * 6 * WIDE, "far": 2 * 36 * WIDE}
    assert not analysis.is_lower_bound


def test_one_that_was_written_to_has_no_known_elements():
    propagate = Propagation()

    def forward(x):
        graph = torch.eye(6).to_sparse()
        x = propagate(graph, x)
        graph.add_(torch.ones(6, 6).to_sparse())
        return torch.sparse.mm(graph, x)

    with torch.no_grad():
        analysis = count(forward, torch.ones(6, WIDE))
        assert analysis.total() == 0
        assert analysis.is_lower_bound


def test_a_sparse_matrix_that_no_module_has_is_known_if_the_call_was_given_it():
    analysis = count(torch.mm, torch.eye(6).to_sparse(), torch.ones(6, WIDE))
    assert analysis.by_operator() == {"mm": 2 * 6 * WIDE}
    assert not analysis.is_lower_bound


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_count_by_the_rows_that_they_have():
    nested = torch.nested.nested_tensor([torch.ones(2, WIDE), torch.ones(4, WIDE)])
    assert count(nn.Linear(WIDE, OUT), nested).total() == 2 * (2 + 4) * WIDE * OUT


# --- What did not run, and what nobody knows --------------------------------------------------------------------------


def test_an_operator_that_raised_and_was_caught_did_not_run():
    def recover(x):
        with contextlib.suppress(RuntimeError):
            F.linear(x, torch.ones(OUT, WIDE + 1))
        return x @ torch.ones(WIDE, OUT)

    assert count(recover, torch.ones(BATCH, WIDE)).total() == 2 * BATCH * WIDE * OUT


def test_results_that_nobody_saw_are_an_error_and_never_nothing():
    for ask in (len, list, bool, lambda outputs: outputs[0]):
        with pytest.raises(ValueError, match="not seen"):
            ask(UNSEEN)
    assert OpCall("aten::mm", (), UNSEEN).components()[0].outputs is UNSEEN


def test_results_follow_from_the_arguments_or_are_unseen():
    tensor = Value((BATCH, WIDE), torch.float32, torch.device("cpu"))
    (total,) = outputs_of("aten::sum", (tensor, Value(constant=[1]), Value(constant=False), Value()))
    assert total.shape == (BATCH,)
    assert outputs_of("aten::_foreach_add_", (Value(items=(tensor,)), Value(constant=1.0))) == ()
    assert outputs_of("nobody::knows", (tensor,)) is UNSEEN


@pytest.fixture
def library():
    with torch.library._scoped_library("flopcallback_observed", "DEF") as defined:
        defined.define("twice(Tensor x, Tensor w) -> Tensor")
        defined.impl("twice", lambda x, w: (x @ w) + (x @ w), "CPU")
        defined.define("opaque(Tensor x) -> Tensor")
        defined.impl("opaque", lambda x: torch.from_numpy(x.numpy() + 1), "CPU")
        yield torch.ops.flopcallback_observed


def test_an_operator_of_ones_own_counts_by_what_runs_inside(library):
    assert count(library.twice, torch.ones(BATCH, WIDE), torch.ones(WIDE, OUT)).total() == 2 * (2 * BATCH * WIDE * OUT)


def test_or_by_its_own_formula_instead(library):
    register_formula("flopcallback_observed::twice", lambda call: Cost(fma=call.inputs[0].numel))
    try:
        analysis = count(library.twice, torch.ones(BATCH, WIDE), torch.ones(WIDE, OUT))
        assert analysis.by_operator() == {"twice": 2 * BATCH * WIDE}
    finally:
        unregister_formula("flopcallback_observed::twice")


def test_one_that_leaves_pytorch_makes_a_lower_bound(library):
    analysis = count(library.opaque, torch.ones(BATCH, WIDE))
    assert analysis.unknown_ops() == {"flopcallback_observed::opaque": 1}
    assert analysis.is_lower_bound


# --- Nothing stays, nothing changes -----------------------------------------------------------------------------------


def test_the_model_and_its_input_are_left_as_they_were():
    net, x = nn.Sequential(nn.BatchNorm1d(WIDE), nn.Dropout()), torch.ones(BATCH, WIDE)
    net.append(Writer())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    count(net, x).total()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, torch.ones(BATCH, WIDE))
    assert "forward" not in vars(net[0])


class Writer(nn.Module):
    """Writes to its parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDE))

    def forward(self, x):
        with torch.no_grad():
            self.weight.add_(1)
        return x * self.weight


def test_an_error_of_the_calls_own_is_raised_and_the_profiler_is_off_again():
    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count(fail, torch.ones(1)).total()
    assert not torch.autograd._profiler_enabled()
    assert count(nn.Linear(WIDE, OUT), torch.ones(BATCH, WIDE)).total() == 2 * BATCH * WIDE * OUT


def test_garbage_collection_is_on_or_off_as_before():
    gc.disable()
    try:
        count(nn.Linear(WIDE, OUT), torch.ones(BATCH, WIDE)).total()
        assert not gc.isenabled()
    finally:
        gc.enable()
    count(nn.Linear(WIDE, OUT), torch.ones(BATCH, WIDE)).total()
    assert gc.isenabled()


def test_a_step_whose_profiler_is_not_to_be_had_goes_on_unobserved(monkeypatch):
    model = nn.Linear(WIDE, OUT)
    observer = StepRecorder(ModuleNames({"": model}))
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu) as theirs, observer.watching(), observer.on():
        model(torch.ones(BATCH, WIDE))
    assert any(event.name == "aten::addmm" for event in theirs.events())
    assert isinstance(observer.failure, NotRecorded)
    assert "the user's profiler is at work" in str(observer.failure)
    assert not any(run.record.calls for run in observer.runs().values())


def test_a_failure_in_reading_does_not_reach_the_step(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("flopcallback.tracing.observer.Reading", fail)
    observer = StepRecorder(ModuleNames({"": nn.Linear(WIDE, OUT)}))
    with observer.watching():
        pass
    assert isinstance(observer.failure, ZeroDivisionError)


def test_observers_read_their_own_marks_alone():
    first, second = Marks(), Marks()
    assert first.number != second.number
    assert Marks.read("aten::mm") is None
    assert Marks.read("flopcallback:3:backward:forward+") == (3, "backward", "forward+")


def test_a_model_may_run_in_two_observers_threads_one_after_the_other():
    """The thread that watches is the one whose records count, whichever it is."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(count(nn.Linear(WIDE, OUT), torch.ones(BATCH, WIDE)).total()))
    thread.start()
    thread.join()
    assert seen == [2 * BATCH * WIDE * OUT]


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count(nn.Linear(WIDE, OUT), torch.ones(BATCH, WIDE)).total()
