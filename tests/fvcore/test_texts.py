"""Tables and texts, line by line."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from flopcallback import BytesCountAnalysis
from flopcallback.fvcore import (
    ActivationCountAnalysis,
    FlopCountAnalysis,
    JitModelAnalysis,
    flop_count_str,
    flop_count_table,
    parameter_count,
    parameter_count_table,
)


class Branch(nn.Module):
    """On 3 rows: 3 * 50 * 7 = 1050 FLOPs, 3 * 7 activations; 50 * 7 + 7 = 357 parameters, and 3 * 2 unused ones."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(50, 7), nn.ReLU())
        self.unused = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.inner(x)


def lines(text):
    return [line.rstrip() for line in text.splitlines()]


def test_a_table_merges_single_children_and_leaves_cells_of_uncalled_modules_empty():
    flops = FlopCountAnalysis(Branch(), torch.ones(3, 50))
    assert lines(flop_count_table(flops, show_param_shapes=False)) == [
        "| module   | #parameters   | #flops   |",
        "|:---------|:--------------|:---------|",
        "| model    | 0.363K        | 1.05K    |",
        "|  inner.0 |  0.357K       |  1.05K   |",
        "|  unused  |  6            |          |",
    ]


def test_a_table_with_activations_and_the_shapes_of_parameters():
    inputs = torch.ones(3, 50)
    flops, activations = FlopCountAnalysis(Branch(), inputs), ActivationCountAnalysis(Branch(), inputs)
    assert lines(flop_count_table(flops, max_depth=2, activations=activations)) == [
        "| module           | #parameters or shape   | #flops   | #activations   |",
        "|:-----------------|:-----------------------|:---------|:---------------|",
        "| model            | 0.363K                 | 1.05K    | 21             |",
        "|  inner.0         |  0.357K                |  1.05K   |  21            |",
        "|   inner.0.weight |   (7, 50)              |          |                |",
        "|   inner.0.bias   |   (7,)                 |          |                |",
        "|  unused          |  6                     |          |                |",
        "|   unused.weight  |   (2, 3)               |          |                |",
    ]


def test_the_models_text_with_figures():
    text = flop_count_str(FlopCountAnalysis(Branch(), torch.ones(3, 50)))
    head, *model = lines(text)
    assert head.startswith("N/A indicates a possibly missing statistic")
    assert model == [
        "Branch(",
        "  #params: 0.36K, #flops: 1.05K",
        "  (inner): Sequential(",
        "    #params: 0.36K, #flops: 1.05K",
        "    (0): Linear(",
        "      in_features=50, out_features=7, bias=True",
        "      #params: 0.36K, #flops: 1.05K",
        "    )",
        "    (1): ReLU()",
        "  )",
        "  (unused): Linear(",
        "    in_features=3, out_features=2, bias=False",
        "    #params: 6, #flops: N/A",
        "  )",
        ")",
    ]


def test_the_models_text_shows_an_absent_child_as_none():
    model = nn.Sequential(nn.Linear(5, 7))
    model.register_module("absent", None)
    text = flop_count_str(FlopCountAnalysis(lambda x: model[0](x), torch.ones(3, 5)))
    assert "  (absent): None" in text


def test_figures_of_a_function_stand_under_the_names_of_its_modules():
    encoder, head = nn.Linear(5, 7), nn.Linear(7, 11)

    def predict(x):
        return head(encoder(x))

    flops = FlopCountAnalysis(predict, torch.ones(3, 5))
    # 3 * 5 * 7 + 3 * 7 * 11 = 336; parameters (5 * 7 + 7) + (7 * 11 + 11) = 130
    assert lines(flop_count_table(flops, show_param_shapes=False)) == [
        "| module   | #parameters   | #flops   |",
        "|:---------|:--------------|:---------|",
        "| model    | 0.13K         | 0.336K   |",
        "|  encoder |  42           |  0.105K  |",
        "|  head    |  88           |  0.231K  |",
    ]


def test_a_parameter_of_two_modules_counts_under_the_first():
    model = nn.ModuleDict({"embedding": nn.Embedding(11, 3), "head": nn.Linear(3, 11)})
    model["head"].weight = model["embedding"].weight
    counts = parameter_count(model)
    assert counts == {"": 11 * 3 + 11, "embedding": 33, "embedding.weight": 33, "head": 11, "head.bias": 11}
    assert counts["nobody"] == 0


def test_a_parameter_table_shows_totals_and_shapes():
    assert lines(parameter_count_table(nn.Sequential(nn.Linear(50, 70), nn.PReLU()))) == [
        "| name       | #elements or shape   |",
        "|:-----------|:---------------------|",
        "| model      | 3.6K                 |",  # 50 * 70 + 70 + 1 = 3571
        "|  0         |  3.6K                |",
        "|   0.weight |   (70, 50)           |",
        "|   0.bias   |   (70,)              |",
        "|  1         |  1                   |",
        "|   1.weight |   (1,)               |",
    ]


def test_a_parameter_table_of_a_model_without_parameters_has_one_row():
    assert lines(parameter_count_table(nn.ReLU()))[2:] == ["| model  |                    0 |"]


def test_depth_limits_the_rows():
    table = parameter_count_table(nn.Sequential(nn.Sequential(nn.Linear(2, 3))), max_depth=1)
    assert [line.split()[1] for line in lines(table)[2:]] == ["model", "0"]


class Exponential(nn.Module):
    """An operator that nobody has a count for, and no other."""

    def forward(self, x):
        return x + torch.linalg.matrix_exp(x[:, :3]).sum()


