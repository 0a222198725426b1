"""Each function of ours that a training reaches raises in turn, whenever it is called: training must not notice."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import flopcallback

pytestmark = [pytest.mark.lightning, pytest.mark.tensorboard, pytest.mark.models, pytest.mark.slow]

SOURCES = Path(flopcallback.__file__).parent
ROOTS = (str(SOURCES), str(SOURCES.parent / "integrations"))

# What stands between our failures and the training cannot fail in its place.
LAST_RESORTS = {
    "lightning_watch.py": {"wrapped", "close"},
    "callback.py": {"setup", "on_exception", "guarded", "_let_go", "_give_up"},
    "counting/attempt.py": {"call_once", "__init__", "__call__"},
    "recorder.py": {"stop_timing"},
    "failures.py": {"report"},
    # Called in place of a module's forward: all they do around it is guarded in there.
    "measuring/latency.py": {"timed"},
    "counting/outermost.py": {"outermost", "call"},
    "counting/whole_step.py": {"run_backward", "optimizer_step", "closure_of", "outside", "_note", "_keep"}
    | {"__torch_dispatch__", "region"},
    # Before an operator runs, they look up how; what is kept of it after it has run is guarded. In a whole step, that
    # is guarded as well: `test_failing_hooks.py`.
    "counting/dispatch.py": {"__torch_dispatch__", "_must_decompose", "_is_composite", "_is_looked_into"}
    | {"_as_without_a_mode", "_marks_views"},
    "counting/scopes.py": {"watched"},
    # Take away a wrapper.
    "counting/shadows.py": {"restore", "_forget"},
}


def place(code):
    """`counting/run.py`, for a function of ours; None for any other."""
    name = code.co_filename
    if code.co_name.startswith("<") or not name.startswith(ROOTS):
        return None
    return Path(name).relative_to(SOURCES).as_posix() if name.startswith(ROOTS[0]) else Path(name).name


def functions(thing):
    """The functions behind a name of a module or a class, decorated ones undone."""
    if isinstance(thing, (staticmethod, classmethod)):
        thing = thing.__func__
    if isinstance(thing, property):
        thing = thing.fget
    if isinstance(thing, functools.cached_property):
        thing = thing.func
    while thing is not None:
        if isinstance(thing, types.FunctionType):
            yield thing
        thing = getattr(thing, "__wrapped__", None)


def all_functions():
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("flopcallback", "flopcallback_tensorboard"):
            for thing in list(vars(module).values()):
                yield from functions(thing)
                if isinstance(thing, type) and thing.__module__ == name:
                    for member in vars(thing).values():
                        yield from functions(member)


def raising(code):
    """Code that raises, in the place of `code`."""
    source = "def stands_in(*args, **kwargs): raise LookupError('injected')"
    constants = compile(source, code.co_filename, "exec").co_consts
    body = next(const for const in constants if isinstance(const, types.CodeType))
    return body.replace(co_freevars=code.co_freevars, co_name=code.co_name)


def with_nested_replaced(code, target):
    """`code`, with `target` inside it (or inside a function inside it) replaced; None where it is not in it."""
    if code is target or code == target:
        return raising(code)
    for index, const in enumerate(code.co_consts):
        if isinstance(const, types.CodeType) and (inner := with_nested_replaced(const, target)) is not None:
            return code.replace(co_consts=(*code.co_consts[:index], inner, *code.co_consts[index + 1 :]))
    return None


def break_function(target, monkeypatch):
    """Makes the function whose code is `target` raise; whether it could be found."""
    found = False
    for function in set(all_functions()):
        if (broken := with_nested_replaced(function.__code__, target)) is not None:
            monkeypatch.setattr(function, "__code__", broken)
            found = True
    return found


def forget_what_is_cached():
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "flopcallback":
            for thing in list(vars(module).values()):
                for one in (thing, *(vars(thing).values() if isinstance(thing, type) else ())):
                    one = one.__func__ if isinstance(one, staticmethod) else one
                    if hasattr(one, "cache_clear"):
                        one.cache_clear()


def loggers(folder):
    from lightning.pytorch.loggers import TensorBoardLogger

    return [TensorBoardLogger(folder)]


OPTIONS = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0}


LOGGED = {"classifier": "train/loss_epoch", "gan": "train/loss"}


def make_callback(kind="classifier"):
    from flopcallback import FlopCallback

    return FlopCallback(warmup_steps=1, latency_steps=1, by_compute=[LOGGED[kind]])


# Their functions are pure, and what one raises is raised by those that call it: what other rooms call is enough.
PURE = ("reporting", "formulas")


def reached_by(train):
    """The code of our functions that a training reaches, in order of place; of pure rooms, what other rooms call."""
    codes = set()

    def note(frame, event, arg):
        if event == "call" and place(frame.f_code) is not None:
            room, caller = Path(frame.f_code.co_filename).parent, Path(frame.f_back.f_code.co_filename).parent
            if room.name not in PURE or caller != room:
                codes.add(frame.f_code)

    forget_what_is_cached()
    sys.setprofile(note)
    try:
        train()
    finally:
        sys.setprofile(None)
    return sorted(codes, key=lambda code: (place(code), code.co_firstlineno, code.co_name))


NOT_IN_TRAINING = ("fvcore/", "__init__.py")
PLACES = [
    where
    for where in sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.py"))
    if not where.startswith(NOT_IN_TRAINING) and not where.endswith("__init__.py")
]


# What manual optimisation reaches and automatic optimisation does not.
MODULE_BY_MODULE = ("counting/attempt.py", "counting/in_flight.py", "counting/outermost.py", "measuring/latency.py")
CASES = [(where, "classifier") for where in (*PLACES, "tracker.py")] + [(where, "gan") for where in MODULE_BY_MODULE]


@pytest.mark.parametrize(("where", "kind"), CASES)
def test_whatever_of_ours_raises_is_one_warning_and_nothing_else(
    lightning, run, classifier, gan, differences, leftovers, ours, where, kind
):
    train = functools.partial(
        run,
        lightning,
        make={"classifier": classifier, "gan": gan}[kind],
        loggers=loggers if where.startswith(("reporting/", "track")) else None,
        **OPTIONS,
    )
    untouched = train()
    train([make_callback(kind)])  # imports what it needs
    wrong = []
    for code in reached_by(functools.partial(train, [make_callback(kind)])):
        if place(code) != where or code.co_name in LAST_RESORTS.get(where, ()):
            continue
        callback = make_callback(kind)
        with pytest.MonkeyPatch.context() as monkeypatch:
            forget_what_is_cached()
            assert break_function(code, monkeypatch), code
            try:
                training = train([callback])
            except LookupError as error:
                wrong.append((code.co_name, code.co_firstlineno, "was raised", error))
                continue
        more = training.calls_counted - untouched.calls_counted
        if more:  # an engine had to stop, and the call was repeated from the same state: by the other one, or by none
            assert more <= 2 * (1 if kind == "classifier" else 0), code
            training.calls_counted = training.calls_in_file = untouched.calls_counted
        wrong += [(code.co_name, line) for line in (*differences(untouched, training), *leftovers(training.model))]
        told, profile = ours(training), callback.profiles.get("train")
        is_noted = profile is not None and "injected" in f"{profile.unknown}{profile.step_note}"
        if not ((len(told) == 1 and "injected" in told[0]) or (is_noted and not told)):
            wrong.append((code.co_name, code.co_firstlineno, told))
    assert wrong == []


# What a loop calls itself, before and after it trains, and what is a guard or a flag in the place of one.
OF_THE_LOOP = {"__init__", "close"}
OF_THE_OPTIONS = {"__post_init__", "_check", "_is_whole", "_is_amount", "_is_name", "convention", "meter"}
GUARDS = {"_optimizer_steps", "_optimizer_stepped", "began", "_failed", "guarded", "_give_up", "_let_go"}


def plain_loop(folder=None):
    """What four steps leave, the model, and the hook's profile."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 3))
    optimizer = torch.optim.Adam(model.parameters())
    hook = contextlib.nullcontext()
    if folder is not None:
        hook = flopcallback.FlopHook(model, optimizer, to=folder, warmup_steps=1, latency_steps=1, by_compute=["loss"])
    with hook:
        for step in range(4):
            model(torch.full((4, 5), float(step)) + torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            if folder is not None:
                hook.log_by_compute({"loss": step})
    left = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    return left, model, getattr(hook, "profile", None)


@pytest.mark.parametrize("where", ["loop_watch.py", "options.py", "recorder.py", "meter.py", "outlets.py"])
def test_whatever_of_ours_raises_in_a_plain_loop_is_one_warning(tmp_path, differences, leftovers, where):
    untouched, _, _ = plain_loop()
    plain_loop(tmp_path)  # imports what it needs
    wrong, broken = [], []
    for code in reached_by(lambda: plain_loop(tmp_path)):
        exempt = LAST_RESORTS.get(where, set()) | (OF_THE_LOOP | GUARDS if where == "loop_watch.py" else {"__init__"})
        if place(code) != where or code.co_name in exempt | OF_THE_OPTIONS:
            continue
        broken.append(code.co_name)
        with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", flopcallback.FlopCallbackWarning)
            assert break_function(code, monkeypatch), code
            try:
                left, model, _ = plain_loop(tmp_path)
            except LookupError as error:
                wrong.append((code.co_name, "was raised", error))
                continue
        wrong += [(code.co_name, line) for line in (*differences(untouched, left), *leftovers(model))]
        messages = [str(warning.message) for warning in told]
        if len(messages) != 1 or "injected" not in messages[0]:
            wrong.append((code.co_name, messages))
    assert wrong == []
    assert broken


def test_the_training_above_reaches_every_room(lightning, run, classifier, gan):
    codes = [
        *reached_by(lambda: run(lightning, [make_callback()], make=classifier, loggers=loggers, **OPTIONS)),
        *reached_by(lambda: run(lightning, [make_callback("gan")], make=gan, **OPTIONS)),
    ]
    rooms = {place(code).partition("/")[0] for code in codes}
    files = {"callback.py", "lightning_step.py", "profiling.py", "recorder.py", "trackers.py", "tracker.py"}
    assert rooms >= {"counting", "formulas", "measuring", "reporting", *files}
    assert {"observe_each_call", "observe_in_flight", "profile_of", "log_profile"} <= {code.co_name for code in codes}


def test_functions_are_found_wherever_they_are(monkeypatch):
    from flopcallback.counting import scopes

    nested = scopes.ModuleScopes._wrapper.__code__.co_consts
    watched = next(
        inner
        for const in nested
        if isinstance(const, types.CodeType)
        for inner in const.co_consts
        if isinstance(inner, types.CodeType)
    )
    assert break_function(watched, monkeypatch)
    broken = scopes.ModuleScopes(scopes.ModuleNames({}))._wrapper("")(len)
    with pytest.raises(LookupError, match="injected"):
        broken([])
