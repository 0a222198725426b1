"""Counting without computing: meta and fake tensors, of which only shapes are known."""

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flopcallback import FlopCountAnalysis

HERE = re.escape(__file__)
EXPRESSIONS_ARE_KNOWN = hasattr(inspect.currentframe().f_code, "co_positions")  # Python 3.11


# 2026-11, torch 2.13: a fake mode that takes real tensors looks at the grad of each, of results as of leaves.
TAKES_REAL_TENSORS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def on_meta(*shape):
    return torch.empty(*shape, device="meta")


# --- What no memory could hold ---------------------------------------------------------------------------------------


def test_a_model_of_a_trillion_parameters_is_counted_exactly():
    wide = 2**20
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(wide, wide + 1), nn.ReLU(), nn.Linear(wide + 1, 3))
    flops = FlopCountAnalysis(model, on_meta(5, 7, wide))
    first, last = 5 * 7 * wide * (wide + 1), 5 * 7 * (wide + 1) * 3
    assert flops.by_module() == {"": first + last, "0": first, "1": 0, "2": last}
    assert flops.unknown_ops() == {}


class EveryFamily(nn.Module):
    """A layer of each family that multiplies."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.up = nn.ConvTranspose1d(3, 5, 2)
        self.rnn = nn.LSTM(5, 7)
        self.attention = nn.MultiheadAttention(7, 1)
        self.head = nn.Linear(7, 11)

    def forward(self, images):
        pixels = self.norm(self.conv(images)).flatten(2)
        states, _ = self.rnn(self.up(pixels).permute(2, 0, 1))
        attended, _ = self.attention(states, states, states, need_weights=False)
        return self.head(attended)


# Two images of 5x7 leave 3x5 pixels each, of which the transposed convolution makes 16 steps.
IMAGES, BATCH, PIXELS, STEPS = (2, 2, 5, 7), 2, 3 * 5, 16
MULTIPLY_ADDS = {
    "conv": BATCH * PIXELS * 3 * (2 * 3 * 3),
    "norm": 0,
    "up": BATCH * PIXELS * 3 * (5 * 2),
    "rnn": BATCH * STEPS * 4 * 7 * (5 + 7),
    "attention": BATCH * (4 * STEPS * 7 * 7 + 2 * STEPS * STEPS * 7),
    "head": BATCH * STEPS * 7 * 11,
}


def assert_everything_is_counted(flops, engine=None):
    assert engine in (None, flops.engine), flops.engine_reason
    hardware = flops.hardware_flops()
    assert {name: hardware[name] for name in MULTIPLY_ADDS} == {n: 2 * count for n, count in MULTIPLY_ADDS.items()}
    assert hardware[""] == 2 * sum(MULTIPLY_ADDS.values())
    assert flops.unknown_ops() == {}


@pytest.mark.parametrize(("engine", "counts"), [("auto", "trace"), ("trace", "trace"), ("dispatch", "dispatch")])
def test_on_meta_every_family_is_counted_as_with_real_tensors_by_either_engine(engine, counts):
    real = FlopCountAnalysis(EveryFamily(), torch.rand(IMAGES), engine=engine)
    meta = FlopCountAnalysis(EveryFamily().to("meta"), on_meta(*IMAGES), engine=engine)
    assert_everything_is_counted(real, counts)
    assert_everything_is_counted(meta, counts)
    assert meta.by_module() == real.by_module()
    assert meta.verify() == ()


CONVOLUTIONS = {
    "torch.conv2d": lambda x, w: torch.conv2d(x, w),
    "by keywords": lambda x, w: torch.conv2d(input=x, weight=w),
    "a padding by its name": lambda x, w: torch.conv2d(F.pad(x, (-1, -1, -1, -1)), w, padding="same"),
    "torch.convolution": lambda x, w: torch.convolution(x, w, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
    "an operator": lambda x, w: torch.ops.aten.conv2d(x, w),
    "its overload": lambda x, w: torch.ops.aten.convolution.default(
        x, w, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1
    ),
    "transposed": lambda x, w: torch.conv_transpose2d(F.pad(x, (-1, -1, -1, -1)), w.transpose(0, 1), padding=1),
}


@pytest.mark.parametrize("engine", ["trace", "dispatch"])
@pytest.mark.parametrize("call", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_on_meta_is_counted_however_it_is_called(call, engine, caplog):
    """Each does 3 x 5 products per image and kernel: the transposed one reads as many pixels as the others write."""
    weight = on_meta(11, 2, 3, 3).requires_grad_()
    flops = FlopCountAnalysis(lambda x: call(x, weight), on_meta(*IMAGES), engine=engine)
    assert flops.by_operator() == {"conv": BATCH * PIXELS * 11 * (2 * 3 * 3)}
    assert (flops.engine, flops.unknown_ops(), flops.is_lower_bound) == (engine, {}, False)
    assert set(flops.unsupported_ops()) <= {"aten::pad"}


def test_pruning_on_meta_keeps_what_a_convolution_is_given(model_of):
    """The tracer does not see into the convolution; what it is given, and what it gives, is not lost."""
    layers = {"first": nn.Linear(5, 7), "conv": nn.Conv1d(3, 3, 2), "last": nn.Linear(6, 2), "unused": nn.Linear(5, 11)}
    model = model_of(lambda self, x: (self.unused(x), self.last(self.conv(self.first(x))))[1], **layers).to("meta")
    flops = FlopCountAnalysis(model, on_meta(2, 3, 5), prune=True)
    first, conv, last = 2 * 3 * 5 * 7, 2 * 3 * 6 * (3 * 2), 2 * 3 * 6 * 2
    assert flops.by_module() == {"": first + conv + last, "first": first, "conv": conv, "last": last, "unused": 0}


OPERATORS = {
    "interpolation": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (2, 3, 5, 7)),
    "adaptive pooling": (lambda x: F.adaptive_avg_pool2d(x, 3), (2, 3, 5, 7)),
    "group norm": (lambda x: F.group_norm(x, 3), (2, 3, 5, 7)),
    "rms norm": (lambda x: F.rms_norm(x, (7,)), (2, 3, 5, 7)),
    "grid sampling": (lambda x: F.grid_sample(x, x.new_empty(2, 3, 2, 2), align_corners=False), (2, 3, 5, 7)),
    "a Fourier transform": (torch.fft.rfft2, (2, 3, 5, 7)),
    "an einsum": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), (2, 3, 5, 7)),
    "grouped queries": (lambda x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True), (2, 3, 5, 7)),
    "a gradient inside": (lambda x: torch.autograd.grad((x.requires_grad_() @ x.mT).sum(), x), (2, 3, 5, 7)),
    "a transform": (torch.vmap(lambda x: x @ x.mT), (2, 3, 5, 7)),
    "a bilinear layer": (lambda x: F.bilinear(x, x, x.new_empty(11, 7, 7)), (2, 3, 5, 7)),
    "a cell": (lambda x: torch.gru_cell(x, x, x.new_empty(21, 7), x.new_empty(21, 7)), (5, 7)),
    "a distance": (lambda x: torch.cdist(x, x), (5, 7)),
}


@pytest.mark.parametrize(("call", "shape"), OPERATORS.values(), ids=OPERATORS)
def test_on_meta_a_trace_says_what_it_says_with_real_tensors(call, shape):
    meta = FlopCountAnalysis(call, on_meta(*shape), engine="trace", elementwise=True)
    real = FlopCountAnalysis(call, torch.ones(shape), engine="trace", elementwise=True)
    assert meta.by_operator() == real.by_operator() != {}
    assert meta.hardware_flops() == real.hardware_flops()
    assert meta.unknown_ops() == real.unknown_ops() == {}
    assert meta.verify() == ()


def test_inside_a_fake_mode_every_family_is_counted_as_with_real_tensors():
    with FakeTensorMode():
        flops = FlopCountAnalysis(EveryFamily(), torch.rand(IMAGES))
        assert_everything_is_counted(flops, "dispatch")
        assert flops.engine_reason == "the tracer loses operators on FakeTensor tensors"


@TAKES_REAL_TENSORS
def test_a_real_model_is_counted_by_a_fake_input_where_the_mode_allows_it():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(torch.rand(IMAGES))
    assert_everything_is_counted(FlopCountAnalysis(EveryFamily(), fake))


def test_a_count_inside_a_fake_mode_leaves_a_real_model_its_values():
    model, x = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), torch.rand(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FlopCountAnalysis(model, mode.from_tensor(x)).total()
    after = model.state_dict()
    assert {type(value) for value in after.values()} == {torch.Tensor}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_parameter_written_to_inside_a_fake_mode_gets_its_values_back(model_of):
    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.zero_()
        return self.fc(x)

    model = model_of(forward, fc=nn.Linear(3, 5))
    before = model.fc.weight.detach().clone()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FlopCountAnalysis(model, mode.from_tensor(torch.rand(2, 3))).total()
    assert torch.equal(model.fc.weight, before)


@TAKES_REAL_TENSORS
def test_sizes_that_are_symbols_are_said_to_be_unknown():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    layer = nn.Linear(3, 5)
    symbolic = FlopCountAnalysis(layer, mode.from_tensor(torch.rand(2, 3))).unsupported_ops_warnings(False)
    assert symbolic.is_lower_bound
    assert "exact integers" in symbolic.unknown_reasons()["aten::addmm"]
    fixed = mode.from_tensor(torch.rand(2, 3), static_shapes=True)
    assert FlopCountAnalysis(layer, fixed).total() == 2 * 3 * 5


# --- Where values are asked for --------------------------------------------------------------------------------------


def asks_item(x):
    return x.sum().item()


def asks_list(x):
    return x[0].tolist()


def asks_bool(x):
    return bool(x.sum())


def asks_if(x):
    return x if x.sum() > 0 else -x


def asks_index(x):
    return [3, 5, 7][x.sum().long()]


def asks_nonzero(x):
    return x.nonzero()


def asks_mask(x):
    return x[x > 0]


def asks_equal(x):
    return torch.equal(x, x + 1)


def asks_inside_pytorch(x):
    return torch.nn.functional.one_hot(x[0].long())


EXPRESSIONS = {
    asks_item: ("x.sum().item()", "_local_scalar_dense"),
    asks_list: ("x[0].tolist()", "_to_copy|_local_scalar_dense"),
    asks_bool: ("bool(x.sum())", "_local_scalar_dense"),
    asks_if: ("x.sum() > 0", "_local_scalar_dense"),
    asks_index: ("[3, 5, 7][x.sum().long()]", "_local_scalar_dense"),
    asks_nonzero: ("x.nonzero()", "nonzero"),
    asks_mask: ("x[x > 0]", "index"),
    asks_equal: ("torch.equal(x, x + 1)", "equal"),
    asks_inside_pytorch: ("torch.nn.functional.one_hot(x[0].long())", "_local_scalar_dense"),
}


def line_of(function):
    return inspect.getsourcelines(function)[1] + 1


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("asks", EXPRESSIONS, ids=lambda asks: asks.__name__)
def test_the_error_names_the_line_that_asks_for_a_value(model_of, asks, kind):
    expression, operator = EXPRESSIONS[asks]
    with torch.device("meta") if kind == "meta" else FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.ones(2, 3)
    expression = re.escape(expression) if EXPRESSIONS_ARE_KNOWN else ".*"
    place = rf"in {asks.__name__}, {HERE}:{line_of(asks)}: `{expression}` \(aten::({operator})\)"
    with pytest.raises(ValueError, match=place) as caught:
        FlopCountAnalysis(model_of(lambda self, x: asks(x)), x).total()
    assert str(caught.value).startswith("FlopCountAnalysis: the model ")
    assert "Count with real tensors" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_function_of_pytorch_itself_has_no_line_of_the_models():
    with pytest.raises(ValueError, match=r"in the call itself \(aten::nonzero\)"):
        FlopCountAnalysis(torch.nonzero, on_meta(2, 3)).total()


def test_the_value_given_as_a_number_is_the_way_out(model_of):
    model = model_of(lambda self, x, scale: self.fc(x) * float(scale), fc=nn.Linear(3, 5, device="meta"))
    with pytest.raises(ValueError, match=r"or keep the model from asking: give it the value as a Python number"):
        FlopCountAnalysis(model, (on_meta(2, 3), on_meta(1))).total()
    assert FlopCountAnalysis(model, (on_meta(2, 3), 7.0)).total() == 2 * 3 * 5


def test_a_fake_tensor_that_meets_a_real_one_is_told_so(model_of):
    model = model_of(lambda self, x: self.fc(x), fc=nn.Linear(3, 5))
    with FakeTensorMode():
        x = torch.ones(2, 3)
    expected = (
        rf"a fake tensor meets one that is real, .*: in <lambda>, {HERE}:\d+: .*\. Make model and inputs under one"
    )
    with pytest.raises(ValueError, match=expected):
        FlopCountAnalysis(model, x).total()


# --- What went wrong otherwise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda x: x @ on_meta(7, 11), "reduction dim"),
        (lambda x: x[on_meta(7).long(), on_meta(11).long()], "[Ss]hape mismatch|broadcast"),
    ],
)
def test_a_wrong_shape_on_meta_stays_pytorchs_own_error(call, complaint):
    with pytest.raises((RuntimeError, IndexError), match=complaint) as caught:
        FlopCountAnalysis(call, on_meta(2, 3)).total()
    assert "FlopCountAnalysis" not in str(caught.value)


def test_an_error_of_the_models_own_on_meta_is_raised_as_it_is(model_of):
    def forward(self, x):
        raise RuntimeError("the model's own")

    with pytest.raises(RuntimeError, match=r"^the model's own$"):
        FlopCountAnalysis(model_of(forward), on_meta(2, 3)).total()


# --- A model library's configuration, without weights ----------------------------------------------------------------


@pytest.mark.models
@pytest.mark.parametrize("engine", ["trace", "dispatch"])
def test_seventy_billion_parameters_are_counted_from_a_configuration(engine):
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, wide, heads, key_heads, hidden, vocabulary = 80, 8192, 64, 8, 28672, 128256
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=wide, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=hidden, vocab_size=vocabulary,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    batch, tokens, keys = 3, 17, wide * key_heads // heads
    flops = FlopCountAnalysis(model, on_meta(batch, tokens).long(), {"use_cache": True}, engine=engine)

    weights = wide * wide + 2 * wide * keys + wide * wide + 3 * wide * hidden
    layer = batch * (tokens * weights + 2 * tokens * tokens * wide)
    assert flops.hardware_flops()[""] == 2 * (layers * layer + batch * tokens * wide * vocabulary)
    assert flops.hardware_flops()["model.layers.79"] == 2 * layer
    assert flops.unknown_ops() == {}
    parameters = layers * (weights + 2 * wide) + wide + 2 * wide * vocabulary
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
