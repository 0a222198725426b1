"""`flopcallback count`: any model that can be named, with inputs from a command line, in every form of output."""

from __future__ import annotations

import json

import pytest

from flopcallback import FlopCountAnalysis
from flopcallback.counting.verification import Difference
from flopcallback.reporting import ModelProfile, Verdict

BATCH, IN, WIDTH, OUT = 2, 3, 5, 7
NET_FLOPS = 2 * BATCH * (IN * WIDTH + WIDTH * OUT)
INPUT = ("--input", f"{BATCH},{IN}")


def profile_of(result) -> ModelProfile:
    assert result.exit_code == 0, result.output
    return ModelProfile.from_json(result.stdout)


# --- The model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["some_net:make", "some_net:Net", "some_net:nested.make"])
def test_a_function_or_a_class_makes_the_model(flopcallback, target):
    profile = profile_of(flopcallback("count", target, *INPUT, "--json"))
    assert (profile.name, profile.forward_flops) == ("Net", NET_FLOPS)
    assert [row.path for row in profile.modules] == ["", "first", "last"]


def test_a_model_that_the_module_holds_is_taken_as_it_is(flopcallback):
    profile = profile_of(flopcallback("count", "some_net:ready", *INPUT, "--json"))
    assert profile.forward_flops == 2 * BATCH * (IN * 2 + 2 * OUT)


def test_a_factory_takes_arguments(flopcallback):
    profile = profile_of(
        flopcallback("count", "some_net:make", "--arg", "width=11", "--arg", "deep=True", *INPUT, "--json")
    )
    assert profile.forward_flops == 2 * BATCH * (IN * 11 + 11 * OUT + OUT * 2)


def test_what_a_factory_returns_may_be_a_function(flopcallback):
    profile = profile_of(flopcallback("count", "some_net:function", *INPUT, "--json"))
    assert profile.forward_flops == 2 * BATCH * IN * BATCH


# --- Its inputs -------------------------------------------------------------------------------------------------------


def test_inputs_are_given_by_position_or_name_with_their_dtypes(flopcallback):
    inputs = ("--input", "5,2:int64:11", "--input", "mask=5,2:bool")
    profile = profile_of(flopcallback("count", "some_net:Tokens", *inputs, "--json"))
    assert profile.forward_flops == 2 * (5 * 2 * 3 * 13)
    assert profile.config["flops.input_shapes"] == [[5, 2], [5, 2]]
    profile = profile_of(flopcallback("count", "some_net:Tokens", "--input", "ids=5,2:int64:3:11", "--json"))
    assert profile.forward_flops == 2 * (5 * 2 * 3 * 13)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "False False torch.float32 cpu"),
        (("--train",), "True True torch.float32 cpu"),
        (("--eval", "--dtype", "bfloat16"), "False False torch.bfloat16 cpu"),
        (("--device", "meta"), "False False torch.float32 meta"),
    ],
)
def test_mode_dtype_and_device_reach_the_model(flopcallback, options, says):
    result = flopcallback("count", "some_net:Counting", *INPUT, *options)
    assert f"the model says {says}" in result.stderr
    assert result.exit_code == 0


def test_on_the_meta_device_weights_of_any_size_are_counted(flopcallback):
    width = 10**9  # of weights, 10 billion
    profile = profile_of(
        flopcallback("count", "some_net:Net", "--arg", f"width={width}", "--device", "meta", *INPUT, "--json")
    )
    assert profile.forward_flops == 2 * BATCH * (IN * width + width * OUT)
    assert profile.config["flops.device"] == "meta"


def test_elementwise_work_is_in_macs(flopcallback):
    profile = profile_of(flopcallback("count", "some_net:Net", *INPUT, "--elementwise", "--json"))
    assert profile.forward_flops == NET_FLOPS
    assert profile.forward_macs == NET_FLOPS // 2 + BATCH * WIDTH  # the ReLU


