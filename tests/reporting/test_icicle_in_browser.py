"""The icicle in headless Chromium, with real clicks and keys."""

from __future__ import annotations

import itertools

import pytest

from flopcallback.reporting import html_page

pytestmark = pytest.mark.browser


@pytest.fixture
def show(chromium, tmp_path):
    """Opens the page of a profile, and gives the browser."""

    def shown(profile, width=1280, height=800):
        chromium.resize(width, height)
        chromium.prefer("light")
        file = tmp_path / "page.html"
        file.write_text(html_page(profile), encoding="utf-8")
        chromium.open(file.as_uri())
        chromium.run_until("'drawn' in document.documentElement.dataset")
        return chromium

    return shown


BLOCKS = """[...document.querySelectorAll("#icicle .block")].map(block => ({
    name: block.dataset.name,
    said: block.getAttribute("aria-label"),
    level: Number(block.getAttribute("aria-level")),
    left: parseFloat(block.style.left), width: parseFloat(block.style.width), colour: block.classList[1]}))"""
FOCUS = "document.activeElement.getAttribute('aria-label')"


def blocks(browser):
    return browser.run(BLOCKS)


def widths(browser):
    return {block["name"]: block["width"] for block in blocks(browser)}


def names(browser, level):
    return [block["name"] for block in blocks(browser) if block["level"] == level]


def choose(browser, scope, of):
    browser.click(f"#icicle-tools [data-scope={scope}]")
    browser.click(f"#icicle-tools [data-of={of}]")


def click(browser, name):
    at = next(place for place, block in enumerate(blocks(browser)) if block["name"] == name)
    browser.click(f"#icicle .block[data-at='{at}']")


def test_widths_are_the_shares_of_what_was_chosen(show, lenet, in_steps):
    profile = in_steps(lenet)
    rows = {row.path: row for row in profile.modules}
    browser = show(profile)
    shares = {
        ("forward", "flops"): lambda row: row.flops / 549_312,
        ("step", "flops"): lambda row: row.step.total / (3 * 549_312),
        ("forward", "time"): lambda row: row.time.forward / rows[""].time.forward,
        ("step", "time"): lambda row: row.time.total / rows[""].time.total,
    }
    for (scope, of), share in shares.items():
        choose(browser, scope, of)
        shown = widths(browser)
        assert shown["LeNet"] == 100
        for path in ("conv1", "conv2", "fc1"):
            assert shown[path] == pytest.approx(100 * share(rows[path]), abs=0.01), (scope, of, path)


@pytest.mark.parametrize("scope", ["forward", "step"])
@pytest.mark.parametrize("of", ["flops", "time"])
def test_blocks_of_a_level_stand_side_by_side_and_fill_what_contains_them(show, decoder, in_steps, scope, of):
    browser = show(in_steps(decoder(6)))
    choose(browser, scope, of)
    drawn = blocks(browser)
    for level in range(2, 6):
        row = sorted((block for block in drawn if block["level"] == level), key=lambda block: block["left"])
        for one, other in itertools.pairwise(row):
            assert one["left"] + one["width"] <= other["left"] + 0.01
    # What is directly in the model, those of less than a pixel left out.
    assert sum(block["width"] for block in drawn if block["level"] == 2) == pytest.approx(100, abs=0.2)


def test_identical_layers_are_one_block_until_they_are_asked_for(show, decoder, in_steps):
    browser = show(in_steps(decoder(40)))
    fold = "model.layers.0 … 39"
    assert fold in widths(browser)
    assert "× 40" in browser.run("document.getElementById('icicle').innerText")
    click(browser, fold)
    assert names(browser, 1) == [fold]
    browser.run("[...document.querySelectorAll('#crumbs button')].find(b => b.textContent === 'Show all 40').click()")
    assert names(browser, 2) == [f"model.layers.{index}" for index in range(40)]
    browser.run("[...document.querySelectorAll('#crumbs button')].find(b => b.textContent === 'Fold again').click()")
    assert fold in widths(browser)
    assert browser.troubles() == []


def test_attention_that_a_module_does_itself_is_a_block(show, decoder, in_steps):
    browser = show(in_steps(decoder(6)))
    name = "model.layers.0 … 5.self_attn: scaled_dot_product_attention"
    block = next(block for block in blocks(browser) if block["name"] == name)
    assert "% of the step's time" in block["said"]
    assert "FLOP/s" in block["said"]
    waiting = next(block for block in blocks(browser) if block["name"].endswith("self_attn: Python and launches"))
    assert waiting["colour"] == "python"


def test_a_click_zooms_in_and_the_path_leads_back(show, decoder, in_steps):
    browser = show(in_steps(decoder(6)))
    whole = widths(browser)
    name = "model.layers.0 … 5.mlp"
    inner = f"{name}.gate_proj"
    click(browser, name)
    zoomed = widths(browser)
    assert zoomed[name] == 100
    assert zoomed[inner] == pytest.approx(100 * whole[inner] / whole[name], abs=0.05)
    crumbs = "[...document.querySelectorAll('#crumbs button:not(.action)')].map(b => b.textContent)"
    assert browser.run(crumbs) == ["Llama", "model", "layers", "0 … 5", "mlp"]
    browser.click("#crumbs button")
    assert widths(browser) == whole
    assert browser.run("document.getElementById('crumbs').hidden")


