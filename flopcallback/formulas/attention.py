"""Attention: per head, a score for each (query, key) pair, `width` multiply-adds each, and `value_width` to apply it.

Grouped queries change nothing: every query head attends, whichever keys it shares. Batch and heads of the keys may be
broadcast. The scale and the softmax are elementwise work; the mask, dropout and layout copies cost nothing.

**Causal masks.** By default every pair counts, masked or not: that is what PyTorch's own counter and the unfused
operators say, and what a mask given as a tensor would cost. `with_causal` gives the formulas that count fewer pairs
where the operator is told `is_causal=True`:

- `"half"`: half of the pairs, rounded up; what many papers do.
- `"exact"`: query `i` sees the keys `0 ... i`: the sum of `min(i + 1, keys)` over the queries.

**Backward.** A fused backward keeps no scores and computes them again: the three products with the queries' width are
scores, gradient of queries, gradient of keys; the two with the values' width, gradient of weights, gradient of values.

**Packed sequences** (`_flash_attention_forward` with cumulative lengths, `varlen_attn`): their lengths are data. Every
query counts as meeting as many keys as the longest sequence has: exact for equal lengths, an upper bound otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

from flopcallback.formulas.arithmetic import shape_of
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.normalization import MEAN_AND_VARIANCE, NORMALIZE, SCALE

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall

__all__ = [
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
    """`heads` is batch times query heads; `score_heads` is smaller where only the values have a batch."""

    score_heads: int
    heads: int
    queries: int
    keys: int
    width: int
    value_width: int


class _Work(NamedTuple):
    """Per pair: products with the queries' width, products with the values' width, elementwise operations."""

    width: int
    value_width: int
    elementwise: int


_SCALE_AND_SOFTMAX = 1 + 5
_THEIR_BACKWARD = 1 + 4
_FORWARD = _Work(1, 1, _SCALE_AND_SOFTMAX)
_BACKWARD = _Work(3, 2, _SCALE_AND_SOFTMAX + _THEIR_BACKWARD)


@dataclass(frozen=True, slots=True)
class Attention:
    """The formula of an operator that does a whole attention: a function of the call, with its causal convention.

    Attributes:
        sizes: how the operator's arguments give the sizes.
        is_causal: which argument says that the mask is causal.
        work: what is done per pair.
        causal: which pairs count under a causal mask.
    """

    sizes: Callable[[OpCall], _Sizes]
    is_causal: int
    work: _Work = _FORWARD
    causal: Causal = "dense"

    def __call__(self, call: OpCall) -> Cost:
        """The cost of one call."""
        score_heads, heads, queries, keys, width, value_width = self.sizes(call)
        pairs = _PAIRS[self.causal if call.inputs[self.is_causal].constant else "dense"](queries, keys)
        return Cost(
            fma=pairs * (self.work.width * score_heads * width + self.work.value_width * heads * value_width),
            elementwise=pairs * self.work.elementwise * score_heads,
        )


def with_causal(formulas: Mapping[str, Callable[[OpCall], Cost]], causal: Causal) -> dict[str, Attention]:
    """The attention formulas among `formulas`, with another convention for causal masks.

    Args:
        formulas: operator name -> formula, such as `registry.COUNTED[Family.ATTENTION]`.
        causal: `"dense"`, `"half"` or `"exact"`, as the module's text says.

    Raises:
        ValueError: there is no such convention.
    """
    if causal not in _PAIRS:
        raise ValueError(f"with_causal: causal is {causal!r}, expected one of {', '.join(map(repr, _PAIRS))}")
    return {
        name: replace(formula, causal=causal) for name, formula in formulas.items() if isinstance(formula, Attention)
    }


def multi_head_attention(call: OpCall) -> Cost:
    """`nn.MultiheadAttention` on the fast path: three projections in, attention, one projection out.

    `(query: [batch, queries, embed], key, value, embed, heads, weights in: [3 embed, embed], ...)`; a component of a
    nested tensor has no batch.
    """
    query, key, _, _, heads = call.inputs[:5]
    *batch, queries, embed = shape_of(query)
    *_, keys, _ = shape_of(key)
    return _multi_head_attention(prod(batch), queries, keys, embed, heads.constant)


def transformer_encoder_layer(call: OpCall) -> Cost:
    """`nn.TransformerEncoderLayer` on the fast path: self-attention, two linear layers, two layer norms, two residuals.

    `(source: [batch, tokens, embed], embed, heads, ..., [14] first linear weight: [hidden, embed], ...)`.
    """
    source, _, heads = call.inputs[:3]
    *batches, tokens, embed = shape_of(source)
    batch = prod(batches)
    hidden, _ = shape_of(call.inputs[14])
    norms = 2 * (MEAN_AND_VARIANCE + NORMALIZE + SCALE) * batch * tokens * embed
    linears = 2 * batch * tokens * embed * hidden
    activation_and_residuals = batch * tokens * (hidden + 2 * embed)
    attention = _multi_head_attention(batch, tokens, tokens, embed, heads.constant)
    return attention + Cost(fma=linears, other=norms, elementwise=activation_and_residuals)


def _multi_head_attention(batch: int, queries: int, keys: int, embed: int, heads: int) -> Cost:
    projections = batch * (queries + keys + keys + queries) * embed * embed
    scores_and_values = 2 * batch * queries * keys * embed
    return Cost(fma=projections + scores_and_values, elementwise=batch * heads * queries * keys * _SCALE_AND_SOFTMAX)


def _heads_first(call: OpCall) -> _Sizes:
    """`query: [..., heads, queries, width]`, `key: [..., keys, width]`, `value: [..., keys, value_width]`.

    The result has the batch and the heads of all three.
    """
    (*query_batch, queries, width), (*key_batch, keys, _) = map(shape_of, call.inputs[:2])
    *batch, _, value_width = shape_of(call.outputs[0])
    return _Sizes(_widest(query_batch, key_batch), prod(batch), queries, keys, width, value_width)


def _tokens_first(call: OpCall, *, query: int, longest_key: int) -> _Sizes:
    """`query: [batch, queries, heads, width]`, or packed: `[tokens, heads, width]` and cumulative lengths.

    The lengths of queries and keys stand three and two places before the length of the longest key.
    """
    (*batch, queries, heads, width), (*_, keys, _, _), (*_, value_width) = map(shape_of, call.inputs[query : query + 3])
    if call.inputs[longest_key - 3].is_tensor:
        keys = call.inputs[longest_key].constant
    return _Sizes(prod(batch) * heads, prod(batch) * heads, queries, keys, width, value_width)


def _rank_tells(call: OpCall, *, query: int, longest_key: int) -> _Sizes:
    """`query: [batch, heads, queries, width]`, or packed as `[tokens, heads, width]`."""
    if len(shape_of(call.inputs[query])) == 4:
        return _named_first(call, query=query)
    return _tokens_first(call, query=query, longest_key=longest_key)


def _named_first(call: OpCall, *, query: int) -> _Sizes:
    """`query: [..., heads, queries, width]`, key and value behind it; only heads of keys and values are broadcast."""
    (*batch, queries, width), (*_, keys, _), (*_, value_width) = map(shape_of, call.inputs[query : query + 3])
    return _Sizes(prod(batch), prod(batch), queries, keys, width, value_width)


def _widest(*batches: Iterable[int]) -> int:
    """Elements of batches broadcast together, where fewer heads of keys are shared among those of queries."""
    aligned = zip_longest(*(reversed(tuple(batch)) for batch in batches), fillvalue=1)
    return prod(0 if 0 in sizes else max(sizes) for sizes in aligned)


def _all_pairs(queries: int, keys: int) -> int:
    return queries * keys


def _half_of_pairs(queries: int, keys: int) -> int:
    return (queries * keys + 1) // 2


def _seen_pairs(queries: int, keys: int) -> int:
    """The mask of `is_causal` is aligned at the top left, also where there are more or fewer keys than queries."""
    corner = min(queries, keys)
    return corner * (corner + 1) // 2 + (queries - corner) * keys


_PAIRS: Mapping[Causal, Callable[[int, int], int]] = {
    "dense": _all_pairs,
    "half": _half_of_pairs,
    "exact": _seen_pairs,
}

# Every operator that does a whole attention, by where its arguments stand.
scaled_dot_product_attention = Attention(_heads_first, is_causal=5)
flash = Attention(_heads_first, is_causal=4)
efficient = Attention(_heads_first, is_causal=6)
cudnn = Attention(_heads_first, is_causal=6)
cudnn_kernel = Attention(partial(_rank_tells, query=0, longest_key=7), 10)
# A mask is a function there, or a table of blocks: a tensor in the place of a flag, so never "causal".
flex = Attention(_heads_first, is_causal=0)
flex_backward = Attention(partial(_named_first, query=0), 0, _BACKWARD)
_heads_first_backward = partial(_named_first, query=1)  # behind the gradient
flash_backward = Attention(_heads_first_backward, 11, _BACKWARD)
flash_for_cpu_backward = Attention(_heads_first_backward, 7, _BACKWARD)
efficient_backward = Attention(_heads_first_backward, 11, _BACKWARD)
cudnn_backward = Attention(_heads_first_backward, 14, _BACKWARD)
cudnn_kernel_backward = Attention(partial(_rank_tells, query=1, longest_key=12), 14, _BACKWARD)
overrideable_backward = Attention(_heads_first_backward, 13, _BACKWARD)
flash_tokens_first = Attention(partial(_tokens_first, query=0, longest_key=6), 8)
flash_inplace = Attention(partial(_tokens_first, query=1, longest_key=7), 9)
efficient_tokens_first = Attention(partial(_tokens_first, query=0, longest_key=7), 9)
varlen = Attention(partial(_tokens_first, query=0, longest_key=6), 7)
varlen_out = Attention(partial(_tokens_first, query=1, longest_key=7), 8)
flash_tokens_first_backward = Attention(partial(_tokens_first, query=1, longest_key=9), 11, _BACKWARD)
efficient_tokens_first_backward = Attention(partial(_tokens_first, query=1, longest_key=9), 14, _BACKWARD)
varlen_backward = Attention(partial(_tokens_first, query=1, longest_key=9), 10, _BACKWARD)
