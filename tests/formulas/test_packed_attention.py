"""Attention over packed sequences: exact where lengths were read or follow from shapes, else at most that much."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis, FlopHook
from flopcallback.formulas import attention
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value
from flopcallback.formulas.registry import COUNTED, Family, lookup
from flopcallback.on_demand import profile_call
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.reporting.caption import footer, headline

HEADS, WIDTH = 2, 8
LENGTHS = [3, 5, 1]
STARTS = [0, 3, 8, 9]
TOKENS, LONGEST = sum(LENGTHS), max(LENGTHS)
PAIRS = sum(length * length for length in LENGTHS)
PER_PAIR = HEADS * (WIDTH + WIDTH)
NAME = "flash_attn::_flash_attn_varlen_forward"


@torch.library.custom_op(NAME, mutates_args=())
def packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """What the package flash-attn calls so, which needs a GPU."""
    return torch.zeros_like(q)


class Packed(nn.Module):
    def __init__(self, lengths=LENGTHS):
        super().__init__()
        self.starts = torch.tensor([0, *lengths]).cumsum(0).int()
        self.longest = max(lengths)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = x * self.scale
        with torch.no_grad():
            mixed = packed(x, x, x, self.starts, self.starts, self.longest, self.longest, 0.0, 1.0, False)
        return mixed + x


def tokens(count=TOKENS):
    return torch.ones(count, HEADS, WIDTH)


@pytest.mark.parametrize("engine", ["auto", "trace", "dispatch"])
def test_lengths_that_are_read_make_it_exact(engine):
    flops = FlopCountAnalysis(nn.Sequential(Packed()), tokens(), engine=engine)
    assert flops.by_module()["0"] == PAIRS * PER_PAIR
    assert not flops.is_upper_bound
    assert not flops.is_lower_bound


def test_records_have_no_values_so_the_longest_sequence_is_a_bound_that_says_so(caplog):
    flops = FlopCountAnalysis(nn.Sequential(Packed()), tokens(), engine="observer")
    assert flops.total() == TOKENS * LONGEST * PER_PAIR
    assert flops.is_upper_bound
    assert flops.upper_bounds() == {"": {NAME}, "0": {NAME}}
    assert not flops.is_lower_bound
    assert repr(flops) == f"FlopCountAnalysis(Sequential): <= {TOKENS * LONGEST * PER_PAIR:,}"
    assert caplog.messages == [f"The total is an upper bound: the work of {NAME} depends on data"]


@pytest.mark.parametrize("engine", ["trace", "dispatch", "observer"])
def test_equal_lengths_show_in_the_shapes(engine):
    flops = FlopCountAnalysis(Packed([4, 4, 4]), tokens(12), engine=engine)
    assert flops.total() == 3 * 4 * 4 * PER_PAIR
    assert not flops.is_upper_bound


def test_a_profile_says_which_way_in_text_and_json():
    model = Packed()
    with torch.device("meta"):
        model.starts = torch.empty(4, dtype=torch.int)
        x = tokens()
    model = model.to("meta")
    profile = profile_call(model, x)
    most = 2 * TOKENS * LONGEST * PER_PAIR
    assert profile.forward_flops == most
    assert profile.upper_bounds == (NAME,)
    assert profile.bound == "<= "
    assert headline(profile).startswith("Packed, one call: <= ")
    assert f"at most: the work of {NAME} depends on data, and counts as its maximum" in footer(profile)
    assert ModelProfile.from_json(json.dumps(json.loads(profile.to_json()))).bound == "<= "


@packed.register_fake
def _(q, k, v, *rest):
    return torch.empty_like(q)


def test_a_causal_mask_counts_in_each_sequence(tensor, op_call):
    query, starts = tensor(TOKENS, HEADS, WIDTH), tensor(len(STARTS), dtype=torch.int32)
    known = Value(starts.shape, starts.dtype, starts.device, constant=STARTS)
    formula = attention.with_causal(COUNTED[Family.ATTENTION], "exact")[NAME]
    call = op_call(NAME, query, query, query, known, known, LONGEST, LONGEST, 0.0, 1.0, True, out=query)
    seen = sum(length * (length + 1) // 2 for length in LENGTHS)
    assert formula(call) == Cost(fma=seen * PER_PAIR, elementwise=6 * HEADS * seen)
    call = op_call(NAME, query, query, query, starts, starts, LONGEST, LONGEST, 0.0, 1.0, True, out=query)
    assert formula(call).is_upper_bound
    assert formula(call).fma >= seen * PER_PAIR


@pytest.mark.parametrize(("operator", "longest_key"), attention.PACKED.items())
def test_every_operator_that_packs_reads_its_lengths_from_the_same_places(operator, longest_key, tensor, op_call):
    query, starts = tensor(TOKENS, HEADS, WIDTH), tensor(len(STARTS), dtype=torch.int32)
    known = Value(starts.shape, starts.dtype, starts.device, constant=STARTS)
    # The gradient or the result comes before the query; those after the lengths matter to nobody.
    arguments = [*[query] * (longest_key - 3), known, known, LONGEST, LONGEST, *[False] * 20]
    cost = lookup(operator).formula(op_call(operator, *arguments, out=query))
    per_pair = HEADS * WIDTH * (5 if "backward" in operator else 2)
    assert (cost.fma, cost.is_upper_bound) == (PAIRS * per_pair, False)


@pytest.mark.parametrize(("name", "products"), [("forward", 2), ("backward", 5)])
def test_the_plain_kernels_of_the_package_have_tokens_first(name, products, tensor, op_call):
    query, key = tensor(2, 5, 6, 16), tensor(2, 11, 6, 16)
    before = [query] if name == "backward" else []
    call = op_call(f"flash_attn::_flash_attn_{name}", *before, query, key, key, *[False] * 14, out=query)
    assert lookup(call.operator).formula(call).fma == 2 * 6 * 5 * 11 * products * 16


def test_a_training_has_every_digit_while_lengths_are_read():
    def train(*, counted):
        model = Packed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hook = FlopHook(model, optimizer, summary=False) if counted else None
        for _ in range(3):
            model(tokens()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if hook is not None:
            hook.close()
        return model.scale.item(), hook

    plain, _ = train(counted=False)
    watched, hook = train(counted=True)
    assert plain == watched
    assert hook.metrics()["flops/forward"] == 2 * PAIRS * PER_PAIR


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_sparse_matrix_that_reduces_takes_a_multiply_add_per_stored_element(reduction):
    dense = torch.zeros(4, 5)
    dense[0, 1] = dense[2, 3] = dense[3, 0] = 2.0
    sparse = dense.to_sparse_csr()
    flops = FlopCountAnalysis(lambda s, d: torch.sparse.mm(s, d, reduction), (sparse, torch.ones(5, 7)))
    assert flops.total() == 3 * 7
    assert not flops.is_lower_bound


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_product_sampled_at_stored_elements_is_a_dot_product_each():
    pattern = torch.eye(4, 7).to_sparse_csr()
    factors = torch.ones(4, 5), torch.ones(5, 7)
    assert FlopCountAnalysis(torch.sparse.sampled_addmm, (pattern, *factors)).total() == 4 * 5


def test_the_gradients_of_such_a_product_take_as_many_each(tensor, op_call):
    sparse, dense = Value(dtype=torch.float32, stored=3), tensor(5, 7)
    for mask, gradients in ([True, True], 2), ([False, True], 1):
        operator = "aten::_sparse_mm_reduce_impl_backward"
        call = op_call(operator, sparse, tensor(4, 7), dense, "sum", tensor(4, 7), mask)
        assert lookup(operator).formula(call) == Cost(fma=gradients * 3 * 7)
    call = op_call("aten::_sparse_mm_reduce_impl", sparse, dense, "amax", out=[tensor(4, 7), tensor(4, 7)])
    assert lookup(call.operator).formula(call) == Cost(other=3 * 7)
    call = op_call("aten::_sparse_mm_reduce_impl", sparse, dense, None, out=[tensor(4, 7), tensor(4, 7)])
    with pytest.raises(ValueError, match="reduction"):
        lookup(call.operator).formula(call)
