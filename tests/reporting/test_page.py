"""The HTML page as text: what stands in it, that nothing can break out of it, and that it loads nothing."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from html.parser import HTMLParser

import pytest

from flopcallback.reporting import LatencySummary, ModelProfile, OperatorRow, html_page
from flopcallback.reporting.figures.scatter import MOST_POINTS, scatter

NASTY = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "it's",
    "{{ 7 * 7 }}",
    "<!--",
    "卷积&層🙂",
]


class Page(HTMLParser):
    """The elements of a page, what can be read in it, and the data that its script draws the table from."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], []
        self.inside = ""
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))
        data = self.scripts[0]
        is_packed = ("data-packed", "deflate") in self.attributes
        data = json.loads(zlib.decompress(base64.b64decode(data)) if is_packed else data)
        self.data, self.icicle = data["table"], data["icicle"]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.texts.append(data)

    def handle_endtag(self, tag):
        self.inside = ""

    def column(self, key):
        return next(column for column in self.data["columns"] if column["key"] == key)

    def cells(self, key):
        """By row: text, exact text, bar and share, as far as the cell has them."""
        column = self.column(key)
        return [column["cells"][place] for place in column["of"]]

    def texts_of(self, key):
        return [text for text, *_ in self.cells(key)]


def read(profile):
    return Page(html_page(profile))


def replaced(profile, path, **values):
    rows = [dataclasses.replace(row, **values) if row.path == path else row for row in profile.modules]
    return dataclasses.replace(profile, modules=tuple(rows))


def test_the_tiles_say_what_was_counted_short_and_exactly(lenet):
    text = read(lenet).text
    conv, linear = 30 * 30 * 6 * 9 + 13 * 13 * 16 * 6 * 9, 576 * 120 + 120 * 84 + 84 * 10
    assert 2 * (conv + linear) == 549_312
    assert "FLOPs, forward 549 k 549,312" in text
    assert "Parameters 81.2 k 81,194, all trainable" in text
    assert "Unknown calls 0" in text


def test_times_add_their_tiles_and_what_was_achieved(lenet, measured):
    profile = measured(lenet)
    forward_ms = 7 * 0.1 + 0.0001 * 549.312
    text = read(profile).text
    assert "Step time 3.50 ms median of 20 steps" in text
    assert f"Forward {forward_ms:.3f} ms {100 * forward_ms / 3.5:.1f} % of the step" in text
    assert f"Achieved FLOP/s {549_312 / forward_ms / 1e3:.0f} M in the forward" in text


def test_per_sample_stands_beside_the_batch(lenet):
    assert "549,312, 78.5 k per sample" in read(dataclasses.replace(lenet, batch_size=7)).text


def test_integers_of_any_size_are_exact(model_of, layer):
    flops = 2**70 + 1
    page = read(model_of("Net", [layer("one", "Linear", flops=flops), layer("two", "Linear", flops=flops + 1)]))
    assert f"{2 * flops + 1:,}" in page.text
    assert [exact.split(" · ")[0] for _, exact, *_ in page.cells("flops")[1:]] == [f"{flops:,}", f"{flops + 1:,}"]
    assert sum(page.icicle["figures"]["forward flops"]["shares"]) == page.icicle["whole"]


def test_rows_that_a_float_cannot_tell_apart_have_their_order(model_of, layer):
    rows = [layer(name, "Linear", flops=2**60 + more) for name, more in (("b", 2), ("c", 3), ("a", 1))]
    _, b, c, a = read(model_of("Net", rows)).column("flops")["of"]
    assert a < b < c


def test_without_times_the_page_says_so_and_has_nothing_of_them(lenet):
    page = read(lenet)
    assert "There are no times in this profile" in page.text
    assert "No times were measured, so blocks have no colour" in page.text
    assert set(page.icicle["figures"]) == {"forward flops"}
    assert {"time", "rate", "quartiles"}.isdisjoint(column["key"] for column in page.data["columns"])
    assert "circle" not in page.tags
    assert "Slow for their FLOPs" not in page.text


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        ("train", "in the steps that follow the counted one"),
        ("validate", "Evaluation is counted, not timed"),
        ("call", "A single call is counted, not timed"),
    ],
)
def test_every_kind_of_call_has_its_page_and_its_reason_for_no_times(lenet, phase, reason):
    assert reason in read(dataclasses.replace(lenet, phase=phase)).text


