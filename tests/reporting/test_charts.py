from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from flopcallback.profile.times import OperatorTime
from flopcallback.reporting import LatencySummary, ModelProfile, latency_chart, module_chart

pytestmark = pytest.mark.tensorboard


def texts(figure):
    """All that can be read in the figure, drawn once so that it has its labels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def bars(figure):
    return [patch.get_width() for patch in figure.axes[0].patches if patch.get_height() == pytest.approx(0.72)]


def bars_above_time(figure):
    return [patch.get_width() for patch in figure.axes[0].patches if patch.get_height() > 0.4]


def test_bars_are_as_long_as_the_flops_and_carry_name_and_share(lenet):
    figure = module_chart(lenet)
    assert bars(figure) == pytest.approx([flops / 292_032 for flops in (292_032, 138_240, 97_200, 20_160, 1_680)])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["conv2", "fc1", "conv1", "fc2", "fc3"]
    assert "292 k   53.2 %" in texts(figure)


def test_thin_bars_are_the_shares_of_the_time_on_the_scale_of_the_flops(model_of, layer):
    profile = model_of("Net", [layer("conv", "Conv2d", flops=7), layer("fc", "Linear", flops=3)])
    figure = module_chart(profile.with_latency(LatencySummary(10.0), {"": 10.0, "conv": 2.0, "fc": 8.0}))
    wide = bars_above_time(figure)
    thin = [patch.get_width() for patch in figure.axes[0].patches if patch.get_height() < 0.4]
    assert wide == pytest.approx([0.7 / 0.8, 0.3 / 0.8])
    assert thin == pytest.approx([0.2 / 0.8, 1])
    assert "7   70.0 %   2.00 ms   20.0 %" in texts(figure)
    assert "share of the time" in texts(figure)


def test_a_long_headline_is_whole_whatever_the_names_leave_to_the_bars(model_of, layer):
    profile = model_of("N" * 31, [layer("x" * 48, "Linear", flops=7)])
    figure = module_chart(profile)
    figure.canvas.draw()
    headline = next(text for text in figure.axes[0].texts if text.get_text().startswith("NNN"))
    assert headline.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("name", ["x", "efficientnet_encoder_blocks_14_expansion_conv_of_"])
def test_figures_behind_bars_are_whole_whatever_the_names_leave(model_of, layer, measured, name):
    rows = [layer(f"{name}{'abcdefghijklmnopqrstuvwxyz'[index]}", "Linear", flops=9000 + index) for index in range(26)]
    figure = module_chart(measured(model_of("Net", rows)))
    figure.canvas.draw()
    assert max(text.get_window_extent().x1 for text in figure.axes[0].texts) <= figure.bbox.x1
    assert min(bars_above_time(figure)) > 0.99


def test_names_in_the_scatter_keep_their_ends_and_stand_apart(container, layer, model_of, measured):
    rows = [layer(f"stack.of.many.levels.{index}.depthwise_conv", "Conv2d", flops=10_000 + index) for index in range(5)]
    figure = latency_chart(measured(model_of("Net", [container("stack", "Stack", rows), *rows])))
    figure.canvas.draw()
    names = [text for text in figure.axes[0].texts if text.get_text().endswith("_conv")]
    assert {text.get_text() for text in names} == {f"…of.many.levels.{index}.depthwise_conv" for index in range(5)}
    boxes = [text.get_window_extent() for text in names]
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_modules_of_one_type_have_one_colour_and_the_legend_names_it(lenet):
    figure = module_chart(lenet)
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    conv2, fc1, conv1, fc2, fc3 = colours
    assert conv2 == conv1 != fc1 == fc2 == fc3
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["Conv2d", "Linear"]


def test_a_rest_that_dwarfs_the_named_modules_is_cut_and_says_so(flat):
    figure = module_chart(flat(2000))
    assert max(bars(figure)) == 1
    assert any("(bar cut)" in text for text in texts(figure))


def test_a_lower_bound_is_marked_at_its_bar(lenet):
    rows = [dataclasses.replace(row, unknown_calls=1) if row.path == "fc1" else row for row in lenet.modules]
    assert ">= 138 k   25.2 %" in texts(module_chart(dataclasses.replace(lenet, modules=tuple(rows))))


@pytest.mark.parametrize("name", ["a$b_{c", "卷积层", "x" * 300, "a\nb", "\\frac{1}", "🙂"])
def test_any_name_can_be_drawn(model_of, layer, measured, name):
    profile = measured(model_of("Net", [layer(name, name, flops=10_007), layer("fc", "Linear", flops=101)]))
    texts(module_chart(profile))
    texts(latency_chart(profile))


def test_a_profile_without_flops_says_so():
    assert "no FLOPs were counted" in texts(module_chart(ModelProfile("Nothing")))


def test_the_scatter_has_a_point_per_innermost_measured_module(lenet, measured):
    figure = latency_chart(measured(lenet))
    points = figure.axes[0].collections[0].get_offsets()
    assert len(points) == 7
    assert [97_200, pytest.approx(0.1 + 0.0001 * 97.2)] in points.tolist()


def test_a_module_is_innermost_if_nothing_below_it_was_measured(container, layer, model_of):
    inside = [layer("stack.0", "Linear", flops=11), layer("stack.1", "Linear", flops=13)]
    rows = [container("stack", "ModuleList", inside), *inside]
    profile = model_of("Net", rows)
    times = {"": 3.0, "stack.0": 1.0}
    timed = [dataclasses.replace(row, forward_ms=times.get(row.path)) for row in profile.modules]
    figure = latency_chart(dataclasses.replace(profile, modules=tuple(timed)))
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[11.0, 1.0]]


def test_modules_without_flops_stand_at_a_zero_left_of_all_others(lenet, measured):
    figure = latency_chart(measured(lenet))
    points = figure.axes[0].collections[0].get_offsets().tolist()
    least = min(place for place, _ in points)
    assert [place for place, _ in points].count(least) == 2
    assert least < 1_680
    assert "0" in texts(figure)


def test_what_takes_the_most_time_has_its_name(lenet, measured):
    assert "conv2" in texts(latency_chart(measured(lenet)))


def test_peak_and_memory_have_lines_where_they_are_known(lenet, measured):
    config = {**lenet.config, "flops.peak_tflops": 0.005, "flops.peak_gb_per_s": 0.25}
    # All seven layers move 549,312 / 8 bytes together: 8 FLOPs per byte, and so 2 of the 5 GFLOP/s.
    rows = [dataclasses.replace(row, bytes=row.flops // 8) for row in lenet.modules]
    profile = measured(dataclasses.replace(lenet, modules=tuple(rows), config=config))
    assert {"peak", "memory, 8.00\nFLOPs/byte"} <= set(texts(latency_chart(profile)))
    assert not {"peak", "memory, 8.00\nFLOPs/byte"} & set(texts(latency_chart(measured(lenet))))


def test_a_modules_own_operator_has_its_name_in_the_scatter(decoder):
    profile = decoder(3)
    times = [OperatorTime(row.path, "aten::linear", "forward", 1.0) for row in profile.modules if row.type == "Linear"]
    times += [OperatorTime("model.layers.0.self_attn", "aten::scaled_dot_product_attention", "forward", 9.0, 1, 7)]
    figure = latency_chart(dataclasses.replace(profile, operator_times=tuple(times)))
    assert "self_attn: scaled_dot_product_attention" in texts(figure)
    assert "training step, ms" in texts(figure)


def test_a_scatter_without_times_is_refused(lenet):
    with pytest.raises(ValueError, match="no module of this profile has a time"):
        latency_chart(lenet)


def test_times_that_are_no_numbers_are_left_out(lenet):
    profile = lenet.with_latency(LatencySummary(float("nan")), {"conv1": float("nan"), "fc1": float("inf"), "fc2": 0.5})
    assert latency_chart(profile).axes[0].collections[0].get_offsets().tolist() == [[2 * 120 * 84, 0.5]]


def test_lines_of_slow_rates_say_how_slow(model_of, layer):
    profile = model_of("Net", [layer("a", "Linear", flops=5), layer("b", "Linear", flops=500)])
    timed = profile.with_latency(LatencySummary(2e5), {"a": 1e5, "b": 1e5})  # 0.1 and 10 FLOP/s
    assert {"0.1 FLOP/s", "1 FLOP/s", "10 FLOP/s"} <= set(texts(latency_chart(timed)))


def test_the_users_settings_neither_change_the_figure_nor_are_changed(lenet):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"text.usetex": True, "font.family": ["no such font"]}):
        texts(module_chart(lenet))
    assert dict(matplotlib.rcParams) == before


def test_drawing_leaves_pyplot_alone():
    script = (
        "import sys\n"
        "from flopcallback.reporting import ModelProfile, module_chart, pixels\n"
        "assert 'matplotlib' not in sys.modules\n"
        "image = pixels(module_chart(ModelProfile('Nothing')))\n"
        "assert image.shape[2] == 3 and image.dtype == 'uint8'\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_matplotlib_the_error_says_what_to_install(lenet, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        module_chart(lenet)
