"""The page of a comparison in headless Chromium."""

from __future__ import annotations

import math

import pytest

from flopcallback.reporting.comparison import compare_runs
from flopcallback.reporting.page.comparison_page import comparison_page
from flopcallback.runs.record import COMPUTE, RunRecord

pytestmark = pytest.mark.browser


@pytest.fixture
def show(chromium, tmp_path):
    """Opens the page of runs at 1280 × 900 in light colours, and gives the browser."""

    def shown(runs, **options):
        chromium.resize(1280, 900)
        chromium.prefer("light")
        file = tmp_path / "page.html"
        file.write_text(comparison_page(compare_runs(runs, **options)), encoding="utf-8")
        chromium.open(file.as_uri())
        return chromium

    return shown


def run(name, compute=None, loss=None, *, forward_ms=1.5, points=4):
    figures = {"model/params": 7000, "flops/forward": 10**9, "latency/forward_ms": forward_ms}
    steps = range(1, points + 1)
    series = {}
    if compute is not None:
        series[COMPUTE] = tuple((step, compute * step // points) for step in steps)
    if loss is not None:
        series["val/loss"] = tuple((step, loss * points / step) for step in steps)
    last = {key: values[-1][1] for key, values in series.items()}
    return RunRecord(name, f"runs/{name}", {**figures, **last}, series)


def kinds():
    good = [run(f"width-{8 * place}", 10**9 * 4**place, 2.0 / place) for place in range(1, 7)]
    return {
        "a sweep": (good, {"metric": "val/loss"}),
        "things missing": ([*good, run("no compute", None, 1.0), run("no loss", 10**9)], {"metric": "val/loss"}),
        "no metric": (good, {}),
        "one run": ([run("alone", 10**9, 0.5)], {"metric": "val/loss"}),
        "nothing known": ([RunRecord("nothing", "runs/nothing")], {}),
        "300 runs": (
            [run(f"r{place}", 10**9 + place, 1 / (place + 1)) for place in range(300)],
            {"metric": "val/loss"},
        ),
        "equal compute": ([run(f"at {place}", 10**9, 0.5 + place) for place in range(3)], {"metric": "val/loss"}),
        "diverged": ([run("nan", 10**9, math.nan), run("fine", 10**9, 1.0)], {"metric": "val/loss"}),
        "nasty": (
            [run("<img src=x onerror=alert(1)>" * 4, 10**9, 1.0), run("</script>", 10**8, 2.0)],
            {"metric": "val/loss"},
        ),
        "long": ([run("a" * 200, 10**150, 1.0), run("b/" * 90, 10**8, 2.0)], {"metric": "val/loss"}),
    }


KINDS = list(kinds())


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_without_a_word_in_the_console_and_asks_for_nothing(show, kind):
    runs, options = kinds()[kind]
    browser = show(runs, **options)
    assert browser.troubles() == []
    assert [url.rpartition("/")[2] for url in browser.requests()] == ["page.html"]
    assert browser.run("document.querySelectorAll('#body tr').length") == len(runs)


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_shows_the_page_without_scrolling_sideways(show, kind, width):
    runs, options = kinds()[kind]
    browser = show(runs, **options)
    browser.resize(width, 844)
    browser.run("document.querySelector('#body tr').click()")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.troubles() == []


def test_on_a_phone_compute_and_metric_are_in_sight_and_a_tap_shows_the_rest(show):
    browser = show(*kinds()["a sweep"][:1], metric="val/loss")
    browser.resize(390, 844)
    heads = """[...document.querySelectorAll('.runs thead th')].filter(
        head => head.offsetWidth && head.getBoundingClientRect().right <= 390).map(head => head.innerText)"""
    assert browser.run(heads) == ["#", "run", "FLOPs", "compute", "val/loss"]
    browser.click("#body tr:first-child th")
    told = browser.run("document.getElementById('tip').innerText").splitlines()
    assert told == [
        "width-48",
        "params: 7.00 k",
        "FLOPs: 1.00 G",
        "fwd ms: 1.50",
        "step ms: -",
        "MFU %: -",
        "compute: 4.10 T",  # 4**6 * 1e9
        "val/loss: 0.3333",
    ]


def test_what_is_missing_is_said_and_not_drawn(show):
    runs, options = kinds()["things missing"]
    browser = show(runs, **options)
    drawn = "[...document.querySelectorAll('#front-plot g[data-run]')].length"
    assert browser.run(drawn) == 6
    assert "no compute, no loss" in browser.run("document.querySelector('#front .note').innerText")
    cells = """[...document.querySelectorAll('#body tr')].find(
        row => row.cells[1].textContent === 'no compute').cells[7].textContent"""
    assert browser.run(cells) == "-"


def test_a_run_that_is_pointed_at_is_lit_everywhere(show):
    browser = show(kinds()["a sweep"][0], metric="val/loss")
    browser.click("#front-plot g[data-run='2'] circle")
    lit = "[...document.querySelectorAll('.lit')].map(each => [each.localName, each.dataset.run].join(' '))"
    assert sorted(browser.run(lit)) == ["g 2", "g 2", "g 2", "polyline 2", "tr 2"]
    assert browser.run("document.getElementById('tip').innerText").startswith("width-32")
    browser.click("h1")
    assert browser.run(lit) == []
    assert browser.run("document.getElementById('tip').hidden")


def test_a_heading_sorts_and_what_is_missing_stays_last(show):
    runs = [run("ten", 10, 1.0), run("nine", 9, 2.0), run("none", None, 3.0), run("million", 10**6, 4.0)]
    browser = show(runs, metric="val/loss")
    names = "[...document.querySelectorAll('#body th')].map(cell => cell.firstChild.textContent.trim())"
    assert browser.run(names) == ["ten", "nine", "none", "million"]
    compute = ".runs thead th:nth-child(8) button"
    browser.click(compute)
    assert browser.run(names) == ["nine", "ten", "million", "none"]
    browser.click(compute)
    assert browser.run(names) == ["million", "ten", "nine", "none"]
    browser.click(".runs thead th:nth-child(2) button")
    assert browser.run(names) == ["million", "nine", "none", "ten"]


def test_names_are_shown_as_they_are(show):
    runs, options = kinds()["nasty"]
    browser = show(runs, **options)
    browser.click("#front-plot g[data-run='0'] circle")
    assert browser.run("document.querySelector('#tip b').textContent").startswith("<img src=x onerror=alert(1)>")
    assert browser.run("document.images.length") == 0
    assert browser.troubles() == []


def test_the_front_is_a_stair_through_the_runs_on_it(show):
    runs = [run("a", 100, 4.0), run("b", 200, 2.0), run("worse", 300, 3.0)]
    browser = show(runs, metric="val/loss")
    places = browser.run("document.querySelector('#front-plot polyline.front').getAttribute('points')").split()
    corners = [tuple(map(float, place.split(","))) for place in places]
    circle = "document.querySelector(`#front-plot g[data-run='{}'] circle`)"
    place = "['cx', 'cy'].map(name => parseFloat({}.getAttribute(name)))"
    best, cheap = (tuple(browser.run(place.format(circle.format(row)))) for row in (0, 2))
    assert corners == [cheap, (best[0], cheap[1]), best]