def test_a_profile_without_any_module_has_a_page():
    page = read(ModelProfile("Nothing"))
    assert page.data is None
    assert "No FLOPs were counted" in page.text
    assert "No module ran" in page.text
    assert "No operators" in page.text


def test_a_lower_bound_is_marked_wherever_its_figure_stands(lenet):
    operators = (*lenet.operators, OperatorRow("my::op", 3, 0, status="unknown"))
    config = {**lenet.config, "flops.is_lower_bound": True}
    profile = replaced(replaced(lenet, "fc1", unknown_calls=3), "", unknown_calls=3)
    page = read(dataclasses.replace(profile, operators=operators, unknown={"my::op": "it is ours"}, config=config))
    assert "FLOPs, forward >= 549 k >= 549,312" in page.text
    assert "my::op it is ours" in page.text
    assert "Unknown calls 3" in page.text
    by_name = dict(zip(page.data["names"], page.texts_of("flops"), strict=True))
    assert by_name["fc1"] == ">= 138 k"
    assert by_name["fc2"] == "20.2 k"


def test_bars_are_as_long_as_the_shares(lenet, measured):
    profile = measured(lenet)
    page = read(profile)
    conv2, total = 2 * (13 * 13 * 16 * 6 * 9), 549_312
    assert page.cells("flops")[3] == [
        "292 k",
        "292,032 · 53.2 %",
        pytest.approx(100 * conv2 / total, abs=0.01),
        "53.2 %",
    ]
    ms, whole = 0.1 + 0.0001 * conv2 / 1000, 0.7 + 0.0001 * total / 1000
    assert page.cells("time")[3][2] == pytest.approx(100 * ms / whole, abs=0.01)


def test_time_that_is_no_work_is_named_by_module_and_by_type(lenet, measured):
    text = read(measured(lenet)).text
    whole = 0.7 + 0.0001 * 549.312
    pool = f"{100 * 0.1 / whole:.1f} %"
    assert f"pool1 MaxPool2d {pool} 0.0 %" in text
    assert f"MaxPool2d 2 0.0 % {100 * 0.2 / whole:.1f} %" in text


def test_types_beyond_the_first_are_taken_together(model_of, layer, measured):
    rows = [layer(f"m{index}", f"Kind{index}", flops=1009 * (index + 1)) for index in range(11)]
    assert "3 others" in read(measured(model_of("Net", rows))).text


def test_the_rank_correlation_has_its_sentence(lenet, measured):
    text = read(measured(lenet)).text
    assert "1.00 rank correlation of FLOPs and time over 7 modules and operators" in text
    assert "They have 100.0 % of it: more FLOPs nearly always means more time" in text
    against = {"": 6.0, "conv1": 1.0, "conv2": 0.5, "fc1": 2.0, "fc2": 3.0, "fc3": 4.0}
    page = read(lenet.with_latency(LatencySummary(6.0, steps=3), against))
    # By FLOPs fc3, fc2, conv1, fc1, conv2, by time conv2, conv1, fc1, fc2, fc3, each with the weight of its time: ranks
    # about their mean -3.25, 0.25, 2.25, 3.75, 5 against 3.25, -0.25, -4.25, -2.75, -5.
    assert f"{-85.125 / 88.125:.2f} rank correlation" in page.text
    assert "FLOPs say little about where the time goes" in page.text


def test_too_few_modules_have_no_rank_correlation(model_of, layer, measured):
    text = read(measured(model_of("Net", [layer("one", "Linear", flops=5), layer("two", "Linear", flops=7)]))).text
    assert "rank correlation of" not in text
    assert "no order to compare" in text


def test_what_timing_includes_stands_on_the_page(lenet, measured):
    assert "A module's time is its forward in eager mode" in read(measured(lenet)).text


def test_flops_that_the_device_cannot_do_are_flagged_and_not_shown(lenet, measured):
    config = {**lenet.config, "flops.peak_tflops": 0.002, "flops.peak_source": "given"}
    page = read(measured(dataclasses.replace(lenet, config=config)))
    # At most 2 * 10^9 a second: conv2, 292,032 FLOPs in 0.129 ms, cannot be.
    rates = dict(zip(page.data["names"], page.cells("rate"), strict=True))
    assert rates["conv2"] == ["above peak", "above the device's peak of 2.00 GFLOP/s: not believable"]
    assert rates["fc1"][1] == f"1.21 GFLOP/s · {100 * 138_240 / 0.113824e-3 / 2e9:.1f} % of peak"
    assert page.attributes.count(("class", "q4 above")) == 1
    assert "27.5 GFLOP/s" not in page.text