@pytest.mark.parametrize("fma", [1, 2])
def test_the_option_fma_changes_nothing_and_says_so_in_one_line(flopcallback, fma):
    result = flopcallback("count", "some_net:Net", *INPUT, "--fma", fma, "--json")
    assert (profile_of(result).forward_flops, profile_of(result).forward_macs) == (NET_FLOPS, NET_FLOPS // 2)
    assert result.stderr.startswith("--fma: FLOPs are 2 per multiply-add")
    assert "macs" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("shape", ["2,3", "(2, 3)", "[2, 3]"])
def test_a_shape_may_stand_in_brackets(flopcallback, shape):
    assert profile_of(flopcallback("count", "some_net:make", "--input", shape, "--json")).forward_flops == NET_FLOPS


@pytest.mark.parametrize("options", [(), ("--train",), ("--latency",)])
def test_lazy_modules_have_their_sizes_by_a_first_call(flopcallback, options):
    profile = profile_of(flopcallback("count", "some_net:lazy", *INPUT, *options, "--json"))
    assert (profile.forward_flops, profile.root.params) == (2 * BATCH * IN * WIDTH, IN * WIDTH + WIDTH)


# --- What it prints ---------------------------------------------------------------------------------------------------


def test_the_table_is_printed_and_what_the_model_prints_is_not_in_it(flopcallback):
    result = flopcallback("count", "some_net:make", *INPUT)
    first, *rest = result.stdout.splitlines()
    assert first == f"Net, one call: {NET_FLOPS} FLOPs, 62 parameters"  # 3 * 5 + 5 + 5 * 7 + 7
    assert any(line.startswith("└─ last") for line in rest)
    assert "made here" in result.stderr


def test_a_table_is_as_deep_as_asked_for(flopcallback):
    arguments = ("count", "some_net:make", "--arg", "deep=True", *INPUT)
    assert "first" in flopcallback(*arguments).stdout
    assert "first" not in flopcallback(*arguments, "--depth", 1).stdout


def test_other_forms_are_printed_in_place_of_the_table(flopcallback):
    assert json.loads(flopcallback("count", "some_net:make", *INPUT, "--json").stdout)["forward_flops"] == NET_FLOPS
    assert flopcallback("count", "some_net:make", *INPUT, "--html").stdout.startswith("<!doctype html>")
    assert flopcallback("count", "some_net:make", *INPUT, "--markdown").stdout.startswith("**Net, one call")


def test_files_are_written_beside_what_is_printed(flopcallback, folder):
    names = ("a.json", "a.html", "a.md", "a.txt")
    result = flopcallback("count", "some_net:make", *INPUT, *(word for name in names for word in ("--output", name)))
    assert result.exit_code == 0
    assert result.stdout.startswith("Net, one call")
    assert ModelProfile.from_json((folder / "a.json").read_text(encoding="utf-8")).forward_flops == NET_FLOPS
    assert all("Net, one call" in (folder / name).read_text(encoding="utf-8") for name in names[2:])
    assert (folder / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_times_are_measured_when_asked_for(flopcallback):
    profile = profile_of(flopcallback("count", "some_net:make", *INPUT, "--latency", "--json"))
    assert profile.forward_ms > 0
    assert all(row.forward_ms > 0 for row in profile.modules)


def test_a_lower_bound_says_so(flopcallback):
    result = flopcallback("count", "some_net:Exponential", "--input", "5,3")
    assert result.stdout.startswith(f"Exponential, one call: >= {2 * (3 * 5 * 3)} FLOPs")
    assert "linalg_matrix_exp" in result.stdout


def test_what_is_unknown_is_said_once(flopcallback, caplog):
    flopcallback("count", "some_net:Exponential", "--input", "5,3", "--verify")
    assert caplog.messages == []


# --- The check by the second engine -----------------------------------------------------------------------------------


def test_engines_that_agree_say_so(flopcallback):
    result = flopcallback("count", "some_net:make", *INPUT, "--verify")
    assert result.exit_code == 0
    assert "verified: both engines count the same" in result.stdout.splitlines()


@pytest.fixture
def two_differences(monkeypatch):
    """Both engines see the same of any model that we can name, so a difference has to be made up."""
    found = (Difference("", "matmul", 200, 60), Difference("last", "matmul", 140, 0))
    monkeypatch.setattr(FlopCountAnalysis, "verify", lambda analysis, **_: found)


@pytest.mark.usefixtures("two_differences")
def test_engines_that_differ_are_exit_code_1_and_listed(flopcallback):
    result = flopcallback("count", "some_net:make", *INPUT, "--verify")
    assert result.exit_code == 1
    assert "the engines differ in 2 places" in result.stdout.splitlines()
    assert "the engines differ: (model), matmul: 200 traced, 60 dispatched" in result.stdout
    assert "the engines differ: last, matmul: 140 traced, 0 dispatched" in result.stdout
    assert result.stderr.splitlines()[-1] == "Failed: the engines differ in 2 places"


@pytest.mark.usefixtures("two_differences")
@pytest.mark.parametrize("form", ["--json", "--html", "--markdown"])
def test_the_verdict_is_in_every_form_and_said_on_stderr(flopcallback, form):
    result = flopcallback("count", "some_net:make", *INPUT, "--verify", form)
    assert result.exit_code == 1
    assert "the engines differ in 2 places" in result.stderr
    if form == "--json":
        assert [each.dispatch for each in ModelProfile.from_json(result.stdout).verdict.differences] == [60, 0]
    else:
        assert "the engines differ in 2 places" in result.stdout


def test_files_have_the_verdict_too(flopcallback, folder):
    files = ("--output", "a.json", "--output", "a.html", "--output", "a.md")
    assert flopcallback("count", "some_net:make", *INPUT, "--verify", *files).exit_code == 0
    assert ModelProfile.from_json((folder / "a.json").read_bytes()).verdict == Verdict()
    for name in ("a.html", "a.md"):
        assert "verified: both engines count the same" in (folder / name).read_text(encoding="utf-8")


def test_the_verdict_keeps_out_of_json(flopcallback):
    result = flopcallback("count", "some_net:make", *INPUT, "--verify", "--json")
    assert profile_of(result).forward_flops == NET_FLOPS
    assert result.stderr.splitlines()[-1] == "verified: both engines count the same"


def test_two_engines_can_be_named(flopcallback):
    result = flopcallback("count", "some_net:make", *INPUT, "--verify-with", "trace,observer")
    assert result.exit_code == 0
    assert "verified: trace and observer count the same" in result.stdout.splitlines()


@pytest.mark.parametrize("engines", ["trace", "trace,trace", "trace,fast"])
def test_other_names_than_two_engines_are_refused(flopcallback, engines):
    result = flopcallback("count", "some_net:make", *INPUT, "--verify-with", engines)
    assert result.exit_code == 2
    expected = "expected two different ones of trace, dispatch, observer, such as trace,observer"
    assert f"--verify-with {engines}: {expected}" in " ".join(result.stderr.split())


def test_without_being_asked_for_there_is_no_verdict(flopcallback):
    assert profile_of(flopcallback("count", "some_net:make", *INPUT, "--json")).verdict is None
    assert "verified" not in flopcallback("count", "some_net:make", *INPUT).output


def test_what_cannot_be_verified_is_not_passed_over(flopcallback):
    result = flopcallback("count", "some_net:Sparse", *INPUT, "--verify")
    assert result.exit_code == 2
    why = "not verified: only the dispatcher can count this call: the tracer loses operators on sparse tensors"
    assert why in result.stdout
    assert result.stderr.splitlines()[-1] == f"Error: {why}"


# --- The engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "engine"),
    [((), "trace"), (("--engine", "trace"), "trace"), (("--engine", "dispatch", "--latency"), "dispatch")],
)
def test_an_engine_can_be_chosen_and_counts_the_same(flopcallback, options, engine):
    profile = profile_of(flopcallback("count", "some_net:make", *INPUT, "--json", *options))
    assert (profile.config["flops.engine"], profile.forward_flops) == (engine, NET_FLOPS)


# --- What it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("some_net",),
            "'some_net' names no model. Give module:name, such as net:Net for class Net in net.py, or hf:config",
        ),
        (("some_net.py:make",), "'some_net.py' is a file, expected a module: some_net:make"),
        (("not_here:make",), "there is no module 'not_here' in "),
        (("some_net:mke",), "'some_net:mke': the module some_net has no 'mke'; did you mean make?"),
        (("some_net:number",), "some_net:number is 3, expected a model, or a class or a function that makes one"),
        (("some_net:nothing",), "some_net:nothing returned None, expected a model"),
        (("some_net:ready", "--arg", "width=3"), "some_net:ready is a model already; --arg is for"),
        (("some_net:make", "--arg", "width"), "--arg 'width' is no name=value, such as width=64"),
        (("some_net:make", "--input", "2,x"), "--input '2,x' is no shape, such as 1,3,224,224"),
        (("some_net:make", "--input", "2,-3"), "--input '2,-3': sizes are 0 or more"),
        (("some_net:make", "--input", "2,3:float33"), "PyTorch has no dtype 'float33'"),
        (("some_net:make", "--input", "2,3:float32:5"), "a range of values is for integers, not for float32"),
        (("some_net:make", "--input", "2,3:int64:5:5"), "no integer is from 5 on and below 5"),
        (("some_net:make", "--input", "x=2", "--input", "x=3"), "x is given twice"),
        (("some_net:make", "--dtype", "nn"), "--dtype: PyTorch has no dtype 'nn'"),
        (
            ("some_net:make", "--dtype", "int64"),
            "--dtype int64: parameters are floating-point; integers are for inputs",
        ),
        (("some_net:make", "--device", "nowhere"), "--device nowhere: "),
        (("some_net:make", "--json", "--html"), "--json and --html: only one form can be printed"),
        (("some_net:make", "--output", "a.pdf"), "--output a.pdf: its form is not known"),
        (("some_net:make", *INPUT, "--output", "gone/a.md"), "--output gone/a.md: there is no folder gone"),
        pytest.param(
            ("hf:./gone.json",), "hf:./gone.json: there is no file or folder gone.json", marks=pytest.mark.models
        ),
        (("some_net:make", "--fma", "3"), "--fma"),
        (("some_net:make", "--engine", "tracer"), "'tracer' is not one of 'auto', 'trace', 'dispatch'"),
        (
            ("some_net:Sparse", "--engine", "trace", *INPUT),
            "--engine trace: the tracer loses operators on sparse tensors; the dispatcher can count this call, with "
            "--engine auto",
        ),
        (
            ("some_net:make", "--latency", "--device", "meta", *INPUT),
            "measure_latency: the model is on the meta device",
        ),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_says_what_to_do(flopcallback, arguments, message):
    result = flopcallback("count", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ("some_net:Net", "--input", "2,5"),
            ("calling it with (2, 5) raised RuntimeError: mat1 and mat2", "in forward"),
        ),
        (("some_net:Net",), ("calling it with nothing (--input gives it tensors) raised TypeError", "'x'")),
        (("some_net:Sized",), ("some_net:Sized() (--arg gives it arguments) raised TypeError", "'width'")),
        (("some_net:Net", "--arg", "hight=3"), ("some_net:Net(hight=3) raised TypeError", "'hight'")),
        (("needy:make",), ("importing needy raised ModuleNotFoundError: No module named 'not_there_at_all'", "line 1")),
        (("script:make",), ("importing script raised SystemExit: usage: script.py DATA", "line 2")),
        (
            ("some_net:Looking", *INPUT, "--device", "meta"),
            ("on the meta device, where nothing is computed (--device cpu computes it)", "x.sum().item()"),
        ),
    ],
)
def test_what_the_users_code_raises_is_shown_where_it_was_raised(flopcallback, arguments, messages):
    result = flopcallback("count", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    for message in messages:
        assert message in result.stderr
    assert "torch/nn/modules" not in result.stderr
