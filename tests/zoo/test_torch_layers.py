"""PyTorch's own layers and functions, of small random sizes: engines, hooks and the plain forward agree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, randn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from zoo_checks import MODES, Specimen, check
from zoo_sizes import Sizes

ZOO: dict[str, Callable[[Sizes], tuple[Any, ...]]] = {}

# What is expected to be otherwise, and why.
UNKNOWN: dict[str, set[str]] = {}
NOT_UNDER_AUTOCAST = {"adaptive-softmax": "expected to have the same dtype"}  # PyTorch itself raises
FAST_PATH = {"multi-head-self", "encoder-layer", "encoder", "decoder", "transformer"}
"""Without gradients, attention goes another way, which the tracer's function mode switches off: last digits differ."""
CASTS_INSIDE = {"bilinear", "spatial-transformer"}
"""Their kernels call operators that autocast casts; in the handler of any dispatch mode, autocast is off."""


def specimen(make: Callable[[Sizes], tuple[Any, ...]]) -> Callable[[Sizes], tuple[Any, ...]]:
    """Adds a function from sizes to a callable and its arguments."""
    ZOO[make.__name__.replace("_", "-")] = make
    return make


def spatial(s: Sizes, dims: int, channels: int) -> torch.Tensor:
    return randn(s.batch, channels, *(s.random.randint(4, 9) for _ in range(dims)))


def convolution(kind: type[nn.Module], dims: int, s: Sizes) -> tuple[Any, ...]:
    groups = s.pick(1, 2)
    ins, outs, kernel = 2 * groups, 3 * groups, s.pick(1, 2, 3)
    options = {
        "stride": s.pick(1, 2),
        "dilation": s.pick(1, 2),
        "padding": s.pick(0, 1, 2),
        "bias": s.pick(True, False),
    }
    if "Transpose" in kind.__name__:
        options["dilation"] = options["stride"]
        options["output_padding"] = options["stride"] - 1
    elif options["stride"] == 1:
        options["padding"] = s.pick("same", "valid", 1)
    return kind(ins, outs, kernel, groups=groups, **options), spatial(s, dims, ins)


def recurrent(kind: type[nn.Module], s: Sizes, **options: Any) -> tuple[Any, ...]:
    ins, hidden = s.random.randint(2, 9), s.random.randint(3, 11)
    layer = kind(ins, hidden, s.layers, bidirectional=s.pick(True, False), bias=s.pick(True, False), **options)
    if s.pick(True, False):
        return layer, randn(s.tokens, s.batch, ins)
    return layer, pack_sequence([randn(s.tokens, ins), randn(2, ins)], enforce_sorted=False)


for _dims in (1, 2, 3):
    for _kind in (getattr(nn, f"Conv{_dims}d"), getattr(nn, f"ConvTranspose{_dims}d")):
        ZOO[_kind.__name__] = functools.partial(convolution, _kind, _dims)
for _kind in (nn.RNN, nn.LSTM, nn.GRU):
    ZOO[_kind.__name__] = functools.partial(recurrent, _kind)
for _kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
    ZOO[_kind.__name__] = lambda s, kind=_kind: (kind(s.width, s.hidden), randn(s.batch, s.width))


@specimen
def perceptron(s):
    layers = [nn.Linear(s.width, s.hidden, bias=s.pick(True, False)), nn.ReLU(inplace=True), nn.Linear(s.hidden, 3)]
    return nn.Sequential(*layers), randn(*s.pick((2,), (), (2, 3)), s.batch, s.width)


@specimen
def linear_of_a_transposed_input(s):
    linear = nn.Linear(s.width, s.hidden)
    return lambda x: linear(x.transpose(1, 2)), randn(s.batch, s.width, s.tokens)


@specimen
def bilinear(s):
    return nn.Bilinear(s.width, 5, s.hidden), randn(s.batch, 2, s.width), randn(s.batch, 2, 5)


@specimen
def projected_lstm(s):
    return recurrent(nn.LSTM, s, proj_size=2)


@specimen
def dropped_gru(s):
    return recurrent(nn.GRU, s, dropout=0.3) if s.layers > 1 else recurrent(nn.GRU, s)


