"""Convolutions, attention and recurrent layers against arrays of scalars that count: see `counted_scalars.py`."""

from __future__ import annotations

import itertools
from typing import Any

import counted_scalars as scalars
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

pytestmark = pytest.mark.models  # NumPy comes with these; the core does without

Arrays, assert_counts_what_happens = scalars.Arrays, scalars.assert_counts_what_happens

sizes = st.integers(1, 5)
small = st.integers(1, 3)
few = settings(max_examples=25)


# --- Convolutions -----------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """Sizes and options of a convolution over one to three dimensions."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_dim = {
        name: draw(st.lists(strategy, min_size=dims, max_size=dims))
        for name, strategy in {
            "side": st.integers(1, 5 if dims < 3 else 3),
            "kernel": st.integers(1, 3 if dims < 3 else 2),
            "stride": st.integers(1, 3),
            "dilation": st.integers(1, 2),
            "padding": st.integers(0, 2),
            "extra": st.integers(0, 2),
        }.items()
    }
    channels = {"batch": draw(st.integers(1, 2)), "ins": draw(st.integers(1, 2)), "outs": draw(st.integers(1, 2))}
    return dims, groups, channels, per_dim, draw(st.booleans())


def windows(array: Any, position: Any, per_dim: Any) -> Any:
    """What a kernel sees at a position of the result."""
    starts = [at * stride for at, stride in zip(position, per_dim["stride"], strict=True)]
    reach = zip(starts, per_dim["kernel"], per_dim["dilation"], strict=True)
    return array[(..., *(slice(start, start + (k - 1) * d + 1, d) for start, k, d in reach))]


