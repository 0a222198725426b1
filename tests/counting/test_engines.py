"""Which engine counts, and what both say: `engine=...` and `verify()`."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn, ones

from flopcallback import ActivationCountAnalysis, BytesCountAnalysis, FlopCountAnalysis, OperatorAnalysis
from flopcallback.counting.verification import Difference
from flopcallback.formulas import registry
from flopcallback.formulas.registry import COUNTED, Counted, Family

pytestmark = pytest.mark.usefixtures("no_tracing_state_left")

ANALYSES = [OperatorAnalysis, FlopCountAnalysis, ActivationCountAnalysis, BytesCountAnalysis]


@pytest.mark.parametrize("analysis", ANALYSES)
class TestAskingForAnEngine:
    @pytest.mark.parametrize(("asked", "taken"), [("auto", "trace"), ("trace", "trace"), ("dispatch", "dispatch")])
    def test_takes_it(self, analysis, asked, taken, x):
        one = analysis(nn.Linear(3, 5), x, engine=asked)
        assert one.engine == taken
        assert one.engine_reason == ("asked for with engine='dispatch'" if asked == "dispatch" else "")

    @pytest.mark.parametrize("engine", ["fx", "", None])
    def test_that_does_not_exist_is_an_error(self, analysis, engine, x):
        with pytest.raises(ValueError, match=f"engine is {engine!r}, expected one of 'auto', 'trace', 'dispatch'"):
            analysis(nn.Linear(3, 5), x, engine=engine)

    def test_that_sees_no_data_flow_does_not_prune(self, analysis, x):
        with pytest.raises(ValueError, match="prune=True needs to know what reaches the output"):
            analysis(nn.Linear(3, 5), x, engine="dispatch", prune=True)


class TestTheTracerAlone:
    def test_says_why_it_cannot_and_what_can_when_that_is_known_before(self):
        flops = FlopCountAnalysis(torch.mm, (torch.eye(3).to_sparse(), ones(3, 5)), engine="trace")
        with pytest.raises(RuntimeError, match=r"loses operators on sparse tensors; the dispatcher can.*engine='auto'"):
            flops.total()

    def test_says_why_it_cannot_when_it_stops(self, x):
        product = torch.compile(lambda a, b: a @ b, backend="eager")
        flops = FlopCountAnalysis(lambda x: product(x, ones(3, 5)), x, engine="trace")
        with pytest.raises(RuntimeError, match=r"the tracer stopped with .*the dispatcher can"):
            flops.total()

    @pytest.mark.parametrize("engine", ["auto", "trace", "dispatch"])
    def test_shows_an_error_of_the_model_as_it_is(self, model_of, x, engine):
        def forward(self, x):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            FlopCountAnalysis(model_of(forward), x, engine=engine).total()


ENCODER_LAYER = 2 * 7 * (4 * 6 * 6 + 2 * 7 * 6 + 2 * 6 * 11)  # projections, scores and values, two linear layers


class TestTheDispatcherAlone:
    def test_counts_by_module_what_the_tracer_counts(self, x):
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
        assert FlopCountAnalysis(model, x, engine="dispatch").by_module() == {"": 100, "0": 30, "1": 0, "2": 70}

    def test_keeps_the_modules_apart_that_a_fast_path_would_fuse(self):
        layer = nn.TransformerEncoderLayer(6, 2, 11, batch_first=True).eval()
        with torch.no_grad():
            flops = FlopCountAnalysis(layer, ones(2, 7, 6), engine="dispatch").hardware_flops()
        assert flops[""] == 2 * ENCODER_LAYER
        assert flops["linear1"] == flops["linear2"] == 2 * (2 * 7 * 6 * 11)
        assert torch.backends.mha.get_fastpath_enabled()

    def test_leaves_the_fast_path_as_found_after_an_error(self, model_of, x):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with pytest.raises(RuntimeError):
                FlopCountAnalysis(lambda x: x @ x, x, engine="dispatch").total()
            assert not torch.backends.mha.get_fastpath_enabled()
        finally:
            torch.backends.mha.set_fastpath_enabled(True)

    def test_leaves_the_model_as_found(self):
        norm = nn.BatchNorm1d(3)
        FlopCountAnalysis(norm, ones(2, 3), engine="dispatch").total()
        assert norm.num_batches_tracked == 0
        assert not norm.running_mean.any()


class Branches(nn.Module):
    """All families of FLOPs, and Fourier transforms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose1d(6, 6, 3, groups=2, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.head = nn.Bilinear(10, 6, 3)

    def forward(self, x):
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        attended, _ = self.attention(x, x, x, need_weights=False)
        y, _ = self.lstm(attended)
        spectrum = torch.fft.rfft2(y)
        return self.head(y, x), spectrum, torch.outer(y[0, 0], y[0, 1]), torch.einsum("bi,bj->bij", y[:, 0], y[:, 1])


def attend(q):
    return F.scaled_dot_product_attention(q, q, q)


class TestVerifying:
    @pytest.mark.parametrize("engine", ["auto", "trace", "dispatch"])
    @pytest.mark.parametrize("training", [True, False])
    def test_gives_nothing_where_both_engines_agree(self, engine, training):
        model, x = Branches().train(training), ones(2, 7, 6)
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.verify() == ()
        assert flops.hardware_flops()["conv"] == 2 * (2 * 7 * 6 * 3 * 3)
        assert flops.verify() == ()

    @pytest.mark.parametrize(
        ("family", "operator", "call", "count"),
        [
            ("convolution", "aten::_convolution", lambda: F.conv1d(ones(2, 3, 5), ones(7, 3, 5)), 2 * 2 * 7 * 3 * 5),
            ("matmul", "aten::linear", lambda: F.linear(ones(2, 3), ones(5, 3)), 2 * 2 * 3 * 5),
            ("attention", "aten::scaled_dot_product_attention", lambda: attend(ones(1, 2, 3, 5)), 2 * 2 * 3 * 3 * 10),
            ("recurrent", "aten::gru", lambda: nn.GRU(3, 5)(ones(2, 1, 3)), 2 * 2 * 15 * (3 + 5)),
            ("spectral", "aten::fft_fft", lambda: torch.fft.fft(ones(8, dtype=torch.cfloat)), 5 * 8 * 3),
        ],
    )
    def test_compares_each_family(self, family, operator, call, count, monkeypatch):
        row = registry.lookup(operator)
        assert row.family.value == family
        flops = FlopCountAnalysis(call)
        assert flops.verify() == ()
        # The tracer's operator, which the dispatcher does not meet, says twice what it is.
        twice = Counted(lambda call: row.formula(call) + row.formula(call), row.family)
        monkeypatch.setitem(registry._BUILT_IN, operator, twice)
        found = {difference.family: (difference.trace, difference.dispatch) for difference in flops.verify()}
        labels = {name: trace - dispatch for name, (trace, dispatch) in found.items()}
        assert sum(labels.values()) == count
        assert found[family][0] == 2 * count

    def test_is_not_led_astray_by_other_names_for_the_same_products(self):
        """Unfused, attention and a cell are matrix products to the dispatcher."""
        q = ones(
            2, 3, 7, 5, dtype=torch.float64, requires_grad=True
        )  # no fused kernel for a mask that needs a gradient
        mask = torch.zeros(7, 7, dtype=torch.float64, requires_grad=True)
        cell, step = nn.LSTMCell(3, 5), ones(2, 3)

        def forward():
            return F.scaled_dot_product_attention(q, q, q, mask), cell(step)

        flops = FlopCountAnalysis(forward)
        assert flops.by_operator()["scaled_dot_product_attention"] == 2 * 3 * 7 * 7 * 2 * 5
        assert "bmm" in FlopCountAnalysis(forward, engine="dispatch").by_operator()
        assert flops.verify() == ()

    def test_names_module_and_family_and_both_counts_of_a_difference(self, model_of, x, monkeypatch):
        def twice(call):
            return COUNTED[Family.MATMUL]["aten::mm"](call) + COUNTED[Family.MATMUL]["aten::mm"](call)

        model = model_of(lambda self, x: self.inner(x), inner=nn.Linear(3, 5, bias=False))
        # The tracer sees `linear`, the dispatcher `mm`, whose formula is now wrong.
        monkeypatch.setitem(registry._BUILT_IN, "aten::mm", Counted(twice, Family.MATMUL))
        flops = FlopCountAnalysis(model, x)
        assert flops.verify() == (
            Difference("", "matmul", 2 * 30, 4 * 30),
            Difference("inner", "matmul", 2 * 30, 4 * 30),
        )
        assert str(flops.verify()[1]) == "inner, matmul: 60 traced, 120 dispatched (linear, mm)"
        assert str(flops.verify()[0]).startswith("(model), matmul")

    def test_says_why_where_one_engine_alone_can_count(self):
        flops = FlopCountAnalysis(torch.mm, (torch.eye(3).to_sparse(), ones(3, 5)))
        assert flops.total() == 3 * 5
        with pytest.raises(RuntimeError, match="loses operators on sparse tensors"):
            flops.verify()

    @pytest.mark.parametrize("engines", [("trace", "observer"), ("observer", "trace"), ["dispatch", "observer"]])
    @pytest.mark.parametrize("training", [True, False])
    def test_any_two_engines_can_be_named(self, engines, training):
        flops = FlopCountAnalysis(Branches().train(training), ones(2, 7, 6))
        assert flops.verify(engines=engines) == ()

    def test_a_difference_has_the_counts_of_the_two_engines_that_were_named(self, model_of, x, monkeypatch):
        def twice(call):
            return COUNTED[Family.MATMUL]["aten::addmm"](call) + COUNTED[Family.MATMUL]["aten::addmm"](call)

        model = model_of(lambda self, x: self.inner(x), inner=nn.Linear(3, 5))
        monkeypatch.setitem(registry._BUILT_IN, "aten::addmm", Counted(twice, Family.MATMUL))
        flops = FlopCountAnalysis(model, x)
        both = [Difference(module, "matmul", trace=2 * 30, observer=4 * 30) for module in ("", "inner")]
        assert [*flops.verify(engines=("observer", "trace"))] == both
        inner = flops.verify(engines=("trace", "observer"))[1]
        assert inner.counts == {"trace": 60, "observer": 120}
        assert inner.differing_operators == ("addmm", "linear")
        assert str(inner) == "inner, matmul: 60 traced, 120 observed (addmm, linear)"
        assert flops.verify(engines=("observer", "dispatch")) == ()  # the formula is wrong for both

    @pytest.mark.parametrize("engines", ["trace", ("trace",), ("trace", "trace"), ("trace", "auto"), ("trace", 7)])
    def test_other_names_than_two_engines_are_refused(self, x, engines):
        expected = (
            f"FlopCountAnalysis.verify: engines is {engines!r}, expected two different ones of 'trace', 'dispatch', "
        )
        with pytest.raises(ValueError, match=re.escape(expected)):
            FlopCountAnalysis(nn.Linear(3, 5), x).verify(engines=engines)

    def test_says_why_where_the_observer_cannot_count(self, x):
        with torch.profiler.profile(), pytest.raises(RuntimeError, match=r"engine='observer' cannot count this call: "):
            FlopCountAnalysis(nn.Linear(3, 5), x).verify(engines=("trace", "observer"))

    def test_prunes_nothing(self, model_of, x):
        model = model_of(lambda self, x: (self.unused(x), x)[1], unused=nn.Linear(3, 5))
        flops = FlopCountAnalysis(model, x, prune=True)
        assert flops.total() == 0
        assert flops.verify() == ()


class Scaled(torch.Tensor):
    """A tensor with another inside, as quantized weights are: its operators are seen whole, on its own shape."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrapped(value):
            return value.inner * 2 if isinstance(value, Scaled) else value

        return func(*map(unwrapped, args), **(kwargs or {}))


@pytest.mark.parametrize("engine", ["auto", "dispatch"])
class TestRuns:
    def test_under_inference_mode_are_counted_whoever_made_the_weights(self, x, engine):
        outside = nn.Linear(3, 5)
        with torch.inference_mode():
            model = nn.Sequential(outside, nn.Linear(5, 7))
            flops = FlopCountAnalysis(model, x.clone(), engine=engine)
            assert flops.by_module() == {"": 30 + 70, "0": 30, "1": 70}
            assert flops.verify() == ()

    def test_with_weights_of_a_subclass_with_a_dispatch_of_its_own(self, model_of, x, engine):
        model = model_of(lambda self, x: F.linear(self.fc(x), Scaled(ones(7, 5))), fc=nn.Linear(3, 5))
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.by_module() == {"": 30 + 70, "fc": 30}

    def test_under_a_fake_mode_of_the_users(self, engine):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            assert FlopCountAnalysis(nn.Linear(3, 5), ones(2, 3), engine=engine).total() == 30
