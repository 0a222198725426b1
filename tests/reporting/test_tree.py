from __future__ import annotations

import dataclasses

import pytest

from flopcallback.reporting import LatencySummary, ModelProfile
from flopcallback.reporting.tree import OWN, leaves, lines, module_tree, widest_work

DEEP = 100


def labels(shown):
    return [line.node.label for line in shown]


def test_identical_blocks_fold_into_one_line_that_is_their_sum(decoder):
    profile = decoder(layers=24)
    folded = next(line.node for line in lines(profile) if line.node.label == "0 … 23")
    blocks = [row for row in profile.modules if row.type == "DecoderLayer"]
    assert folded.modules == len(blocks) == 24
    assert folded.flops == sum(row.flops for row in blocks)
    assert folded.row.params == sum(row.params for row in blocks)
    assert folded.row.calls == 24


def test_the_parts_of_a_fold_are_sums_over_all_of_its_blocks(decoder):
    profile = decoder(layers=7)
    gate = next(line.node for line in lines(profile) if line.node.label == "gate_proj")
    assert gate.modules == 7
    assert gate.flops == 7 * 2 * (128 * 64 * 176)
    assert gate.path == "model.layers.0 … 6.mlp.gate_proj"


def test_children_add_up_to_their_parent_with_its_own_operators_among_them(decoder):
    for line in lines(decoder(), max_depth=DEEP):
        if line.node.children:
            assert sum(child.flops for child in line.node.children) == line.node.flops
            assert sum(child.row.macs for child in line.node.children) == line.node.row.macs


def test_own_operators_have_the_time_that_the_modules_inside_leave(container, layer, model_of):
    inside = [layer("attn.q", "Linear", flops=3), layer("attn.out", "Linear", flops=5)]
    profile = model_of("Net", [container("attn", "Attention", inside, own_flops=7), *inside])
    times = {"": 10.0, "attn": 9.0, "attn.q": 2.0, "attn.out": 4.0}

    def own_ms(**more):
        shown = lines(profile.with_latency(LatencySummary(10.0), {**times, **more}), max_depth=DEEP)
        return next(line.node.forward_ms for line in shown if line.node.label == OWN)

    assert own_ms() == pytest.approx(9 - 2 - 4)
    assert own_ms(attn=5.9) is None
    del times["attn.q"]
    assert own_ms() is None


def test_two_alike_are_not_folded(decoder):
    assert {"0", "1"} <= set(labels(lines(decoder(layers=2), max_depth=DEEP)))


def test_a_block_that_differs_deep_inside_stays_out_of_the_fold(decoder):
    profile = decoder(layers=6)
    rows = [
        dataclasses.replace(row, note="compiled") if row.path == "model.layers.5.mlp.act_fn" else row
        for row in profile.modules
    ]
    shown = labels(lines(dataclasses.replace(profile, modules=tuple(rows)), max_depth=DEEP))
    assert "0 … 4" in shown
    assert "5" in shown


def test_siblings_that_differ_by_more_than_a_number_keep_their_names(decoder):
    assert {"q", "k", "v", "o"} <= set(labels(lines(decoder(), max_depth=DEEP)))


def test_times_of_a_fold_are_summed_and_missing_ones_make_it_unknown(decoder, measured):
    profile = measured(decoder(layers=5))
    blocks = [row for row in profile.modules if row.type == "DecoderLayer"]
    folded = next(line.node for line in lines(profile) if line.node.label == "0 … 4")
    assert folded.forward_ms == pytest.approx(sum(row.forward_ms for row in blocks))
    rows = [dataclasses.replace(row, forward_ms=None) if row is blocks[2] else row for row in profile.modules]
    folded = next(
        line.node
        for line in lines(dataclasses.replace(profile, modules=tuple(rows)), max_depth=DEEP)
        if line.node.label == "0 … 4"
    )
    assert folded.forward_ms is None


def test_without_a_depth_the_tree_goes_as_deep_as_the_rows_allow(decoder):
    profile = decoder()
    full = len(lines(profile, max_depth=DEEP))
    assert len(lines(profile, max_rows=full)) == full
    shallower = lines(profile, max_rows=full - 1)
    assert max(line.depth for line in shallower) == max(line.depth for line in lines(profile, max_depth=DEEP)) - 1


def test_a_depth_is_kept_and_what_it_hides_is_counted(decoder):
    shown = lines(decoder(layers=24), max_depth=2)
    hidden = {line.node.label: line.hidden for line in shown}
    per_block = len(["input_layernorm", "self_attn", *"qkvo", "mlp", "gate", "up", "down", "act"])
    assert hidden["layers"] == 24 * (1 + per_block)
    assert max(line.depth for line in shown) == 2


def test_a_wide_model_shows_its_largest_modules_and_one_line_for_the_rest(flat):
    shown = lines(flat(2000), max_rows=40)
    assert len(shown) == 40
    rest = shown[-1].node
    assert rest.label == "… 1,962 more"
    assert rest.flops == sum(1000 * (index + 1) for index in range(1962))
    assert labels(shown)[1] == "layer1962"


def test_every_flop_is_in_exactly_one_leaf(decoder, flat):
    for profile in (decoder(), flat(50)):
        assert sum(node.flops for node in leaves(profile)) == profile.forward_flops


def test_no_modules_make_no_lines():
    assert module_tree(ModelProfile("Empty")) is None
    assert lines(ModelProfile("Empty")) == leaves(ModelProfile("Empty")) == widest_work(ModelProfile("Empty")) == []


def test_the_chart_of_a_small_net_shows_its_layers_and_neither_root_nor_idle_ones(lenet):
    assert [node.path for node in widest_work(lenet)] == ["conv2", "fc1", "conv1", "fc2", "fc3"]


def test_the_chart_of_a_decoder_opens_the_stack_of_blocks(decoder):
    paths = [node.path for node in widest_work(decoder())]
    assert paths[0] == f"model.layers.0 … 23.self_attn {OWN}"
    assert "model.layers.0 … 23.mlp.gate_proj" in paths
    assert not {"", "model", "model.layers", "model.layers.0 … 23"} & set(paths)


@pytest.mark.parametrize("count", [1, 19, 20, 21, 400, 2000])
def test_the_chart_holds_all_flops_in_at_most_twenty_bars(flat, count):
    profile = flat(count)
    nodes = widest_work(profile)
    assert len(nodes) <= 20
    assert sum(node.flops for node in nodes) == profile.forward_flops