def test_names_of_modules_are_put_together_from_their_parents(decoder):
    profile = decoder(3)
    data = read(profile).data
    paths = [""]
    for name, parent in list(zip(data["names"], data["parents"], strict=True))[1:]:
        paths.append(f"{paths[parent]}.{name}" if parent else name)
    assert paths[: data["modules"]] == [row.path for row in profile.modules]


def test_a_row_whose_parent_is_no_earlier_row_stands_below_the_root(model_of, layer):
    rows = [
        layer("a.b", "Linear", flops=5),
        dataclasses.replace(layer("(training_step)", ""), parent=""),
        dataclasses.replace(layer("c", "Linear"), parent="c"),
        dataclasses.replace(layer("d", "Linear"), parent="a.b"),
    ]
    data = read(model_of("Net", rows)).data
    assert data["names"][1:] == ["a.b", "(training_step)", "c", "d"]
    assert data["parents"] == [0, 0, 0, 0, 0]


def test_identical_layers_are_one_row_with_their_sums(decoder):
    page = read(decoder(24))
    names = page.data["names"]
    fold = names.index("0 … 23")
    assert page.data["counts"][str(fold)] == 24
    assert page.data["runs"] == {str(fold): [0, 24]}
    inside = [at for at, parent in enumerate(page.data["parents"]) if parent == fold]
    assert [names[at] for at in inside] == ["input_layernorm", "self_attn", "mlp"]
    tokens, width, hidden = 128, 64, 176
    attention = 4 * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width
    mlp = 3 * 2 * tokens * width * hidden
    exact = [page.cells("flops")[at][1].split(" · ")[0] for at in (fold, *inside[1:])]
    assert exact == [f"{24 * (attention + mlp):,}", f"{24 * attention:,}", f"{24 * mlp:,}"]


def test_what_holds_most_of_the_flops_stands_open_and_the_table_stays_short(decoder):
    data = read(decoder(24)).data
    opened = [data["names"][row] for row in data["open"]]
    assert opened[:4] == ["Llama", "model", "layers", "0 … 23"]
    assert sum(parent in data["open"] for parent in data["parents"][data["modules"] :]) < 40


def test_what_would_make_the_table_long_stays_closed(model_of, layer, container):
    inside = [layer(f"wide.m{at}", "Linear", flops=at + 1) for at in range(50)]
    profile = model_of("Net", [container("wide", "Wide", inside), *inside])
    assert read(profile).data["open"] == [0]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_becomes_markup(lenet, measured, name):
    renamed = {"path": name, "type": name, "note": name, "output_shape": name}
    rows = tuple(dataclasses.replace(row, **renamed) if row.path == "fc1" else row for row in lenet.modules)
    operators = (OperatorRow(name, 3, 5, name), OperatorRow(f"{name}2", 3, 0, status="unknown"))
    config = {**lenet.config, name: name, "flops.input_shapes": [name]}
    more = {"operators": operators, "unknown": {f"{name}2": name}, "config": config, "name": name}
    page = read(measured(dataclasses.replace(lenet, modules=rows, **more)))
    plain = read(measured(dataclasses.replace(lenet, operators=operators, unknown={"other": "x"})))
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert "img" not in page.tags
    assert {key for key, _ in page.attributes} == {key for key, _ in plain.attributes}
    assert name in page.data["names"]
    assert page.text.count(re.sub(r"\s+", " ", name)) >= 10


def test_the_page_loads_nothing(decoder, measured):
    text = html_page(measured(decoder(2)))
    assert re.findall(r"https?:|url\(|@import|\bfetch\(|XMLHttpRequest|import\(|WebSocket", text) == []
    assert {key for key, _ in Page(text).attributes}.isdisjoint({"src", "href", "srcset", "action"})
    assert "default-src 'none'" in text


def test_no_brace_of_the_template_is_left(lenet, measured):
    text = html_page(measured(lenet))
    assert re.findall(r"\{%|%\}|\{#|Undefined", text) == []


