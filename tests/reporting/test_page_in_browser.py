"""The HTML page in headless Chromium, with real clicks and keys."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest

from flopcallback.reporting import ModelProfile, OperatorRow, html_page

pytestmark = pytest.mark.browser


@pytest.fixture
def show(chromium, tmp_path):
    """Opens the page of a profile at 1280 × 900 in light colours, and gives the browser."""

    def shown(profile):
        chromium.resize(1280, 900)
        chromium.prefer("light")
        file = tmp_path / "page.html"
        file.write_text(html_page(profile), encoding="utf-8")
        chromium.open(file.as_uri())
        drawn(chromium)
        return chromium

    return shown


def drawn(browser):
    """Waits until the scripts have read their data, which may be packed."""
    browser.run_until("'drawn' in document.documentElement.dataset")


def in_the_models_order(browser):
    """Sorts the table by nothing: the second click after descending."""
    for _ in range(2):
        browser.click("#heads [aria-sort=ascending] button, #heads [aria-sort=descending] button")


# Names as they stand in the table, from top to bottom, their notes left out.
NAMES = """[...document.querySelectorAll("#body td.module")].map(
    cell => [...cell.childNodes].filter(n => !n.className).map(n => n.textContent).join(""))"""


def row(name):
    """The selector of a row by what its title says, the whole name."""
    return f'#body td.module[title="{name}"]'


def search(browser, text):
    browser.run(f"document.getElementById('search').value = {json.dumps(text)}")
    browser.run("document.getElementById('search').dispatchEvent(new Event('input'))")


def profiles(request):
    lenet, measured, decoder = (request.getfixturevalue(name) for name in ("lenet", "measured", "decoder"))
    nasty = dataclasses.replace(lenet.modules[5], path="<img src=x onerror=alert(1)>", type="</script>", note="&lt;")
    return {
        "measured": measured(lenet),
        "untimed": lenet,
        "no modules": ModelProfile("Nothing"),
        "one module": dataclasses.replace(lenet, modules=lenet.modules[:1]),
        "506 modules": measured(decoder(46)),
        "nasty": measured(dataclasses.replace(lenet, modules=(*lenet.modules, nasty), unknown={"<b>": "<i>"})),
    }


KINDS = ["measured", "untimed", "no modules", "one module", "506 modules", "nasty"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_without_a_word_in_the_console_and_asks_for_nothing(show, request, kind):
    browser = show(profiles(request)[kind])
    assert browser.troubles() == []
    assert [url.rpartition("/")[2] for url in browser.requests()] == ["page.html"]


def test_the_check_of_the_console_can_fail(chromium):
    chromium.open("data:text/html,<script>nothing()</script><img src='http://127.0.0.1:9/x.png'>")
    assert any("nothing is not defined" in json.dumps(event) for event in chromium.troubles())
    assert len(chromium.requests()) == 2


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_shows_the_page_without_scrolling_sideways(show, request, kind, width):
    browser = show(profiles(request)[kind])
    browser.resize(width, 844)
    browser.run("document.querySelector('#body tr')?.click(); document.getElementById('open-all')?.click()")
    browser.run("document.querySelector('details').open = true")
    assert browser.run("document.documentElement.scrollWidth") == width


def test_exact_figures_take_no_width_from_the_columns(show, lenet, measured):
    browser = show(measured(lenet))
    widths = "[...document.querySelectorAll('#heads th')].map(head => head.offsetWidth)"
    for width in (390, 800, 1280):
        browser.resize(width, 844)
        before = browser.run(widths)
        browser.click("#body tr td:nth-child(3)")
        assert browser.run("document.querySelector('.detail .path').textContent") == "LeNet"
        assert browser.run(widths) == before
        browser.click("#body tr td:nth-child(3)")


def test_a_bar_stands_beside_its_share(show, lenet, measured):
    browser = show(measured(lenet))
    ms, whole = 0.1 + 0.0001 * 292.032, 0.7 + 0.0001 * 549.312
    shares = browser.run(
        """[...document.querySelectorAll("#body tr:has([title=conv2]) small")].map(s => s.textContent)"""
    )
    assert shares == [f"{100 * 292_032 / 549_312:.1f} %", f"{100 * ms / whole:.1f} %"]


def test_the_tree_opens_and_closes(show, decoder):
    browser = show(decoder(8))
    in_the_models_order(browser)
    inside = ["input_layernorm", "self_attn", "mlp"]
    fold = "model.layers.0 … 7"
    browser.click("#close-all")
    assert browser.run(NAMES) == ["Llama", "model", "lm_head"]
    for name in ("model", "model.layers", fold):
        browser.click(row(name))
    assert browser.run(NAMES) == ["Llama", "model", "embed_tokens", "layers", "0 … 7", *inside, "norm", "lm_head"]
    browser.click(row(fold))
    assert browser.run(NAMES)[4:6] == ["0 … 7", "norm"]
    browser.click("#close-all")
    assert browser.run(NAMES) == ["Llama", "model", "lm_head"]
    assert browser.troubles() == []


def test_identical_layers_stand_as_one_until_they_are_asked_for(show, decoder):
    browser = show(decoder(8))
    in_the_models_order(browser)
    browser.click("#close-all")
    for name in ("model", "model.layers"):
        browser.click(row(name))
    assert browser.run("document.querySelector('.fold').textContent") == "× 8"
    browser.click(".fold")
    assert browser.run(NAMES)[4:12] == [str(index) for index in range(8)]
    browser.click(row("model.layers.1"))
    assert browser.run(NAMES)[4:10] == ["0", "1", "input_layernorm", "self_attn", "mlp", "2"]
    browser.run("document.querySelector('tr:has([title=\"model.layers.0\"])').focus()")
    browser.press("x")
    assert browser.run(NAMES)[4:6] == ["0 … 7", "norm"]
    assert browser.run("document.activeElement.querySelector('td.module').title") == "model.layers.0 … 7"
    browser.click("#open-all")
    browser.click(".fold")
    # All rows of modules, and what attention does itself in each.
    assert len(browser.run(NAMES)) == len(decoder(8).modules) + 8
    assert browser.troubles() == []


def test_the_keyboard_goes_through_the_tree(show, decoder):
    browser = show(decoder(3))
    in_the_models_order(browser)
    browser.run("document.querySelector('#body tr').focus()")
    focus = "document.activeElement.querySelector('td.module')?.title"
    for key, at in [("ArrowDown", "model"), ("End", "lm_head"), ("Home", "Llama"), ("ArrowRight", "model")]:
        browser.press(key)
        assert browser.run(focus) == at
    browser.press("ArrowLeft")
    assert browser.run(NAMES) == ["Llama", "model", "lm_head"]
    browser.press("ArrowRight")
    assert browser.run(NAMES)[:3] == ["Llama", "model", "embed_tokens"]
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.run(focus) == "Llama"
    browser.press("Enter")
    assert browser.run("document.querySelector('.detail .path').textContent") == "Llama"


def test_sorting_keeps_modules_below_the_one_that_contains_them(show, decoder):
    browser = show(decoder(8))
    browser.click("#open-all")
    # It is sorted by FLOPs, as there are no times. Per block: MLP 3 * 64 * 176, attention 4 * 64 * 64 + 2 * 128 * 64,
    # norm 0, all times 2 * 128 tokens.
    mlp = ["mlp", "gate_proj", "up_proj", "down_proj", "act_fn"]
    attention = ["self_attn", "own operators", "q", "k", "v", "o"]
    rest = ["embed_tokens", "norm", "lm_head"]
    assert browser.run(NAMES) == ["Llama", "model", "layers", "0 … 7", *mlp, *attention, "input_layernorm", *rest]
    assert browser.run("document.querySelector('[aria-sort=descending]').textContent") == "FLOPs"
    browser.click('[data-key="flops"]')
    assert browser.run(NAMES)[:3] == ["Llama", "lm_head", "model"]
    browser.click('[data-key="flops"]')
    assert browser.run(NAMES)[:4] == ["Llama", "model", "embed_tokens", "layers"]
    assert browser.run("document.querySelectorAll('[aria-sort=none]').length") == browser.run(
        "document.querySelectorAll('#heads th').length"
    )


def test_integers_that_javascript_cannot_tell_apart_are_sorted_and_shown(show, model_of, layer):
    rows = [layer(name, "Linear", flops=2**60 + more) for name, more in (("b", 2), ("c", 3), ("a", 1))]
    browser = show(model_of("Net", rows))
    assert browser.run(NAMES) == ["Net", "c", "b", "a"]
    browser.click(row("c"))
    assert f"{2**60 + 3:,}" in browser.run("document.querySelector('.detail').textContent")


def test_names_sort_as_people_count(show, model_of, layer):
    browser = show(model_of("Net", [layer(name, "Linear", flops=5) for name in ("layer10", "layer9", "Layer1")]))
    browser.click('[data-key="module"]')
    assert browser.run(NAMES) == ["Net", "Layer1", "layer9", "layer10"]


def test_rows_without_a_time_stand_last_whichever_way(show, lenet, measured):
    profile = measured(lenet)
    rows = [dataclasses.replace(row, forward_ms=None) if row.path == "conv2" else row for row in profile.modules]
    browser = show(dataclasses.replace(profile, modules=tuple(rows)))
    assert browser.run(NAMES)[-1] == "conv2"
    browser.click('[data-key="time"]')
    assert browser.run(NAMES)[-1] == "conv2"


def test_the_search_finds_modules_and_shows_what_contains_them(show, decoder):
    browser = show(decoder(3))
    search(browser, "1.mlp gate")
    assert browser.run(NAMES) == ["Llama", "model", "layers", "1", "mlp", "gate_proj"]
    assert browser.run("document.getElementById('found').textContent").startswith("1 of 42 modules")
    search(browser, "RMSNORM")
    assert browser.run(NAMES).count("input_layernorm") == 3
    browser.click('[data-view="all"]')
    assert browser.run(NAMES) == [*(f"model.layers.{index}.input_layernorm" for index in range(3)), "model.norm"]
    search(browser, "no such module")
    assert browser.run(NAMES) == []
    search(browser, "")
    assert len(browser.run(NAMES)) == 6 + 3 * 12
    assert browser.troubles() == []


def test_what_was_searched_for_is_marked(show, lenet):
    browser = show(lenet)
    search(browser, "CONV")
    assert browser.run("[...document.querySelectorAll('mark')].map(e => e.textContent)") == ["conv", "conv"]


def test_innermost_modules_can_be_seen_without_the_tree(show, decoder):
    browser = show(decoder(2))
    in_the_models_order(browser)
    browser.click('[data-view="leaves"]')
    profile = decoder(2)
    parents = {row.parent for row in profile.modules}
    names = browser.run(NAMES)
    own = [f"model.layers.{index}.self_attn: own operators" for index in range(2)]
    assert [name for name in names if name not in own] == [
        row.path for row in profile.modules if row.path not in parents
    ]
    assert [name for name in names if name in own] == own


def test_a_point_says_which_module_it_is_and_leads_to_its_row(show, decoder, measured):
    browser = show(measured(decoder(2)))
    browser.run("document.getElementById('plot').scrollIntoView({block: 'center'})")
    spot = "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('circle[data-row=\"%d\"]')"
    index = next(i for i, row in enumerate(decoder(2).modules) if row.path == "lm_head")
    x, y = browser.run((spot % index) + ".getBoundingClientRect())")
    browser.mouse("mouseMoved", x + 3, y + 2)
    tokens, width, vocabulary = 128, 64, 1000
    assert browser.run("document.querySelector('#tip b').textContent") == "lm_head"
    assert f"{2 * tokens * width * vocabulary:,}" in browser.run("document.getElementById('tip').textContent")
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseReleased", x, y)
    browser.click("#tip button")
    assert browser.run("document.querySelector('.detail .path').textContent") == "lm_head"
    assert browser.run("document.activeElement.querySelector('td.module').title") == "lm_head"


def test_points_can_be_reached_by_keys(show, lenet, measured):
    browser = show(measured(lenet))
    browser.run("document.getElementById('plot').focus()")
    for _ in range(7):
        browser.press("ArrowRight")
    assert browser.run("document.querySelector('#tip b').textContent") == "conv2"
    browser.press("Enter")
    assert browser.run("document.querySelector('.detail .path').textContent") == "conv2"


def test_a_slow_module_leads_to_its_row_wherever_it_is_hidden(show, decoder, measured):
    browser = show(measured(decoder(2)))
    browser.click("#close-all")
    search(browser, "lm_head")
    name = "model.layers.0.mlp.act_fn"
    assert name in browser.run("document.querySelector('.slow').textContent")
    browser.click(f".slow button[data-row='{[each.path for each in decoder(2).modules].index(name)}']")
    assert browser.run("document.activeElement.querySelector('td.module').title") == name


def test_colours_follow_the_system_until_the_reader_says_otherwise(show, lenet):
    browser = show(lenet)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(ground)
    browser.prefer("dark")
    dark = browser.run(ground)
    assert light != dark
    browser.click("#theme")
    assert browser.run(ground) == light
    browser.click("#theme")
    browser.prefer("light")
    assert browser.run(ground) == dark


def test_where_nothing_may_be_kept_the_page_works_as_well(chromium, lenet, measured):
    """Trackers show pages in frames without an origin; a `data:` address has none either."""
    chromium.open("data:text/html;base64," + base64.b64encode(html_page(measured(lenet)).encode()).decode())
    drawn(chromium)
    chromium.click("#theme")
    assert chromium.run(NAMES)[0] == "LeNet"
    assert chromium.troubles() == []


def test_names_are_shown_as_they_are(show, lenet, request):
    browser = show(profiles(request)["nasty"])
    in_the_models_order(browser)
    browser.run("document.querySelector('#body tr:last-child td:last-child').click()")
    assert browser.run(NAMES)[-1] == "<img src=x onerror=alert(1)>"
    assert browser.run("document.querySelector('#body .badge').textContent") == "&lt;"
    assert browser.run("document.images.length") == 0
    search(browser, "<img src=x")
    assert browser.run("document.querySelector('mark').textContent") == "<img"
    assert browser.troubles() == []


@pytest.mark.slow
@pytest.mark.parametrize("make", ["flat", "decoder"])
def test_30_000_modules_are_drawn_as_far_as_they_are_looked_at(show, request, measured, make):
    """No time is asserted: what makes a page slow is the number of its elements."""
    profile = measured(request.getfixturevalue(make)({"flat": 30_000, "decoder": 2500}[make]))
    browser = show(profile)
    elements = "document.querySelectorAll('*').length"
    assert browser.run(elements) < 12_000
    browser.click("#open-all")
    browser.run("document.querySelector('.fold')?.click()")
    assert browser.run(elements) < 12_000
    assert len(browser.run(NAMES)) == 250
    own = {"flat": 0, "decoder": 2500}[make]  # of attention
    left = len(profile.modules) + own - 250
    assert browser.run("document.getElementById('more').textContent") == f"Show 1,000 of {left:,} more"
    browser.click("#more")
    assert len(browser.run(NAMES)) == 1250
    last = profile.modules[-1].path
    search(browser, last)
    assert browser.run(NAMES)[-1] == last
    assert browser.troubles() == []


def test_unknown_operators_stand_with_their_reason(show, lenet):
    operators = (*lenet.operators, OperatorRow("my::op", 3, 0, status="unknown"))
    browser = show(dataclasses.replace(lenet, operators=operators, unknown={"my::op": "no formula"}))
    assert "my::op" in browser.run("document.getElementById('unknown').innerText")