def with_an_unknown_operator():
    """On 3 rows: 3 * 50 * 7 = 1050 FLOPs, those of the exponential, and 3 * 7 * 2 = 42."""
    return nn.Sequential(nn.Linear(50, 7), nn.Sequential(Exponential(), nn.ReLU()), nn.Linear(7, 2))


def test_a_table_shows_where_a_total_is_a_lower_bound():
    flops = FlopCountAnalysis(with_an_unknown_operator(), torch.ones(3, 50))
    assert lines(flop_count_table(flops, show_param_shapes=False)) == [
        "| module   | #parameters   | #flops    |",
        "|:---------|:--------------|:----------|",
        "| model    | 0.373K        | >= 1.092K |",
        "|  0       |  0.357K       |  1.05K    |",
        "|  2       |  16           |  42       |",
        "|  1.0     |               |  >= 0     |",
    ]


def test_a_table_of_a_model_in_which_nothing_could_be_counted_does_not_say_zero():
    (row,) = lines(flop_count_table(FlopCountAnalysis(Exponential(), torch.ones(3, 50))))[2:]
    assert row.split("|")[1].strip() == "model"
    assert row.split("|")[3].strip() == ">= 0"


def test_the_models_text_shows_where_a_total_is_a_lower_bound():
    text = flop_count_str(FlopCountAnalysis(with_an_unknown_operator(), torch.ones(3, 50)))
    assert lines(text) == [
        "Sequential(",
        "  #params: 0.37K, #flops: >= 1.09K",
        "  (0): Linear(",
        "    in_features=50, out_features=7, bias=True",
        "    #params: 0.36K, #flops: 1.05K",
        "  )",
        "  (1): Sequential(",
        "    #params: 0, #flops: >= 0",
        "    (0): Exponential(#params: 0, #flops: >= 0)",
        "    (1): ReLU()",
        "  )",
        "  (2): Linear(",
        "    in_features=7, out_features=2, bias=True",
        "    #params: 16, #flops: 42",
        "  )",
        ")",
    ]


@pytest.mark.parametrize("text_of", [flop_count_table, flop_count_str])
@pytest.mark.parametrize("every_operator", [None, True])
def test_a_text_that_runs_the_count_logs_the_line_about_a_lower_bound_and_no_other(caplog, text_of, every_operator):
    flops = FlopCountAnalysis(with_an_unknown_operator(), torch.ones(3, 50))
    if every_operator:
        flops.unsupported_ops_warnings(True)
    with caplog.at_level(logging.INFO):
        text_of(flops)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "lower bound" in line
    assert "matrix_exp" in line


def headers_of(table):
    return [cell.strip() for cell in lines(table)[0].strip("|").split("|")]


def test_a_table_says_what_was_counted():
    model, inputs = nn.Linear(5, 7), torch.ones(3, 5)
    flops, moved = FlopCountAnalysis(model, inputs), BytesCountAnalysis(model, inputs)
    own = JitModelAnalysis(model, inputs, formula=lambda call: len(call.outputs))
    assert headers_of(flop_count_table(flops, activations=moved))[2:] == ["#flops", "#bytes"]
    assert headers_of(flop_count_table(moved))[2:] == ["#bytes"]
    assert headers_of(flop_count_table(ActivationCountAnalysis(model, inputs)))[2:] == ["#activations"]
    assert headers_of(flop_count_table(own))[2:] == ["#count"]


def test_the_models_text_says_what_was_counted():
    model, inputs = nn.Linear(5, 7), torch.ones(3, 5)
    # 4 bytes for each of 3 * 5 inputs, 5 * 7 weights, 7 biases and 3 * 7 outputs: 4 * 78 = 312
    text = flop_count_str(BytesCountAnalysis(model, inputs), ActivationCountAnalysis(model, inputs))
    assert "#params: 42, #bytes: 0.31K, #acts: 21" in text


def test_two_counts_of_one_kind_have_a_column_each():
    model, inputs = nn.Linear(50, 7), torch.ones(3, 50)
    table = flop_count_table(FlopCountAnalysis(model, inputs), activations=FlopCountAnalysis(model, inputs, fma=2))
    assert headers_of(table)[2:] == ["#flops", "#flops (2)"]
    assert [cell.strip() for cell in lines(table)[2].split("|")[3:5]] == ["1.05K", "2.1K"]


@pytest.mark.parametrize("text_of", [flop_count_table, flop_count_str])
@pytest.mark.parametrize("given", [nn.Linear(5, 7), 105], ids=["a model", "a total"])
def test_what_is_no_count_is_refused_with_what_to_pass(text_of, given):
    with pytest.raises(TypeError) as refusal:
        text_of(given)
    assert str(refusal.value) == (
        f"{text_of.__name__}: flops is of type {type(given).__name__}, "
        "expected a count: FlopCountAnalysis(model, inputs)"
    )


def test_activations_that_are_no_count_are_refused_by_their_name():
    flops = FlopCountAnalysis(nn.Linear(5, 7), torch.ones(3, 5))
    with pytest.raises(TypeError, match="activations is of type int, expected a count: ActivationCountAnalysis"):
        flop_count_table(flops, activations=21)


def test_an_analysis_of_handles_alone_is_headed_as_the_original_heads_it():
    analysis = JitModelAnalysis(nn.Linear(3, 5), torch.ones(2, 3)).set_op_handle("aten::linear", lambda i, o: 30)
    assert headers_of(flop_count_table(analysis))[2:] == ["#flops"]
