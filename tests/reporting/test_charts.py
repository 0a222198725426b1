from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flopcallback.profile.times import OperatorTime
from flopcallback.reporting import LatencySummary, ModelProfile, latency_chart, module_chart, page
from flopcallback.reporting.figures.axes import PALETTE
from flopcallback.reporting.figures.bars import FLOPS, TIME

pytestmark = pytest.mark.tensorboard


def texts(figure):
    """All that can be read in the figure, drawn once so that it has its labels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def bars(figure, colour=FLOPS):
    from matplotlib.colors import to_rgb

    return [patch.get_width() for patch in figure.axes[0].patches if patch.get_facecolor()[:3] == to_rgb(colour)]


def test_bars_are_as_long_as_the_flops_and_carry_name_and_share(lenet):
    figure = module_chart(lenet)
    assert bars(figure) == pytest.approx([flops / 292_032 for flops in (292_032, 138_240, 97_200, 20_160, 1_680)])
    names = ["conv2", "fc1", "conv1", "fc2", "fc3"]
    assert [text for text in texts(figure) if text in names] == names
    assert "292 kFLOPs 53.2 %" in texts(figure)
    assert bars(figure, TIME) == []


def test_times_have_a_bar_of_their_own_on_the_scale_of_the_flops(model_of, layer):
    profile = model_of("Net", [layer("conv", "Conv2d", flops=7), layer("fc", "Linear", flops=3)])
    figure = module_chart(profile.with_latency(LatencySummary(10.0), {"": 10.0, "conv": 2.0, "fc": 8.0}))
    assert bars(figure) == pytest.approx([0.7 / 0.8, 0.3 / 0.8])
    assert bars(figure, TIME) == pytest.approx([0.2 / 0.8, 1])
    assert {"7 FLOPs 70.0 %", "2.00 ms 20.0 %"} <= set(texts(figure))


def test_colours_are_those_of_the_page():
    css = (Path(page.__file__).parent / "static" / "page.css").read_text(encoding="utf-8")
    numbers = [int(re.search(rf"--{name}: var\(--k(\d)\)", css)[1]) for name in ("flops", "time")]
    assert [PALETTE[number] for number in numbers] == [FLOPS, TIME]


def test_a_long_headline_is_whole_whatever_the_names_leave_to_the_bars(model_of, layer):
    profile = model_of("N" * 31, [layer("x" * 48, "Linear", flops=7)])
    figure = module_chart(profile)
    figure.canvas.draw()
    headline = next(text for text in figure.axes[0].texts if text.get_text().startswith("NNN"))
    assert headline.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("name", ["x", "efficientnet_encoder_blocks_14_expansion_conv_of_", "W" * 40])
def test_figures_beside_names_are_whole_and_in_the_picture(model_of, layer, measured, name):
    rows = [layer(f"{name}{'abcdefghijklmnopqrstuvwxyz'[index]}", "Linear", flops=9000 + index) for index in range(26)]
    figure = module_chart(measured(model_of("Net", rows)))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    figures = [text for text in figure.axes[0].texts if "FLOPs " in text.get_text() or " ms " in text.get_text()]
    assert len(figures) == 2 * 10
    assert all(text.get_bbox_patch().get_facecolor() == (1, 1, 1, 1) for text in figures)  # over a name of wide letters
    places = [text.get_window_extent() for text in figures]
    assert not any(one.overlaps(other) for one in places for other in places if one is not other)


def test_text_is_readable_where_a_dashboard_draws_the_figure_small(lenet, measured):
    """TensorBoard's card is 350 pixels wide in a window of 1440."""
    for figure in (module_chart(measured(lenet)), latency_chart(measured(lenet))):
        texts(figure)
        names = [text for text in figure.axes[0].texts if text.get_text() in ("conv2", "fc1")]
        pixels = [text.get_fontsize() / 72 * 350 / figure.get_figwidth() for text in names]
        assert min(pixels) >= 9


def test_names_in_the_scatter_keep_their_ends_and_stand_apart(container, layer, model_of, measured):
    rows = [layer(f"stack.of.many.levels.{index}.depthwise_conv", "Conv2d", flops=10_000 + index) for index in range(5)]
    figure = latency_chart(measured(model_of("Net", [container("stack", "Stack", rows), *rows])))
    figure.canvas.draw()
    names = [text for text in figure.axes[0].texts if text.get_text().endswith("_conv")]
    assert {text.get_text() for text in names} == {f"…levels.{index}.depthwise_conv" for index in range(5)}
    boxes = [text.get_window_extent() for text in names]
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_points_of_one_type_have_one_colour_and_the_legend_names_it(lenet, measured):
    figure = latency_chart(measured(lenet))
    colours = figure.axes[0].collections[0].get_facecolors().tolist()
    kinds = [row.type for row in lenet.modules[1:]]
    by_kind = {
        kind: {tuple(colour) for colour, each in zip(colours, kinds, strict=True) if each == kind} for kind in kinds
    }
    assert all(len(colours) == 1 for colours in by_kind.values())
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == set(kinds)


def test_a_rest_that_dwarfs_the_named_modules_is_cut_and_says_so(flat):
    figure = module_chart(flat(2000))
    assert max(bars(figure)) == 1
    assert any("(bar cut)" in text for text in texts(figure))


def test_a_lower_bound_is_marked_at_its_bar(lenet):
    rows = [dataclasses.replace(row, unknown_calls=1) if row.path == "fc1" else row for row in lenet.modules]
    assert ">= 138 kFLOPs 25.2 %" in texts(module_chart(dataclasses.replace(lenet, modules=tuple(rows))))


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
    assert "scaled_dot_product_attention" in texts(figure)
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