def attention(s: Sizes, **options: Any) -> nn.Module:
    return nn.MultiheadAttention(s.width, s.heads, bias=s.pick(True, False), **options)


@specimen
def multi_head_self(s):
    x = randn(s.batch, s.tokens, s.width)
    return attention(s, batch_first=True, dropout=0.1), x, x, x


@specimen
def multi_head_cross(s):
    wants_weights = s.pick(True, False)
    layer = attention(s, kdim=5, vdim=7, add_bias_kv=s.pick(True, False), add_zero_attn=s.pick(True, False))
    arguments = randn(s.tokens, s.batch, s.width), randn(3, s.batch, 5), randn(3, s.batch, 7)
    return lambda q, k, v: layer(q, k, v, need_weights=wants_weights), *arguments


def encoder_options(s: Sizes) -> dict[str, Any]:
    return {"dim_feedforward": s.hidden, "batch_first": True, "norm_first": s.pick(True, False), "dropout": 0.1}


@specimen
def encoder_layer(s):
    return nn.TransformerEncoderLayer(s.width, s.heads, **encoder_options(s)), randn(s.batch, s.tokens, s.width)


@specimen
def encoder(s):
    layer = nn.TransformerEncoderLayer(s.width, s.heads, **encoder_options(s))
    return nn.TransformerEncoder(layer, s.layers, enable_nested_tensor=False), randn(s.batch, s.tokens, s.width)


@specimen
def decoder(s):
    layer = nn.TransformerDecoderLayer(s.width, s.heads, **encoder_options(s))
    return nn.TransformerDecoder(layer, s.layers), randn(s.batch, 3, s.width), randn(s.batch, s.tokens, s.width)


@specimen
def transformer(s):
    model = nn.Transformer(s.width, s.heads, s.layers, 1, dim_feedforward=s.hidden, batch_first=True)
    model.encoder.enable_nested_tensor = False
    return model, randn(s.batch, s.tokens, s.width), randn(s.batch, 3, s.width)


@specimen
def grouped_queries(s):
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    keys = s.batch, 2, s.tokens
    return attend, randn(s.batch, 2 * s.heads, 7, 8), randn(*keys, 8), randn(*keys, 5)


@specimen
def masked_attention(s):
    mask = torch.rand(7, s.tokens) > 0.1
    q, k, v = randn(s.batch, s.heads, 7, 8), randn(s.batch, s.heads, s.tokens, 8), randn(s.batch, s.heads, s.tokens, 8)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.2), q, k, v


@specimen
def norms(s):
    layers = [nn.BatchNorm2d(6), nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm((4, 8))]
    return nn.Sequential(*layers, nn.LocalResponseNorm(2)), randn(s.batch, 6, 4, 8)


@specimen
def resampling(s):
    mode, antialias = s.pick("nearest", "bilinear", "bicubic"), s.pick(True, False)

    def forward(x, grid):
        wide = F.interpolate(x, scale_factor=2, mode=mode)
        small = F.interpolate(x, size=3, mode="bilinear", antialias=antialias)
        seen = F.grid_sample(wide, grid, align_corners=False)
        return F.adaptive_avg_pool2d(small, 2), F.adaptive_avg_pool2d(seen, 1)

    return forward, randn(s.batch, 3, 8, 9), 2 * torch.rand(s.batch, 4, 5, 2) - 1


@specimen
def spatial_transformer(s):
    def forward(theta, x):
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)

    return forward, randn(s.batch, 2, 3), randn(s.batch, 3, 7, 5)


@specimen
def unfolded_convolution(s):
    weight = randn(5, 2 * 3 * 3)
    return lambda x: weight @ F.unfold(x, 3), spatial(s, 2, 2)


@specimen
def spectral_norm(s):
    return parametrizations.spectral_norm(nn.Linear(s.width, s.hidden)), randn(s.batch, s.width)


@specimen
def weight_norm(s):
    return parametrizations.weight_norm(nn.Conv1d(4, 6, 3)), randn(s.batch, 4, 9)


@specimen
def adaptive_softmax(s):
    layer = nn.AdaptiveLogSoftmaxWithLoss(s.width, 40, cutoffs=[5, 20])
    return layer, randn(s.tokens, s.width), torch.randint(0, 40, (s.tokens,))


