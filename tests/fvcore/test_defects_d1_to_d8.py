"""What goes wrong in the original counter, D1 to D8 of `docs/from-fvcore.md`, and must not go wrong here."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback.fvcore import ActivationCountAnalysis, FlopCountAnalysis, JitModelAnalysis

# Linear(5, 7) on 3 rows, the piece that many of the models below are made of.
LINEAR = 3 * 5 * 7


def rows():
    return torch.ones(3, 5)


def flops_of(model, *inputs):
    analysis = FlopCountAnalysis(model, inputs)
    assert not analysis.unknown_ops()
    return analysis


# --- D1: `set_op_handle(..., None)` has no effect on an operator that has a handle -----------------------------------


def test_d1_none_takes_an_operator_out_of_the_count():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7).eval())
    analysis = FlopCountAnalysis(model, rows())
    assert analysis.by_operator() == {"linear": LINEAR, "batch_norm": 2 * 3 * 7}
    analysis.set_op_handle("aten::batch_norm", None)
    assert analysis.by_operator() == {"linear": LINEAR}
    assert not analysis.unsupported_ops()


# --- D2: `copy()` loses the class, ignored operators and the ancestor mode -------------------------------------------


def test_d2_a_copy_keeps_class_and_settings():
    model = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid())
    analysis = FlopCountAnalysis(model, rows(), fma=2).ancestor_mode("caller").set_op_handle("aten::sigmoid", None)
    twin = analysis.copy(new_inputs=torch.ones(11, 5))
    assert type(twin) is FlopCountAnalysis
    assert twin._ancestor_mode == "caller"
    assert twin.total() == 2 * 11 * 5 * 7
    assert not twin.unsupported_ops()
    assert analysis.total() == 2 * LINEAR


def test_d2_a_copys_handles_are_its_own():
    analysis = FlopCountAnalysis(nn.Linear(5, 7), rows())
    twin = analysis.copy().set_op_handle("aten::linear", None)
    assert (twin.total(), analysis.total()) == (0, LINEAR)


# --- D3: products, attention and recurrent layers that count 0 -------------------------------------------------------

PRODUCTS = {
    "baddbmm": (torch.baddbmm, [(2, 3, 7), (2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
    "addbmm": (torch.addbmm, [(3, 7), (2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
    "mv": (torch.mv, [(3, 7), (7,)], 3 * 7),
    "dot": (torch.dot, [(7,), (7,)], 7),
    "addmv": (torch.addmv, [(3,), (3, 7), (7,)], 3 * 7),
    "tensordot": (torch.tensordot, [(3, 5, 7), (5, 7, 11)], 3 * 5 * 7 * 11),
    "inner": (torch.inner, [(3, 7), (5, 7)], 3 * 5 * 7),
    # (3x5 @ 5x7) @ 7x11 costs 105 + 231, the other order 385 + 165.
    "linalg_multi_dot": (lambda *factors: torch.linalg.multi_dot(factors), [(3, 5), (5, 7), (7, 11)], 105 + 231),
    # The scores take 7 multiply-adds each, the values 13.
    "scaled_dot_product_attention": (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 7), (2, 3, 11, 7), (2, 3, 11, 13)],
        2 * 3 * 5 * 11 * (7 + 13),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_d3_every_product_is_counted(model_of, name):
    function, shapes, expected = PRODUCTS[name]
    analysis = flops_of(model_of(function), *map(torch.ones, shapes))
    assert analysis.by_operator() == {name: expected}


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_d3_recurrent_layers_are_counted(layer, gates):
    # 11 steps of 2 sequences; each gate has 5 outputs from 3 inputs and 5 outputs of the step before.
    assert flops_of(layer(3, 5), torch.ones(11, 2, 3)).total() == 11 * 2 * gates * 5 * (3 + 5)


def test_d3_grouped_products_are_counted(model_of):
    def grouped(x, w, ends):
        return torch._grouped_mm(x, w, offs=ends)

    x, w = torch.ones(8, 16, dtype=torch.bfloat16), torch.ones(2, 16, 24, dtype=torch.bfloat16)
    ends = torch.tensor([3, 8], dtype=torch.int32)
    assert flops_of(model_of(grouped), x, w, ends).by_operator() == {"_grouped_mm": 8 * 16 * 24}


# --- D4: the encoder layer loses its attention, or nearly everything where PyTorch fuses it --------------------------


@pytest.mark.parametrize("fast_path", [False, True])
def test_d4_an_encoder_layer_is_whole_with_and_without_the_fast_path(fast_path):
    batch, length, width, feed_forward = 3, 5, 8, 16
    layer = nn.TransformerEncoderLayer(width, 2, feed_forward, batch_first=True, dropout=0.0).train(not fast_path)
    inputs = torch.ones(batch, length, width)
    projections = batch * length * 4 * width * width
    attention = batch * length * length * (width + width)
    feed_forwards = batch * length * 2 * width * feed_forward
    norms = 2 * 5 * batch * length * width
    with torch.set_grad_enabled(not fast_path):
        analysis = flops_of(layer, inputs)
        by_module = analysis.by_module()
    assert analysis.total() == projections + attention + feed_forwards + norms
    assert by_module["self_attn"] == projections + attention
    assert by_module["linear1"] == by_module["linear2"] == feed_forwards // 2


@pytest.mark.parametrize("fast_path", [False, True])
def test_d4_multi_head_attention_is_whole_with_and_without_the_fast_path(fast_path):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(not fast_path)
    x = torch.ones(3, 5, 8)
    with torch.set_grad_enabled(not fast_path):
        total = flops_of(attention, x, x, x).total()
    assert total == 3 * 5 * 4 * 8 * 8 + 3 * 5 * 5 * (8 + 8)


# --- D5: `padding="same"` counts 0 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "positions"), [("same", 11), ("valid", 11 - 7 + 1)])
def test_d5_padding_by_name_is_counted(padding, positions):
    conv = nn.Conv1d(3, 5, 7, padding=padding)
    assert flops_of(conv, torch.ones(2, 3, 11)).by_operator() == {"conv": 2 * 5 * 3 * 7 * positions}
    assert ActivationCountAnalysis(conv, torch.ones(2, 3, 11)).by_operator() == {"conv": 2 * 5 * positions}


# --- D6: matmul with broadcasting is too low, with vectors it ends the analysis --------------------------------------

MATMULS = {
    "a batch of one against six": ((1, 4, 5), (6, 5, 3), 6 * 4 * 5 * 3),
    "batches that broadcast both ways": ((2, 1, 4, 5), (7, 5, 3), 2 * 7 * 4 * 5 * 3),
    "a matrix against a batch": ((4, 5), (6, 5, 3), 6 * 4 * 5 * 3),
    "two vectors": ((5,), (5,), 5),
    "a vector on the left": ((5,), (5, 3), 5 * 3),
    "a vector on the left of a batch": ((5,), (6, 5, 3), 6 * 5 * 3),
    "a vector on the right": ((4, 5), (5,), 4 * 5),
}


@pytest.mark.parametrize("name", MATMULS)
def test_d6_matmul_counts_what_broadcasting_makes_of_it(model_of, name):
    left, right, expected = MATMULS[name]
    analysis = flops_of(model_of(torch.matmul), torch.ones(left), torch.ones(right))
    assert analysis.by_operator() == {"matmul": expected}


# --- D7: einsum has four digits and is a float, outer products are halved, transposes charged ------------------------

EINSUMS = {
    "ij,jk->ik": ([(37, 43), (43, 61)], 37 * 43 * 61),  # 97051: five digits
    "i,j->ij": ([(6,), (7,)], 6 * 7),
    "ij->ji": ([(6, 7)], 0),
    "bij,bkj->bik": ([(2, 3, 5), (2, 7, 5)], 2 * 3 * 5 * 7),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_d7_einsum_is_exact(model_of, equation):
    shapes, expected = EINSUMS[equation]
    total = flops_of(model_of(lambda *x: torch.einsum(equation, *x)), *map(torch.ones, shapes)).total()
    assert (total, type(total)) == (expected, int)


# --- D8: only tensors go in and out ----------------------------------------------------------------------------------


class Structured(nn.Module):
    """Linear(5, 7), and a way of its own of taking and giving."""

    def __init__(self, forward):
        super().__init__()
        self.fc = nn.Linear(5, 7)
        self.way = forward

    def forward(self, *args, **kwargs):
        return self.way(self.fc, *args, **kwargs)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    length: int


def test_d8_keyword_arguments():
    model = Structured(lambda fc, x, *, scale: fc(x) * scale)
    assert FlopCountAnalysis(model, rows(), {"scale": 2.0}).total() == LINEAR
    assert FlopCountAnalysis(model, kwargs={"x": rows(), "scale": 2.0}).total() == LINEAR


@pytest.mark.parametrize("inputs", [{"x": torch.ones(3, 5)}, ({"x": torch.ones(3, 5)},)])
def test_d8_a_dict_is_one_argument(inputs):
    assert FlopCountAnalysis(Structured(lambda fc, batch: fc(batch["x"])), inputs).total() == LINEAR


@pytest.mark.parametrize(
    "result",
    [
        lambda y: y.sum().item(),
        lambda y: None,
        lambda y: (y, 3, 0.5, "text"),
        lambda y: {"logits": y, "length": 3, 7: [y]},
        lambda y: Output(y, 3),
        lambda y: [Output(y, 3)],
    ],
    ids=["a number", "nothing", "numbers beside tensors", "a dict", "a dataclass", "a list of them"],
)
def test_d8_results_of_any_kind(result):
    assert FlopCountAnalysis(Structured(lambda fc, x: result(fc(x))), rows()).total() == LINEAR


@pytest.mark.models
def test_d8_a_language_model_with_its_cache_and_output_class():
    from transformers import LlamaConfig, LlamaForCausalLM

    batch, length, width, heads, kv_heads, mlp, vocabulary = 2, 5, 16, 4, 2, 24, 29
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    model = LlamaForCausalLM(config)
    tokens = torch.ones(batch, length, dtype=torch.long)
    flops = FlopCountAnalysis(model, kwargs={"input_ids": tokens, "use_cache": True})
    key_value_width = width // heads * kv_heads
    linear = 2 * width * width + 2 * width * key_value_width + 3 * width * mlp + width * vocabulary
    assert flops.by_operator()["linear"] == batch * length * linear
    assert flops.by_operator()["scaled_dot_product_attention"] == batch * length * length * 2 * width
    assert not flops.unknown_ops()


# --- And what was right stays right ----------------------------------------------------------------------------------


def test_a_bare_analysis_counts_nothing_until_it_has_handles():
    analysis = JitModelAnalysis(nn.Linear(5, 7), rows())
    assert analysis.by_operator() == Counter()
    assert analysis.unsupported_ops() == {"aten::linear": 1}
