"""The example on published times of GPUs: coefficients by hand, tables of both kinds, errors that name the column."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.tensorboard  # matplotlib, and NumPy with it

SCRIPT = Path(__file__).parents[2] / "examples" / "flops_and_gpu_latency.py"

# Six models of one family and five of another: (name, side, 1e9 multiply-adds, 1e6 activations, 1e6 parameters, ms).
# By time, the first family's multiply-adds are 1 2 3 4 5 6, the activations 2 1 3 4 5 6, the parameters 6 5 4 3 2 1.
# Of the second the activations are in order, and the multiply-adds, a tenth of the first one's, in the reverse one.
MODELS = [
    ("tall_1", 32, 1.0, 20.0, 6.0, 1.0),
    ("tall_2", 32, 2.0, 10.0, 5.0, 2.0),
    ("tf_tall_3", 32, 3.0, 30.0, 4.0, 3.0),
    ("tall_4", 32, 4.0, 40.0, 3.0, 4.0),
    ("tall_5", 32, 5.0, 50.0, 2.0, 5.0),
    ("tall_6", 64, 6.0, 60.0, 1.0, 6.0),
    ("flat_a", 32, 0.5, 11.0, 7.0, 1.5),
    ("flat_b", 32, 0.4, 21.0, 8.0, 2.5),
    ("flat_c", 32, 0.3, 31.0, 9.0, 3.5),
    ("flat_d", 32, 0.2, 41.0, 10.0, 4.5),
    ("flat_e", 32, 0.1, 51.0, 11.0, 5.5),
]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def written(folder, name, *, factor=1.0, columns=None):
    """A file of timm's; a batch of 10 images, which the script need not look at."""
    header = (
        columns or "model,infer_img_size,infer_samples_per_sec,infer_batch_size,param_count,infer_gmacs,infer_macts"
    )
    lines = [
        f"{model},{side},{1000 / (factor * ms)},10,{parameters},{macs},{activations}"
        for model, side, macs, activations, parameters, ms in MODELS
    ]
    file = folder / f"benchmark-infer-{name}.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def merged(folder):
    header = "model,image_size,gmacs,mactivations,mparams,card_ms_per_image,card_compiled_ms_per_image"
    lines = [
        f"{model},{side},{macs},{activations},{parameters},{ms},{'' if model == 'flat_e' else ms / 2}"
        for model, side, macs, activations, parameters, ms in MODELS
    ]
    file = folder / "several.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


@pytest.mark.parametrize(
    ("one", "other", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        # 1 - 6 * (1 + 1) / (4 * (16 - 1)): two neighbours have changed places.
        ([1, 2, 3, 4], [2, 1, 3, 4], 1 - 12 / 60),
        # Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / 22.5**0.5),
    ],
)
def test_rank_correlation_by_hand(script, one, other, rho):
    import numpy as np

    assert script["spearman"](np.array(one), np.array(other)) == pytest.approx(rho, abs=1e-12)


def test_within_families_and_among_all(script, tmp_path):
    (table,) = script["read"](written(tmp_path, "card"))
    assert len(table.models) == 11
    within = script["within_families"](table)
    # Medians of two families: 1 and -1; 1 - 6 * 2 / (6 * 35) and 1; -1 and 1.
    assert within == pytest.approx({"FLOPs": 0, "activations": (1 - 12 / 210 + 1) / 2, "parameters": 0})
    # By time the families take turns: activations 20 11 10 21 30 31 ..., whose ranks are 2 1 0 3 4 5 ...
    assert script["correlations"](table)["activations"] == pytest.approx(1 - 6 * 8 / (11 * 120))
    assert list(script["time_per_flop"](table)) == ["flat", "tall"]


def test_time_for_a_flop_in_units_of_the_usual(script, tmp_path):
    (table,) = script["read"](written(tmp_path, "card"))
    # ms over 1e9 FLOPs, 2 a multiply-add: 0.5 six times, then 1.5, 3.125, 5.83, 11.25, 27.5; the median of all is 0.5.
    found = script["time_per_flop"](table)
    assert found == pytest.approx({"flat": 3.5 / 0.6 / 0.5, "tall": 1})


def test_what_compiling_changes(script, tmp_path):
    eager, compiled = (
        script["read"](written(tmp_path, name, factor=f))[0] for name, f in (("x", 1), ("x-dynamo", 0.5))
    )
    ((before, after),) = script["pairs"]([eager, compiled])
    assert before.ms == pytest.approx(2 * after.ms)
    assert next(iter(script["describe_compiled"](before, after))).startswith("x, compiled: 2.00 times as fast")
    both = list(script["pairs"](script["read"](merged(tmp_path))))
    assert [len(table.models) for table in both[0]] == [10, 10]  # of one of the eleven there is no compiled time


def test_the_whole_script(script, tmp_path, capsys):
    script["main"]([str(merged(tmp_path)), "--figure", str(tmp_path / "figure.png")])
    printed = capsys.readouterr().out
    assert "card: 11 models, 2 families of 5 or more" in printed
    assert "best: activations" in printed
    assert "flat 11.67" in printed
    assert "card, compiled: 2.00 times as fast" in printed
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("column", ["infer_gmacs", "infer_macts", "param_count", "infer_samples_per_sec", "model"])
def test_a_missing_column_is_named(script, tmp_path, column):
    columns = "model,infer_img_size,infer_samples_per_sec,infer_batch_size,param_count,infer_gmacs,infer_macts"
    file = written(tmp_path, "card", columns=columns.replace(column, "other"))
    with pytest.raises(SystemExit, match=f"card.csv: no column {column}; it has .*other"):
        script["main"]([str(file)])


def test_a_figure_that_is_none_is_named(script, tmp_path):
    file = written(tmp_path, "card")
    file.write_text(file.read_text().replace("tall_2,32,500.0", "tall_2,32,error"))
    with pytest.raises(SystemExit, match="infer_samples_per_sec of tall_2 is 'error', expected a number above 0"):
        script["main"]([str(file)])


def test_without_a_table_it_says_where_to_get_one(script, capsys):
    with pytest.raises(SystemExit) as ended:
        script["main"]([])
    assert ended.value.code == 2
    printed = capsys.readouterr().out
    assert "results/benchmark-infer-*.csv" in printed
    assert "infer_samples_per_sec" in printed


def test_counts_that_differ_from_the_table_are_named(script, tmp_path):
    (table,) = script["read"](written(tmp_path, "card"))
    own = {name: macs for name, _, macs, *_ in MODELS} | {"tall_4": 5.0, "tall_5": 5.004}
    lines = list(script["describe_counts"](table, ["tall_*"], lambda model, side: own[model]))
    assert lines[0] == "card: 5 models counted, 1 not as in the table, 1e9 multiply-adds:"
    assert lines[1] == "  tall_4 at 32: 5.000, in the table 4.00 (-20 %)"
    # By time the table's are 1 2 4 5 6; ours 1 2 5 5.004 6: the same order.
    assert lines[2] == "  rank correlation of these with time: the table's FLOPs 1.0000, ours 1.0000"


def test_without_timm_it_says_how_to_get_it(script, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(SystemExit, match="pip install timm"):
        script["main"]([str(written(tmp_path, "card")), "--count", "tall_*", "--figure", str(tmp_path / "f.png")])
