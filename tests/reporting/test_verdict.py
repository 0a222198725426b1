"""What came of holding both engines against each other: kept in JSON, and said by every output."""

from __future__ import annotations

import dataclasses
import json

import old_names
import pytest

from flopcallback.reporting import (
    EngineDifference,
    ModelProfile,
    StepFlops,
    Verdict,
    footer,
    html_page,
    markdown_modules,
    plain_table,
    rich_text,
    verdict_line,
)

AGREE = Verdict()
DIFFER = Verdict((EngineDifference("", "matmul", 2 * 3 * 5, 0), EngineDifference("a<b>|c", "attention", 0, 7)))
ONE_ALONE = Verdict(reason="only the dispatcher can count this call: the tracer loses operators on meta tensors")

TEXTS = {
    "agree": (AGREE, "verified: both engines count the same"),
    "differ": (DIFFER, "the engines differ in 2 places"),
    "one alone": (
        ONE_ALONE,
        "not verified: only the dispatcher can count this call: the tracer loses operators on meta tensors",
    ),
}


@pytest.fixture(params=TEXTS.values(), ids=TEXTS)
def judged(request, lenet):
    """A profile with a verdict, and the line that says it."""
    verdict, line = request.param
    return dataclasses.replace(lenet, verdict=verdict), line


def head_of(page):
    return page[page.index("<header>") : page.index("</header>")]


def engines_of(page):
    """What a page says of the engines, wherever."""
    return page.partition('<p class="note engines')[2].partition("</p>")[0]


def test_a_verdict_comes_back_from_json(judged):
    profile, _ = judged
    assert ModelProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    "draw",
    [lambda profile: plain_table(profile, width=200), markdown_modules, lambda profile: rich_text(profile, width=200)],
)
def test_every_text_says_it_in_a_line(judged, draw):
    profile, line = judged
    assert line in draw(profile)


def test_the_page_says_it_behind_who_counted(judged):
    profile, line = judged
    assert f"counted by trace; {line}" in engines_of(html_page(profile))


def test_only_engines_that_differ_stand_at_the_head(lenet):
    assert "engines warning" in head_of(html_page(dataclasses.replace(lenet, verdict=DIFFER)))
    assert "engines" not in head_of(html_page(dataclasses.replace(lenet, verdict=AGREE)))


def test_without_a_verdict_the_page_says_that_one_engine_counted_alone(lenet):
    assert "counted by trace alone" in engines_of(html_page(lenet))
    config = {**lenet.config, "flops.engine": "dispatch", "flops.engine_reason": "the model is <scripted>"}
    text = engines_of(html_page(dataclasses.replace(lenet, config=config)))
    assert "counted by dispatch alone, because the model is &lt;scripted&gt;" in text
    assert verdict_line(lenet) == ""
    assert 'class="note engines' not in html_page(ModelProfile("Net"))


def test_differences_are_listed_by_module_and_family(lenet):
    profile = dataclasses.replace(lenet, verdict=DIFFER)
    assert "the engines differ: (model), matmul: 30 traced, 0 dispatched" in footer(profile)
    assert "the engines differ: a<b>|c, attention: 0 traced, 7 dispatched" in footer(profile)
    assert r"the engines differ: a&lt;b>\|c, attention" in markdown_modules(profile)
    page = html_page(profile)
    assert 'class="note engines warning"' in page
    assert "Where the engines differ" in page
    assert "a&lt;b&gt;|c" in page


def test_a_page_without_differences_has_no_room_for_them(lenet):
    page = html_page(dataclasses.replace(lenet, verdict=AGREE))
    assert "Where the engines differ" not in page
    assert 'class="note engines"' in page


def test_of_many_differences_texts_list_the_first(lenet):
    many = Verdict(tuple(EngineDifference(f"layer{index}", "matmul", index, 0) for index in range(1, 13)))
    lines = [line for line in footer(dataclasses.replace(lenet, verdict=many)) if line.startswith("the engines differ")]
    assert lines[0] == "the engines differ in 12 places"
    assert lines[-1] == "the engines differ: 2 places more"
    assert len(lines) == 1 + 10 + 1
    assert "layer12" in html_page(dataclasses.replace(lenet, verdict=many))


def test_other_engines_than_tracer_and_dispatcher_are_named(lenet):
    engines = ("trace", "observer")
    agreed = dataclasses.replace(lenet, verdict=Verdict(engines=engines))
    assert verdict_line(agreed) == "verified: trace and observer count the same"
    found = EngineDifference("fc1", "matmul", trace=1234, observer=5678, differing_operators=("addmm", "linear"))
    differing = dataclasses.replace(lenet, verdict=Verdict((found,), engines=engines))
    assert "the engines differ: fc1, matmul: 1,234 traced, 5,678 observed (addmm, linear)" in footer(differing)
    page = html_page(differing)
    assert all(
        text in page for text in (">trace</th>", ">observer</th>", ">1,234</td>", ">5,678</td>", "addmm, linear")
    )
    assert ">dispatch</th>" not in page


def test_a_verdict_does_not_make_it_another_count(lenet):
    assert dataclasses.replace(lenet, verdict=AGREE).fingerprint() == lenet.fingerprint()


# --- In training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stepped(lenet):
    """The profile with a whole step, whose forward is as a note says."""

    def with_note(note):
        return lenet.with_step({row.path: StepFlops(row.flops, 2 * row.flops) for row in lenet.modules}, note)

    return with_note


def test_a_step_whose_forward_is_the_traced_one_is_a_check(stepped):
    line = "verified: both engines count the same forward in every module"
    assert line in footer(stepped(""))
    assert f"counted by trace; {line}" in engines_of(html_page(stepped("")))


def test_a_step_whose_forward_is_another_is_said_at_the_head(stepped):
    noted = stepped("its forward has 40 FLOPs, 1 counted call would have 30: fc1 differ")
    assert not any(line.startswith("verified") for line in footer(noted))
    head = head_of(html_page(noted))
    assert "its forward has 40 FLOPs" in head
    assert "engines warning" in head


def test_a_step_is_no_check_of_what_the_dispatcher_counted(stepped):
    profile = stepped("")
    counted = dataclasses.replace(profile, config={**profile.config, "flops.engine": "dispatch"})
    assert verdict_line(counted) == ""
    assert "verified" not in engines_of(html_page(counted))


# --- Files of earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [1, 2])
def test_files_of_earlier_versions_have_none(lenet, schema):
    content = old_names.former_json(lenet, schema)
    assert "verdict" not in content
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        assert ModelProfile.from_json(json.dumps(content)) == lenet