def test_the_keyboard_goes_from_block_to_block_and_zooms(show, lenet, in_steps):
    browser = show(in_steps(lenet))
    browser.run("document.querySelector('#icicle .block').focus()")
    assert browser.run(FOCUS).startswith("LeNet: 100.0 % of the step's time")
    browser.press("ArrowDown")
    assert browser.run(FOCUS).startswith("conv1: ")
    browser.press("ArrowRight")
    assert browser.run(FOCUS).startswith("pool1: ")
    browser.press("ArrowLeft")
    assert browser.run(FOCUS).startswith("conv1: ")
    browser.press("Enter")
    assert names(browser, 1) == ["conv1"]
    assert browser.run(FOCUS).startswith("conv1: ")
    browser.press("Escape")
    assert names(browser, 1) == ["LeNet"]
    assert browser.run("document.querySelectorAll('#icicle [tabindex=\"0\"]').length") == 1
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_colours_are_of_the_peak_where_it_is_known(show, lenet, in_steps):
    config = {**lenet.config, "flops.peak_tflops": 0.00004}  # 40 MFLOP/s
    profile = in_steps(type(lenet)(**{**fields_of(lenet), "config": config}))
    rates = {row.path: row.step.total / row.time.total * 1e3 / 4e7 for row in profile.modules if row.step.total}
    limits = (0.01, 0.05, 0.2, 0.5)
    browser = show(profile)
    colours = {block["name"]: block["colour"] for block in blocks(browser)}
    for path in ("conv1", "conv2", "fc1"):
        rate = rates[path]
        assert colours[path] == ("above" if rate > 1 else f"q{sum(rate >= limit for limit in limits)}")
    assert colours["pool1"] == "none"


def fields_of(profile):
    return {name: getattr(profile, name) for name in type(profile).__dataclass_fields__}


def test_without_times_widths_are_flops_and_colours_say_nothing(show, lenet):
    browser = show(lenet)
    assert {block["colour"] for block in blocks(browser)} == {"plain"}
    disabled = browser.run("[...document.querySelectorAll('#icicle-tools button')].map(b => b.disabled)")
    assert disabled == [False, True, False, True]  # forward, step, FLOPs, time


@pytest.mark.parametrize("kind", ["5", "500", "5000", "5000 unlike"])
def test_models_of_any_size_can_be_read(show, request, kind):
    lenet, decoder, flat, in_steps = (
        request.getfixturevalue(name) for name in ("lenet", "decoder", "flat", "in_steps")
    )
    made = {
        "5": lambda: lenet,
        "500": lambda: decoder(42),
        "5000": lambda: decoder(417),
        "5000 unlike": lambda: flat(5000),
    }
    browser = show(in_steps(made[kind]()))
    drawn = blocks(browser)
    assert 4 < len(drawn) < 400
    # Most of the second level can be read: its blocks have labels.
    labelled = browser.run(
        "[...document.querySelectorAll('#icicle .block[aria-level=\"2\"]:has(.label)')]"
        ".reduce((sum, block) => sum + parseFloat(block.style.width), 0)"
    )
    assert labelled > 80
    assert browser.troubles() == []


def test_a_block_of_many_small_ones_opens_down_to_each(show, flat, in_steps):
    browser = show(in_steps(flat(5000)))
    for _ in range(5):
        groups = [name for name in names(browser, 2) if " more" in name]
        if not groups:
            break
        click(browser, groups[0])
    assert names(browser, 2)[:3] == ["layer0", "layer1", "layer2"]
    assert browser.troubles() == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (600, 400)])
def test_finding_tiles_and_icicle_are_on_the_first_screen(show, decoder, in_steps, width, height):
    browser = show(in_steps(decoder(40)), width, height)
    assert browser.run("document.documentElement.scrollWidth") == width
    bottoms = browser.run(
        "['.finding', '.tiles', '#icicle .block[aria-level=\"4\"]']"
        ".map(each => document.querySelector(each).getBoundingClientRect().bottom)"
    )
    assert bottoms == sorted(bottoms)
    assert bottoms[-1] <= height


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_stand_out_from_their_blocks(show, decoder, in_steps, scheme):
    """WCAG 2.1, 1.4.3, for blocks of one colour."""
    browser = show(in_steps(decoder(6)))
    browser.prefer(scheme)
    pairs = browser.run(
        """[...document.querySelectorAll("#icicle .block:has(.label)")].map(block => getComputedStyle(block))
            .filter(style => style.backgroundImage === "none").map(style => [style.color, style.backgroundColor])"""
    )
    assert pairs
    for ink, ground in pairs:
        light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def luminance(colour):
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