def convolve(arrays: Any, source: Any, weight: Any, bias: Any, groups: int, per_dim: Any, pads: Any) -> None:
    """A convolution as a loop over what comes out; zeros of the padding are multiplied like anything else."""
    import numpy as np

    source = np.pad(source, [(0, 0), (0, 0), *pads], constant_values=arrays.zero)
    spans = [d * (k - 1) + 1 for d, k in zip(per_dim["dilation"], per_dim["kernel"], strict=True)]
    places = zip(source.shape[2:], spans, per_dim["stride"], strict=True)
    shape = [(size - span) // stride + 1 for size, span, stride in places]
    ins, outs = source.shape[1] // groups, weight.shape[0] // groups
    for sample, out, position in itertools.product(range(len(source)), range(len(weight)), np.ndindex(*shape)):
        group = out // outs
        seen = windows(source[sample, group * ins : (group + 1) * ins], position, per_dim)
        arrays.summed(seen * weight[out]) + bias[out]


# 2026-11, torch 2.13: said once by such a convolution.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(max_examples=60)
@given(convolutions(), st.sampled_from(["numbers", "same", "valid"]))
def test_a_convolution_multiplies_padding_too(drawn, padding):
    dims, groups, channels, per_dim, has_bias = drawn
    spans = [d * (k - 1) for d, k in zip(per_dim["dilation"], per_dim["kernel"], strict=True)]
    if padding == "same":
        per_dim["stride"] = [1] * dims
        pads = [(span // 2, span - span // 2) for span in spans]
    else:
        pads = [(pad, pad) if padding == "numbers" else (0, 0) for pad in per_dim["padding"]]
    assume(all(size + sum(pad) > span for size, pad, span in zip(per_dim["side"], pads, spans, strict=True)))
    source = torch.ones(channels["batch"], groups * channels["ins"], *per_dim["side"])
    weight = torch.ones(groups * channels["outs"], channels["ins"], *per_dim["kernel"])
    bias = torch.ones(len(weight))
    arrays = Arrays()
    convolve(arrays, *arrays.like(source, weight, bias), groups, per_dim, pads)

    def function(source, weight, bias):
        options = {name: tuple(per_dim[name]) for name in ("stride", "dilation")}
        options["padding"] = tuple(per_dim["padding"]) if padding == "numbers" else padding
        return getattr(F, f"conv{dims}d")(source, weight, bias if has_bias else None, groups=groups, **options)

    assert_counts_what_happens(function, (source, weight, bias), arrays.notes)


@settings(max_examples=60)
@given(convolutions())
def test_a_transposed_convolution_spreads_every_input_over_the_kernel(drawn):
    import numpy as np

    dims, groups, channels, per_dim, has_bias = drawn
    per_dim["extra"] = [
        min(e, max(s, d) - 1) for e, s, d in zip(per_dim["extra"], per_dim["stride"], per_dim["dilation"], strict=True)
    ]
    order = ("side", "stride", "dilation", "kernel", "extra")
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(*map(per_dim.get, order), strict=True)]
    assume(all(size > 2 * pad for size, pad in zip(full, per_dim["padding"], strict=True)))
    source = torch.ones(channels["batch"], groups * channels["ins"], *per_dim["side"])
    weight = torch.ones(groups * channels["ins"], channels["outs"], *per_dim["kernel"])
    bias = torch.ones(groups * channels["outs"])
    arrays = Arrays()
    x, w, _ = arrays.like(source, weight, bias)
    result = arrays.of(len(x), len(bias), *full)  # what is padded away has been computed
    for sample, channel, position in itertools.product(range(len(x)), range(x.shape[1]), np.ndindex(*x.shape[2:])):
        group = channel // channels["ins"]
        outs = slice(group * channels["outs"], (group + 1) * channels["outs"])
        target = windows(result[sample, outs], position, per_dim)
        target[...] = target + w[channel] * x[(sample, channel, *position)]

    def function(source, weight, bias):
        options = {name: tuple(per_dim[name]) for name in ("stride", "padding", "dilation")}
        spread = getattr(F, f"conv_transpose{dims}d")
        extra = tuple(per_dim["extra"])
        return spread(source, weight, bias if has_bias else None, groups=groups, output_padding=extra, **options)

    assert_counts_what_happens(function, (source, weight, bias), arrays.notes)


# --- Attention --------------------------------------------------------------------------------------------------------


@few
@given(st.lists(small, min_size=1, max_size=1), small, small, sizes, sizes, sizes, sizes)
def test_attention_written_out_with_keys_that_heads_share(batch, key_heads, share, queries, keys, width, value_width):
    import numpy as np

    query = torch.ones(*batch, key_heads * share, queries, width)
    key = torch.ones(*batch, key_heads, keys, width)
    value = torch.ones(*batch, key_heads, keys, value_width)
    arrays = Arrays()
    q, k, v = arrays.like(query, key, value)
    k, v = (np.repeat(shared, share, axis=-3) for shared in (k, v))
    scores = arrays.product(q, k.swapaxes(-1, -2))
    arrays.product(arrays.activated(scores), v)

    def function(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=share > 1)

    assert_counts_what_happens(function, (query, key, value), arrays.notes)


# --- Recurrent layers and cells ---------------------------------------------------------------------------------------


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def step(arrays: Any, gates: int, hidden: int, x: Any, state: Any) -> Any:
    """One step of a cell: the gates see input and state; what happens among them is elementwise."""
    from_input = arrays.product(x, arrays.of(x.shape[-1], gates * hidden)) + arrays.of(gates * hidden)
    from_state = arrays.product(state, arrays.of(state.shape[-1], gates * hidden)) + arrays.of(gates * hidden)
    return arrays.activated((from_input + from_state)[..., :hidden])


@few
@given(st.sampled_from(sorted(GATES)), small, sizes, sizes, st.booleans())
def test_a_recurrent_cell_written_out(kind, batch, ins, hidden, bias):
    arrays = Arrays()
    step(arrays, GATES[kind], hidden, arrays.of(batch, ins), arrays.of(batch, hidden))
    cell = getattr(nn, kind + "Cell")(ins, hidden, bias=bias)
    assert_counts_what_happens(cell, (torch.ones(batch, ins),), arrays.notes)


# 2026-11, torch 2.13: said once by an LSTM with a projection; as an error it would stop the tracer.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@few
@given(st.sampled_from(sorted(GATES)), sizes, small, sizes, sizes, st.integers(1, 2), st.booleans(), st.data())
def test_a_recurrent_layer_unrolled(kind, time, batch, ins, hidden, levels, both_ways, data):
    import numpy as np

    projection = data.draw(st.integers(0, hidden - 1)) if kind == "LSTM" else 0
    arrays = Arrays()
    sequence = [arrays.of(batch, ins) for _ in range(time)]
    for _ in range(levels):
        directions = []
        for _ in range(1 + both_ways):
            state, outputs = arrays.of(batch, projection or hidden), []
            for x in sequence:
                state = step(arrays, GATES[kind], hidden, x, state)
                state = arrays.product(state, arrays.of(hidden, projection)) if projection else state
                outputs.append(state)
            directions.append(outputs)
        sequence = [np.concatenate(both, axis=-1) for both in zip(*directions, strict=True)]
    options = {"proj_size": projection} if projection else {}
    layer = getattr(nn, kind)(ins, hidden, levels, bidirectional=both_ways, **options)
    assert_counts_what_happens(layer, (torch.ones(time, batch, ins),), arrays.notes)