@specimen
def distances(s):
    """Few points are subtracted, many multiplied: more than 25 go through a matrix product."""
    return torch.cdist, randn(s.pick(7, 31), 5), randn(s.pick(11, 37), 5)


@specimen
def similarity(s):
    return nn.CosineSimilarity(), randn(s.batch, s.width), randn(s.batch, s.width)


@specimen
def spectra(s):
    def forward(x):
        spectrum = torch.stft(x, 8, window=torch.ones(8), return_complex=True)
        return torch.istft(spectrum, 8, window=torch.ones(8)), torch.fft.rfft2(x)

    return forward, randn(s.batch, 32)


@specimen
def matrices(s):
    def forward(a, b):
        square = a @ a.transpose(-1, -2)
        return (
            torch.baddbmm(square, a, b),
            torch.addmm(square[0], a[0], b[0]),
            torch.addbmm(square[0], a, b),
            torch.linalg.multi_dot([a[0], b[0], a[1]]),
            torch.chain_matmul(a[0], b[0], a[1]),
            torch.tensordot(a, b, dims=([2], [1])),
            torch.inner(a, a),
            torch.cov(a[0]),
            torch.kron(a[0], b[0]),
        )

    return forward, randn(s.batch, 5, 7), randn(s.batch, 7, 5)


@specimen
def vectors(s):
    def forward(a, v):
        return torch.mv(a, v), torch.dot(v, v), torch.outer(v, v), torch.linalg.vecdot(a, a), torch.addmv(v[:5], a, v)

    return forward, randn(5, 7), randn(7)


@specimen
def matrix_power(s):
    return lambda x: torch.linalg.matrix_power(x, 3), randn(s.batch, 5, 5)


@specimen
def einsums(s):
    def forward(q, k, w):
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
        return torch.einsum("bhqk,bkhd,hde->bqe", scores.softmax(-1), k, w), torch.einsum("bqhd->bqd", q)

    heads = s.heads, s.head_width
    return forward, randn(s.batch, 5, *heads), randn(s.batch, s.tokens, *heads), randn(*heads, s.hidden)


@specimen
def embeddings(s):
    bag = nn.EmbeddingBag(29, s.width, mode="sum")
    return nn.Sequential(bag, nn.Linear(s.width, 3)), torch.randint(0, 29, (s.batch, s.tokens))


@specimen
def losses(s):
    def forward(x, y):
        close = F.triplet_margin_loss(x, y, x + y), F.mse_loss(x, y), F.cosine_embedding_loss(x, y, torch.ones(len(x)))
        return (*close, F.cross_entropy(x, y.softmax(-1)), F.gaussian_nll_loss(x, y, torch.ones_like(x)))

    return forward, randn(s.batch, s.width), randn(s.batch, s.width)


@specimen
def solve(s):
    return torch.linalg.solve, randn(3, 3) + 5 * torch.eye(3), randn(3, s.width)


# 2026-11, torch 2.13: said once by an LSTM with a projection, and by what was called in an older way.
@pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning",
    "ignore:torch.chain_matmul is deprecated:UserWarning",
)
def test_engines_sums_hooks_and_the_plain_forward_agree(name, mode, seed):
    torch.manual_seed(seed)
    call, *arguments = ZOO[name](Sizes.draw(name, seed))
    if isinstance(call, nn.Module):
        call.train(MODES[mode].training)
    specimen = Specimen(call, tuple(arguments), {}, MODES[mode].context)
    if mode == "autocast" and name in NOT_UNDER_AUTOCAST:
        with pytest.raises(RuntimeError, match=NOT_UNDER_AUTOCAST[name]):
            specimen.run()
        return
    other_digits = {
        "trace": name in FAST_PATH and mode in ("no-grad", "inference"),
        "dispatch": name in CASTS_INSIDE and mode == "autocast",
    }
    check(specimen, unknown=UNKNOWN.get(name, ()), other_digits=[e for e, differs in other_digits.items() if differs])


def test_a_linear_layer_under_inference_mode_multiplies_in_the_order_that_it_would_without_us():
    layer, x = nn.Linear(8, 7), randn(2, 8, 4, 4)
    check(Specimen(lambda x: layer(x.flatten(2).transpose(1, 2)), (x,), {}, torch.inference_mode))
