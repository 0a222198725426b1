"""One computation written in two ways costs the same, forward and backward; where it does not, the difference is named.

FLOPs: of the forward by both engines, of forward and backward in a step that is seen whole.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from dispatched_step import StepObserver
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import FlopCountAnalysis
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.phases import BACKWARD, FORWARD, OPTIMIZER, RECOMPUTE

ENGINES = ("trace", "dispatch", "observer")


class Call(nn.Module):
    """A function and its parameters."""

    def __init__(self, function, *parameters):
        super().__init__()
        self.function = function
        self.parameters_of_function = nn.ParameterList(parameters)

    def forward(self, x):
        return self.function(x, *self.parameters_of_function)


def step_of(model, x, observer_class=StepRecorder):
    """Hardware FLOPs by phase, where the input wants its gradient too."""
    x = x.detach().requires_grad_()
    observer = observer_class(ModuleNames({"": model}))
    with observer.watching():
        with observer.on():
            y = model(x)
        y.sum().backward()
    assert observer.failure is None
    counts = {phase: StepAnalysis.of_run(run, model) for phase, run in observer.runs().items()}
    assert not any(count.is_lower_bound for count in counts.values())
    return {phase: counts[phase].total() for phase in (FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER)}


def counted(model, x):
    """The same, after a check that all engines see this forward, and both observers the step."""
    seen = step_of(model, x)
    assert seen == step_of(model, x, StepObserver)
    x = x.detach().requires_grad_()
    forwards = {engine: FlopCountAnalysis(model, x, engine=engine).hardware_flops()[""] for engine in ENGINES}
    assert forwards == dict.fromkeys(ENGINES, seen[FORWARD])
    return seen


def cost(forward, backward, again=0):
    return {FORWARD: forward, BACKWARD: backward, RECOMPUTE: again, OPTIMIZER: 0}


def assert_same_values(one, other, x):
    torch.testing.assert_close(one(x), other(x))


# --- A convolution is an unfolding and a matrix product --------------------------------------------------------------


def unfolded_convolution(x, weight, stride, dilation, groups):
    """`[batch, channels, *sizes]`, by slices of a window at each position, and one product per group."""
    kernel = weight.shape[2:]
    for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        # A window spans `gap * (size - 1) + 1` elements, of which each `gap`-th is taken.
        x = x.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
    batch, channels, positions = x.shape[0], x.shape[1], x.shape[2 : 2 + len(kernel)]
    x = x.reshape(batch, groups, channels // groups, math.prod(positions), math.prod(kernel))
    columns = x.permute(1, 2, 4, 0, 3).reshape(groups, -1, batch * math.prod(positions))
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    out = torch.bmm(rows, columns).reshape(weight.shape[0], batch, *positions)
    return out.transpose(0, 1)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_convolution_is_an_unfolding_and_a_matrix_product(data):
    def drawn(low, high):
        return data.draw(st.integers(low, high))

    dims, groups = drawn(1, 3), drawn(1, 3)
    batch, ins, outs = drawn(1, 3), groups * drawn(1, 3), groups * drawn(1, 3)
    kernel, stride, dilation = ([drawn(1, 3) for _ in range(dims)] for _ in range(3))
    # As many positions as drawn, and what a stride may leave over at the end.
    positions = [drawn(1, 3) for _ in range(dims)]
    sizes = [
        (count - 1) * step + gap * (size - 1) + 1 + drawn(0, step - 1)
        for count, step, gap, size in zip(positions, stride, dilation, kernel, strict=True)
    ]
    convolve = getattr(F, f"conv{dims}d")
    x, weight = torch.rand(batch, ins, *sizes), torch.rand(outs, ins // groups, *kernel)
    fused = Call(lambda x, w: convolve(x, w, None, stride, 0, dilation, groups), weight)
    written = Call(lambda x, w: unfolded_convolution(x, w, stride, dilation, groups), weight)
    assert_same_values(fused, written, x)
    forward = 2 * batch * math.prod(positions) * outs * (ins // groups) * math.prod(kernel)
    assert counted(fused, x) == counted(written, x) == cost(forward, 2 * forward)


def test_a_transposed_convolution_is_a_matrix_product_and_a_folding():
    x, weight = torch.rand(2, 3, 5, 7), torch.rand(3, 11, 3, 2)

    def written(x, weight):
        columns = torch.matmul(weight.flatten(1).T, x.flatten(2))
        return F.fold(columns, (5 - 1 + 3, 7 - 1 + 2), (3, 2))

    fused, written = Call(F.conv_transpose2d, weight), Call(written, weight)
    assert_same_values(fused, written, x)
    forward = 2 * 2 * (5 * 7) * 3 * (11 * 3 * 2)
    assert counted(fused, x) == counted(written, x) == cost(forward, 2 * forward)


# --- Attention, fused and written out --------------------------------------------------------------------------------

BATCH, HEADS, QUERIES, KEYS, WIDE, VALUE = 2, 3, 5, 7, 8, 11


def written_attention(query, key, value, is_causal=False):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if is_causal:
        sees = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~sees, -torch.inf)
    return scores.softmax(-1) @ value


def attention_step(attend, groups=1, keys=KEYS, value=VALUE):
    """Query, key and value all want a gradient."""
    key = torch.rand(BATCH, HEADS // groups, keys, WIDE)
    model = Call(attend, key, torch.rand(*key.shape[:-1], value))
    return model, torch.rand(BATCH, HEADS, QUERIES, WIDE)


SCORES, APPLIED = (2 * BATCH * HEADS * QUERIES * KEYS * width for width in (WIDE, VALUE))


def test_attention_without_a_fused_kernel_is_its_products():
    """Where the widths of key and value differ, a CPU has no fused kernel, so that nothing is computed again."""
    fused, x = attention_step(F.scaled_dot_product_attention)
    written = Call(written_attention, *fused.parameters_of_function)
    assert_same_values(fused, written, x)
    assert counted(fused, x) == counted(written, x) == cost(SCORES + APPLIED, 2 * (SCORES + APPLIED))


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_fused_attention_computes_its_scores_again_in_the_backward_and_nothing_else(is_causal):
    """A causal mask changes nothing: by convention all pairs count, as they run where it is written out."""
    fused, x = attention_step(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal), keys=QUERIES, value=WIDE
    )
    written = Call(lambda q, k, v: written_attention(q, k, v, is_causal), *fused.parameters_of_function)
    assert_same_values(fused, written, x)
    product = 2 * BATCH * HEADS * QUERIES * QUERIES * WIDE
    assert counted(written, x) == cost(2 * product, 4 * product)
    assert counted(fused, x) == cost(2 * product, 4 * product + product)


@pytest.mark.parametrize(("groups", "value"), [(3, WIDE), (3, VALUE)])
def test_queries_that_share_their_keys_each_attend(groups, value):
    def repeated(q, k, v):
        return written_attention(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))

    fused, x = attention_step(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), groups, value=value
    )
    written = Call(repeated, *fused.parameters_of_function)
    assert_same_values(fused, written, x)
    scores, applied = (2 * BATCH * HEADS * QUERIES * KEYS * width for width in (WIDE, value))
    again = scores if value == WIDE else 0  # a fused kernel, or none
    assert counted(written, x) == cost(scores + applied, 2 * (scores + applied))
    assert counted(fused, x) == cost(scores + applied, 2 * (scores + applied) + again)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_is_four_projections_and_attention(need_weights):
    tokens, wide, heads = 7, 6, 2
    layer = nn.MultiheadAttention(wide, heads, batch_first=True)

    def written(x):
        query, key, value = (
            F.linear(x, *weights).unflatten(-1, (heads, -1)).transpose(1, 2)
            for weights in zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
        )
        return layer.out_proj(written_attention(query, key, value).transpose(1, 2).flatten(2))

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return written(x)

    class Fused(Written):
        def forward(self, x):
            return layer(x, x, x, need_weights=need_weights)[0]

    x = torch.rand(BATCH, tokens, wide)
    assert_same_values(Fused(), Written(), x)
    projections, product = 2 * BATCH * tokens * 4 * wide * wide, 2 * BATCH * tokens * tokens * wide
    forward = projections + 2 * product
    again = 0 if need_weights else product  # weights that are asked for are there; a fused kernel keeps none
    assert counted(Written(), x) == cost(forward, 2 * forward)
    assert counted(Fused(), x) == cost(forward, 2 * forward + again)


# --- A recurrent layer is its cells, one step after the other --------------------------------------------------------


class Unrolled(nn.Module):
    def __init__(self, layer, cell):
        super().__init__()
        self.cell = cell
        for name, parameter in cell.named_parameters():
            parameter.data = getattr(layer, f"{name}_l0").data

    def forward(self, x):
        state, outputs = None, []
        for step in x:
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)


class Outputs(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize(
    ("layer", "cell", "gates"), [(nn.LSTM, nn.LSTMCell, 4), (nn.GRU, nn.GRUCell, 3), (nn.RNN, nn.RNNCell, 1)]
)
def test_a_recurrent_layer_is_its_cells_one_step_after_the_other(layer, cell, gates):
    steps, batch, wide, hidden = 5, 3, 7, 11
    whole = Outputs(layer(wide, hidden))
    unrolled, x = Unrolled(whole.layer, cell(wide, hidden)), torch.rand(steps, batch, wide)
    assert_same_values(whole, unrolled, x)
    of_input, of_state = (2 * batch * width * gates * hidden for width in (wide, hidden))
    seen, on_paper = counted(whole, x), counted(unrolled, x)
    assert seen[FORWARD] == on_paper[FORWARD] == steps * (of_input + of_state)
    # Gradients of input, state and both weights at each step. The first state is zeros, and wants none: a kernel for
    # the whole layer may make it nevertheless, a cell of its own does not.
    first = of_state
    assert on_paper[BACKWARD] == 2 * steps * (of_input + of_state) - first
    assert seen[BACKWARD] - on_paper[BACKWARD] in (0, first)


# --- Checkpointing adds the forward once more ------------------------------------------------------------------------


def blocks():
    attention = nn.TransformerEncoderLayer(6, 2, 11, dropout=0, batch_first=True)
    return nn.Sequential(nn.Linear(5, 6), attention, nn.Linear(6, 7), nn.LSTM(7, 3, batch_first=True))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = blocks()

    def forward(self, x):
        return self.inner(x)[0]


class Checkpointed(Plain):
    is_reentrant = False

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.is_reentrant)[0]


class Reentrant(Checkpointed):
    is_reentrant = True


@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_checkpointing_adds_exactly_the_forward_once_more(kind):
    x = torch.rand(2, 7, 5)
    plain = counted(Plain(), x)
    assert plain[RECOMPUTE] == 0
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        assert counted(kind(), x) == plain | {RECOMPUTE: plain[FORWARD]}
