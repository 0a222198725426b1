"""Attention: two products per head and (query, key) pair, and a softmax.

A score takes `width` multiply-adds, its application to the values `value_width`. Grouped queries change nothing: every
query head attends, whichever keys it shares. Batch and heads of the keys may be broadcast. The scale and the softmax
are elementwise work; the mask, dropout and layout copies cost nothing.

**Causal masks.** By default every pair counts, masked or not: that is the figure of PyTorch's own counter, of the
unfused operators, and of a mask given as a tensor. `with_causal` returns formulas that count fewer pairs where the
operator is called with `is_causal=True`:

- `"half"`: half of the pairs, rounded up; the usual figure in papers.
- `"exact"`: query `i` sees the keys `0 ... i`: the sum of `min(i + 1, keys)` over the queries.

**Backward.** A fused backward does not keep the scores and computes them again. Its three products of the queries'
width are the scores and the gradients of queries and keys; its two products of the values' width are the gradients of
weights and values.

**Packed sequences** (`_flash_attention_forward` with cumulative lengths, `varlen_attn`): their lengths are data. Where
an engine has read them, each query meets the keys of its own sequence. Else every query counts as meeting as many keys
as the longest sequence has, an upper bound; if the shapes say that all sequences are equally long, that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, starmap, zip_longest
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from flopcallback.formulas.arithmetic import shape_of
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.normalization import MEAN_AND_VARIANCE, NORMALIZE, SCALE

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall, Value

__all__ = [
    "PACKED",
    "Attention",
    "Causal",
    "cudnn",
    "cudnn_backward",
    "cudnn_kernel",
    "cudnn_kernel_backward",
    "efficient",
    "efficient_backward",
    "efficient_tokens_first",
    "efficient_tokens_first_backward",
    "flash",
    "flash_attn",
    "flash_attn_backward",
    "flash_attn_packed",
    "flash_attn_packed_backward",
    "flash_backward",
    "flash_for_cpu_backward",
    "flash_inplace",
    "flash_tokens_first",
    "flash_tokens_first_backward",
    "flex",
    "flex_backward",
    "multi_head_attention",
    "overrideable_backward",
    "scaled_dot_product_attention",
    "transformer_encoder_layer",
    "varlen",
    "varlen_backward",
    "varlen_out",
    "with_causal",
]

Causal = Literal["dense", "half", "exact"]


class _Sizes(NamedTuple):
    """Sizes of one attention.

    Attributes:
        score_heads: batch times heads of the scores; smaller than `heads` where only the values have a batch.
        heads: batch times query heads.
        queries: queries per head.
        keys: keys per head.
        width: width of queries and keys in one head.
        value_width: width of values in one head.
        sequences: queries and keys of each packed sequence, if known; `queries` and `keys` then do not count.
        is_longest: True if every query counts as in the longest of the packed sequences.
    """

    score_heads: int
    heads: int
    queries: int
    keys: int
    width: int
    value_width: int
    sequences: tuple[tuple[int, int], ...] | None = None
    is_longest: bool = False


class _Work(NamedTuple):
    """Work per (query, key) pair.

    Attributes:
        width: products of the queries' width.
        value_width: products of the values' width.
        elementwise: elementwise operations.
    """

    width: int
    value_width: int
    elementwise: int


# Per score: the scale is one multiplication, the softmax 5 operations, its backward 4 (table in `elementwise.py`).
_SCALE_AND_SOFTMAX = 1 + 5
_SCALE_AND_SOFTMAX_BACKWARD = 1 + 4
_FORWARD = _Work(1, 1, _SCALE_AND_SOFTMAX)
_BACKWARD = _Work(3, 2, _SCALE_AND_SOFTMAX + _SCALE_AND_SOFTMAX_BACKWARD)


@dataclass(frozen=True, slots=True)
class Attention:
    """Formula of an operator that computes a whole attention.

    Attributes:
        sizes: reads the sizes from the operator's arguments.
        is_causal: position of the argument that makes the mask causal.
        work: work per pair.
        causal: pairs that count under a causal mask.
    """

    sizes: Callable[[OpCall], _Sizes]
    is_causal: int
    work: _Work = _FORWARD
    causal: Causal = "dense"

    def __call__(self, call: OpCall) -> Cost:
        """Count one call."""
        sizes = self.sizes(call)
        # A mask given as a tensor has no `constant`: all its pairs count.
        pairs_of = _PAIRS[self.causal if call.inputs[self.is_causal].constant else "dense"]
        whole = ((sizes.queries, sizes.keys),)
        pairs = sum(starmap(pairs_of, whole if sizes.sequences is None else sizes.sequences))
        products = self.work.width * sizes.score_heads * sizes.width
        products += self.work.value_width * sizes.heads * sizes.value_width
        return Cost(
            fma=pairs * products,
            elementwise=pairs * self.work.elementwise * sizes.score_heads,
            is_upper_bound=sizes.is_longest,
        )


def with_causal(formulas: Mapping[str, Callable[[OpCall], Cost]], causal: Causal) -> dict[str, Attention]:
    """Return the attention formulas with another convention for causal masks.

    Args:
        formulas: operator name -> formula, such as `registry.COUNTED[Family.ATTENTION]`; other formulas are left out.
        causal: `"dense"`, `"half"` or `"exact"`; the module's docstring defines them.

    Raises:
        ValueError: there is no such convention.
    """
    if causal not in _PAIRS:
        raise ValueError(f"with_causal: causal is {causal!r}, expected one of {', '.join(map(repr, _PAIRS))}")
    return {
        name: replace(formula, causal=causal) for name, formula in formulas.items() if isinstance(formula, Attention)
    }


def multi_head_attention(call: OpCall) -> Cost:
    """Count `nn.MultiheadAttention` on the fast path.

    `(query: [batch, queries, embed], key, value, embed, heads, weights in: [3 embed, embed], ...)`. The work is three
    projections in, the attention, and one projection out.
    """
    query, key, _, _, heads = call.inputs[:5]
    *batch, queries, embed = shape_of(query)  # no batch in a component of a nested tensor
    *_, keys, _ = shape_of(key)
    return _multi_head_attention(prod(batch), queries, keys, embed, heads.constant)


def transformer_encoder_layer(call: OpCall) -> Cost:
    """Count `nn.TransformerEncoderLayer` on the fast path.

    `(source: [batch, tokens, embed], embed, heads, ..., [14] first linear weight: [hidden, embed], ...)`. The work is
    self-attention, two linear layers, two layer norms and two residuals.
    """
    source, _, heads = call.inputs[:3]
    *batches, tokens, embed = shape_of(source)
    batch = prod(batches)
    hidden, _ = shape_of(call.inputs[14])  # `ffn_weight_1`
    norms = 2 * (MEAN_AND_VARIANCE + NORMALIZE + SCALE) * batch * tokens * embed
    linears = 2 * batch * tokens * embed * hidden
    # One operation per element: the activation on `hidden`, two residuals on `embed`.
    activation_and_residuals = batch * tokens * (hidden + 2 * embed)
    attention = _multi_head_attention(batch, tokens, tokens, embed, heads.constant)
    return attention + Cost(fma=linears, other=norms, elementwise=activation_and_residuals)


def _multi_head_attention(batch: int, queries: int, keys: int, embed: int, heads: int) -> Cost:
    projections = batch * (queries + keys + keys + queries) * embed * embed
    scores_and_values = 2 * batch * queries * keys * embed
    return Cost(fma=projections + scores_and_values, elementwise=batch * heads * queries * keys * _SCALE_AND_SOFTMAX)


def _heads_first(call: OpCall) -> _Sizes:
    """Read sizes of `query: [..., heads, queries, width]` and the result.

    Key and value are `[..., keys, width]` and `[..., keys, value_width]`; each of the three may lack batch or heads.
    """
    (*query_batch, queries, width), (*key_batch, keys, _) = map(shape_of, call.inputs[:2])
    # Only the result has the batch and heads of all three: each input may be broadcast.
    *batch, _, value_width = shape_of(call.outputs[0])
    return _Sizes(_widest(query_batch, key_batch), prod(batch), queries, keys, width, value_width)


def _tokens_first(call: OpCall, *, query: int, longest_key: int | None = None) -> _Sizes:
    """Read sizes of `query: [batch, queries, heads, width]`, dense or packed.

    Packed, the query is `[tokens, heads, width]`, and cumulative lengths are given.

    Args:
        call: the operator call.
        query: position of the query; key and value follow it.
        longest_key: position of the longest key's length; None for an operator that packs nothing.
    """
    (*batch, queries, heads, width), (*_, keys, _, _), (*_, value_width) = map(shape_of, call.inputs[query : query + 3])
    sizes = _Sizes(prod(batch) * heads, prod(batch) * heads, queries, keys, width, value_width)
    # Cumulative lengths of queries and keys come three and two places before the longest key's length.
    if longest_key is None or not call.inputs[longest_key - 3].is_tensor:
        return sizes
    most_queries, most_keys = (value.constant for value in call.inputs[longest_key - 1 : longest_key + 1])
    return _packed(sizes, call.inputs[longest_key - 3 : longest_key - 1], most_queries, most_keys)


def _packed(sizes: _Sizes, starts: Sequence[Value], most_queries: int, most_keys: int) -> _Sizes:
    """Return the sizes of packed sequences.

    Args:
        sizes: with all tokens as queries and keys.
        starts: cumulative lengths of queries and keys, `[sequences + 1]`.
        most_queries: queries of the longest sequence.
        most_keys: keys of the longest sequence.
    """
    if all(value.constant is not None for value in starts):
        queries, keys = ([end - start for start, end in pairwise(value.constant)] for value in starts)
        return sizes._replace(sequences=tuple(zip(queries, keys, strict=True)))
    count = shape_of(starts[0])[0] - 1
    if (sizes.queries, sizes.keys) == (count * most_queries, count * most_keys):
        return sizes._replace(sequences=((most_queries, most_keys),) * count)
    return sizes._replace(keys=most_keys, is_longest=True)


def _heads_or_tokens_first(call: OpCall, *, query: int, longest_key: int) -> _Sizes:
    """Read sizes of `[batch, heads, queries, width]`, or packed `[tokens, heads, width]`."""
    if len(shape_of(call.inputs[query])) == 4:
        return _heads_first_from_inputs(call, query=query)
    return _tokens_first(call, query=query, longest_key=longest_key)


def _heads_first_from_inputs(call: OpCall, *, query: int) -> _Sizes:
    """Read sizes of `query: [..., heads, queries, width]` without the result.

    Key and value follow the query.
    """
    # A backward has no result to take the batch from; only heads of keys and values are broadcast here.
    (*batch, queries, width), (*_, keys, _), (*_, value_width) = map(shape_of, call.inputs[query : query + 3])
    return _Sizes(prod(batch), prod(batch), queries, keys, width, value_width)


def _widest(*batches: Iterable[int]) -> int:
    """Return the number of elements of batches broadcast together."""
    # Not a plain broadcast: fewer key heads (grouped queries) are shared among the query heads, so the largest wins.
    aligned = zip_longest(*(reversed(tuple(batch)) for batch in batches), fillvalue=1)
    return prod(0 if 0 in sizes else max(sizes) for sizes in aligned)


def _all_pairs(queries: int, keys: int) -> int:
    return queries * keys


def _half_of_pairs(queries: int, keys: int) -> int:
    return (queries * keys + 1) // 2


def _seen_pairs(queries: int, keys: int) -> int:
    """Count the pairs below a diagonal that starts at the top left."""
    # Top left is where `is_causal` aligns its mask, also where there are more or fewer keys than queries.
    corner = min(queries, keys)
    return corner * (corner + 1) // 2 + (queries - corner) * keys


_PAIRS: Mapping[Causal, Callable[[int, int], int]] = {
    "dense": _all_pairs,
    "half": _half_of_pairs,
    "exact": _seen_pairs,
}

# Operators that compute a whole attention. Numbers are positions of arguments in the operator's schema.
scaled_dot_product_attention = Attention(_heads_first, is_causal=5)
flash = Attention(_heads_first, is_causal=4)
efficient = Attention(_heads_first, is_causal=6)
cudnn = Attention(_heads_first, is_causal=6)
cudnn_kernel = Attention(partial(_heads_or_tokens_first, query=0, longest_key=7), 10)
# A mask is a function or a table of blocks here, and no argument is a flag. Position 0 is the query, a tensor, which
# never reads as "causal".
flex = Attention(_heads_first, is_causal=0)
flex_backward = Attention(partial(_heads_first_from_inputs, query=0), 0, _BACKWARD)
_heads_first_backward = partial(_heads_first_from_inputs, query=1)  # the gradient comes first
flash_backward = Attention(_heads_first_backward, 11, _BACKWARD)
flash_for_cpu_backward = Attention(_heads_first_backward, 7, _BACKWARD)
efficient_backward = Attention(_heads_first_backward, 11, _BACKWARD)
cudnn_backward = Attention(_heads_first_backward, 14, _BACKWARD)
cudnn_kernel_backward = Attention(partial(_heads_or_tokens_first, query=1, longest_key=12), 14, _BACKWARD)
overrideable_backward = Attention(_heads_first_backward, 13, _BACKWARD)
flash_tokens_first = Attention(partial(_tokens_first, query=0, longest_key=6), 8)
flash_inplace = Attention(partial(_tokens_first, query=1, longest_key=7), 9)
efficient_tokens_first = Attention(partial(_tokens_first, query=0, longest_key=7), 9)
varlen = Attention(partial(_tokens_first, query=0, longest_key=6), 7)
varlen_out = Attention(partial(_tokens_first, query=1, longest_key=7), 8)
flash_tokens_first_backward = Attention(partial(_tokens_first, query=1, longest_key=9), 11, _BACKWARD)
efficient_tokens_first_backward = Attention(partial(_tokens_first, query=1, longest_key=9), 14, _BACKWARD)
varlen_backward = Attention(partial(_tokens_first, query=1, longest_key=9), 10, _BACKWARD)
# Of the package flash-attn, under both namespaces that it has had.
flash_attn = Attention(partial(_tokens_first, query=0), 5)
flash_attn_packed = Attention(partial(_tokens_first, query=0, longest_key=6), 9)
flash_attn_backward = Attention(partial(_tokens_first, query=1), 11, _BACKWARD)
flash_attn_packed_backward = Attention(partial(_tokens_first, query=1, longest_key=12), 15, _BACKWARD)

PACKED: Mapping[str, int] = {
    "aten::_cudnn_attention_forward": 7,
    "aten::_cudnn_attention_backward": 12,
    "aten::_flash_attention_forward": 6,
    "aten::_flash_attention_forward_no_dropout_inplace": 7,
    "aten::_flash_attention_backward": 9,
    "aten::_efficient_attention_forward": 7,
    "aten::_efficient_attention_backward": 9,
    "torch_attn::_varlen_attn": 6,
    "torch_attn::_varlen_attn_out": 7,
    "torch_attn::_varlen_attn_backward": 9,
    **{f"{package}::_flash_attn_varlen_forward": 6 for package in ("flash_attn", "flashattn")},
    **{f"{package}::_flash_attn_varlen_backward": 12 for package in ("flash_attn", "flashattn")},
}
"""Operators that take packed sequences, with the position of the longest key's length.

The cumulative lengths of queries and keys, which an engine may read, stand three and two places before it.
"""