@pytest.mark.parametrize("make", ["decoder", "flat"])
def test_5000_modules_take_less_than_a_megabyte(make, request, in_steps):
    profile = in_steps(request.getfixturevalue(make)({"decoder": 417, "flat": 5000}[make]))
    assert len(profile.modules) >= 5000
    assert len(html_page(profile).encode()) < 1_000_000


def test_the_page_is_the_same_each_time(lenet, measured):
    assert html_page(measured(lenet)) == html_page(measured(lenet))


def test_a_decade_of_flops_is_as_long_for_points_and_ticks(lenet, measured):
    picture = scatter(measured(lenet), 7)
    places = {label: place for place, label in picture.x_ticks}
    decade = places["100 k"] - places["10 k"]
    x = {lenet.modules[point.index].path: point.x for point in picture.points}
    assert x["conv1"] == pytest.approx(places["10 k"] + decade * 0.98767, abs=0.02)  # log10(97,200 / 10,000)
    assert x["pool1"] == x["pool2"] == places["0"]
    assert places["0"] < picture.zero_band < x["fc3"]


def test_a_line_of_equal_rate_goes_through_the_module_that_has_it(model_of, layer):
    rows = [layer("slow", "Linear", flops=1_000_000), layer("fast", "Linear", flops=100_000_000)]
    profile = model_of("Net", rows).with_latency(LatencySummary(1.1), {"slow": 1.0, "fast": 0.1, "": 1.1})
    picture = scatter(profile, 7)
    point = next(point for point in picture.points if profile.modules[point.index].path == "slow")
    line = next(line for line in picture.lines if line.label == "1 GFLOP/s")  # 1,000,000 in a millisecond
    along = (point.x - line.x1) / (line.x2 - line.x1)
    assert line.y1 + along * (line.y2 - line.y1) == pytest.approx(point.y, abs=0.05)


def test_the_peak_is_a_line_of_its_own_where_it_crosses_the_picture(lenet, measured):
    def peak_of(tflops):
        config = {**lenet.config, "flops.peak_tflops": tflops}
        return scatter(measured(dataclasses.replace(lenet, config=config)), 7).peak

    assert peak_of(0.001).label == "peak"
    assert peak_of(1e6) is None


def test_types_that_take_the_most_time_have_a_colour(lenet, measured):
    picture = scatter(measured(lenet), 2)
    assert picture.legend == ["Linear", "Conv2d"]
    assert picture.has_others
    colours = {lenet.modules[point.index].path: point.colour for point in picture.points}
    assert colours == {"fc1": 0, "fc2": 0, "fc3": 0, "conv1": 1, "conv2": 1, "pool1": None, "pool2": None}


def test_of_very_many_modules_the_slowest_are_drawn_and_the_page_says_so(flat, measured):
    profile = measured(flat(MOST_POINTS + 7))
    page = read(profile)
    assert page.tags.count("circle") == MOST_POINTS
    assert f"The {MOST_POINTS:,} slowest of {MOST_POINTS + 7:,} are drawn" in page.text
    assert min(point.index for point in scatter(profile, 7).points) == 8


def test_without_any_flops_there_is_a_picture_of_times(model_of, layer):
    profile = model_of("Net", [layer("one", "Wait"), layer("two", "Wait")])
    picture = scatter(profile.with_latency(LatencySummary(3.0), {"one": 1.0, "two": 2.0}), 7)
    assert [label for _, label in picture.x_ticks] == ["0"]
    assert picture.lines == []
    assert all(0 <= point.x <= 100 and 0 <= point.y <= 100 for point in picture.points)


def test_nothing_is_drawn_of_times_that_are_none(lenet):
    assert scatter(lenet, 7) is None
    zero = lenet.with_latency(LatencySummary(None), {row.path: 0.0 for row in lenet.modules})
    assert scatter(zero, 7) is None
    assert "circle" not in read(zero).tags


def test_times_that_are_no_numbers_are_left_out(lenet):
    profile = lenet.with_latency(LatencySummary(float("nan")), {"conv1": float("nan"), "fc1": float("inf"), "fc2": 0.5})
    page = read(profile)
    assert dict(zip(page.data["names"], page.texts_of("time"), strict=True))["conv1"] == ""
    # Of the root and seven layers fc2 is the last but one.
    assert page.icicle["figures"]["forward time"]["shares"] == [0, 0, 0, 0, 0, 0, page.icicle["whole"], 0]
    assert page.tags.count("circle") == 1
