"""Whatever a reader gives or raises: numbers are checked where they enter a record, and errors become `RunsError`."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from flopcallback.profile.numbers import LARGEST
from flopcallback.runs import FoundRun, RunRecord, RunsError, find_runs, series_of


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("0.5", "'0.5', which is no number"),
        (None, "None, which is no number"),
        (True, "True, which is no number"),
        ([7], "[7], which is no number"),
        (1j, "1j, which is no number"),
        (10**400, ", which is too large to be compared"),
        (-(10**400), ", which is too large to be compared"),
    ],
)
def test_a_figure_or_a_value_that_is_no_number_is_refused_by_name(value, complaint):
    with pytest.raises(RunsError) as raised:
        RunRecord("net", "here/net", figures={"val/loss": value})
    assert str(raised.value).startswith("here/net: val/loss is ")
    assert str(raised.value).endswith(complaint)
    with pytest.raises(RunsError, match=r"^here/net: val/loss is "):
        RunRecord("net", "here/net", series={"val/loss": ((1, 0.5), (2, value))})


@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["above", "below"])
def test_an_integer_that_python_writes_no_digits_of_is_refused(value):
    said = "an integer of more than 3,000 digits, which is "
    with pytest.raises(RunsError, match=rf"^net: val/loss is {said}too large to be compared$"):
        RunRecord("net", "net", figures={"val/loss": value})
    with pytest.raises(RunsError, match=rf"^net: a step is {said}no whole number"):
        RunRecord("net", "net", series={"val/loss": ((value, 0.5),)})


@pytest.mark.parametrize("prefix", ["", "mine/", "mine/validate/"])
@pytest.mark.parametrize("name", ["compute/flops_total", "compute/samples_total", "compute/tokens_total"])
def test_a_total_below_0_is_refused(prefix, name):
    said = rf"^net: {prefix}{name} is -7, and a total is 0 or more$"
    with pytest.raises(RunsError, match=said):
        RunRecord("net", "net", figures={prefix + name: -7})
    with pytest.raises(RunsError, match=said):
        RunRecord("net", "net", series={prefix + name: ((1, 5), (2, -7), (3, 9))})
    kept = RunRecord(
        "net", "net", figures={prefix + name: math.nan, "val/score": -7}, series={prefix + name: ((1, 0),)}
    )
    assert kept.figures["val/score"] == -7


@pytest.mark.parametrize("value", [b"\xff\x00", None, 7])
def test_a_name_or_a_place_that_is_no_text_is_refused(value):
    with pytest.raises(RunsError, match=r"^net: the name of a run is .*, no text$"):
        RunRecord(value, "net")
    with pytest.raises(RunsError, match=r"the place of a run is .*, no text$"):
        RunRecord("net", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.7e308, LARGEST, -LARGEST, 0, -0.0])
def test_a_number_is_kept_as_it_is(value):
    run = RunRecord("net", "net", figures={"a": value}, series={"a": ((1, value),)})
    for kept in (run.figures["a"], run.series["a"][0][1]):
        assert kept is value


def test_numbers_of_other_types_are_made_pythons_own():
    numpy = pytest.importorskip("numpy")
    given = {"f32": numpy.float32(0.5), "i64": numpy.int64(7), "f64": numpy.float64(0.25), "part": Fraction(1, 4)}
    run = RunRecord("net", "net", figures=given, series={"a": ((numpy.int64(3), numpy.float32(0.5)),)})
    assert run.figures == {"f32": 0.5, "i64": 7, "f64": 0.25, "part": 0.25}
    assert [type(value) for value in run.figures.values()] == [float, int, float, float]
    assert run.series["a"] == ((3, 0.5),)
    assert [type(value) for value in run.series["a"][0]] == [int, float]


@pytest.mark.parametrize("step", ["1", None, True, 1.0, 1.5, math.nan, [1], 10**400])
def test_a_step_that_is_no_whole_number_is_refused(step):
    with pytest.raises(RunsError, match=r"^net: a step is .*, which is no whole number"):
        RunRecord("net", "net", series={"val/loss": ((step, 0.5),)})
    with pytest.raises(ValueError, match=r"^a step is .*, which is no whole number"):
        series_of([("val/loss", 1, 0.5), ("val/loss", step, 0.5)])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("so\nand so"), "net: it cannot be read: RuntimeError: so"),
        (RecursionError("maximum"), "net: it cannot be read: it is nested too deeply"),
        (ValueError("a step is 'x'"), "net: it cannot be read: a step is 'x'"),
        (PermissionError(13, "Permission denied"), "net: it cannot be read: Permission denied"),
        (RunsError("net/a.json, line 3: so"), "net/a.json, line 3: so"),
    ],
)
def test_whatever_a_reader_raises_is_one_sentence(error, said):
    def read():
        raise error

    with pytest.raises(RunsError) as raised:
        FoundRun("net", read).read()
    assert str(raised.value) == said


@pytest.mark.parametrize(
    "place", ["a\0b", "x" * 5000, "\ud800", "http://[", "~no-such-user/x", "sqlite:///", "file://"]
)
def test_a_place_that_cannot_be_one_is_refused_with_a_sentence(place):
    with pytest.raises(RunsError, match=r".{20}"):
        find_runs(place)


# --- Readers of others ------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with a reader of this code, as pip would."""

    def install(code):
        (tmp_path / "lib" / "theirs-1.dist-info").mkdir(parents=True)
        (tmp_path / "lib" / "theirs-1.dist-info" / "METADATA").write_text("Name: theirs\nVersion: 1\n")
        (tmp_path / "lib" / "theirs-1.dist-info" / "entry_points.txt").write_text(
            "[flopcallback.runs]\ntheirs = their_reader:find_runs\n"
        )
        (tmp_path / "lib" / "their_reader.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "lib")

    monkeypatch.delitem(__import__("sys").modules, "their_reader", raising=False)
    return install


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def find_runs(place): raise KeyError('so')", "theirs: KeyError: 'so'"),
        ("find_runs = 3", "theirs: TypeError: 'int' object is not callable"),
        ("def find_runs(place): return 3", "theirs: TypeError: 'int' object is not iterable"),
    ],
)
def test_a_reader_that_fails_is_a_run_that_cannot_be_read(installed, tmp_path, code, said):
    installed(code)
    (tmp_path / "net").mkdir()
    with pytest.raises(RunsError, match=r"net: theirs: "):
        find_runs(tmp_path / "net")
    (tmp_path / "net" / "scalars.jsonl").write_text('{"step": 1, "val/loss": 0.5}\n')
    ours, theirs = find_runs(tmp_path / "net")
    assert ours.read().figures == {"val/loss": 0.5}
    with pytest.raises(RunsError) as raised:
        theirs.read()
    assert str(raised.value) == f"{tmp_path / 'net'}: {said}"


def test_a_reader_that_cannot_be_imported_is_said_where_there_is_nothing_else(installed, tmp_path):
    installed("from flopcallback import no_such_name")
    (tmp_path / "net").mkdir()
    with pytest.raises(RunsError, match="cannot import name 'no_such_name'"):
        find_runs(tmp_path / "net")
    (tmp_path / "net" / "scalars.jsonl").write_text('{"step": 1, "val/loss": 0.5}\n')
    assert len(find_runs(tmp_path / "net")) == 1
