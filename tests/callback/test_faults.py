"""Each function of ours that a training reaches raises in turn, whenever it is called: training must not notice."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import sys
import time
import traceback
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import flopcallback
from flopcallback.tracing import profiler_broker

pytestmark = [pytest.mark.lightning, pytest.mark.tensorboard, pytest.mark.models, pytest.mark.slow]

SOURCES = Path(flopcallback.__file__).parent
ROOTS = (str(SOURCES), str(SOURCES.parent / "integrations"))

# What stands between our failures and the training cannot fail in its place.
LAST_RESORTS = {
    "lightning/watch": {"wrapped", "close"},
    "lightning/callback": {
        *("setup", "on_exception", "_let_go", "_give_up"),
        # These run in every step, and what they do is guarded in there.
        *("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end"),
    },
    "lightning/census": {"close"},
    "modules/attempt": {"call_once", "__init__", "__call__"},
    "training/training": {"stop_timing"},
    "training/recorder": {"stop_timing"},
    "training/failures": {"report", "as_warning", "guarded"},
    # Called in place of a module's forward: all they do around it is guarded in there.
    "measuring/latency": {"timed"},
    "modules/outermost": {"outermost", "call", "takes_fast_path", "note_raise"},
    "tracing/observer": {
        *("run_backward", "optimizer_step", "closure_of", "outside", "_marked", "stopped", "_note"),
        *("begin", "end"),  # around the compiler's work
    },
    # A hook before an optimizer's update, and a method behind it.
    "tracing/plain_updates": {"_before_update", "after_update"},
    "tracing/marked_scopes": {"start"},  # of a thread
    "tracing/scopes": {"watched"},
    # Take away a wrapper, or what stands in the place of a function of torch.
    "modules/wrappers": {
        *("restore", "_forget", "_set_attribute", "_wrapper_of", "_without_wrappers", "_put_back"),
        # In the place of a function of torch or of the copy module; what is ours in there is guarded.
        *("without_wrappers", "_reduce_ex", "_replicate_plainly", "_script_plainly"),
    },
    "tracing/regions": {"_set_own"},
    # 2026-11, torch 2.13: C++ code asks a fake tensor for its device where an error in a mode ends the process.
    "tracing/beside": {"__torch_dispatch__"},
    "tracing/dispatch": {"__torch_dispatch__"},
    # The first stands in the compiler's place; what is ours around it is guarded.
    "modules/compiled": {"set_eval_frame", "_uninstall", "_resumed", "_tell"},
}


def place(code):
    """`tracing/run.py`, for a function of ours; None for any other."""
    name = code.co_filename
    if code.co_name.startswith("<") or not name.startswith(ROOTS):
        return None
    return Path(name).relative_to(SOURCES).as_posix() if name.startswith(ROOTS[0]) else Path(name).name


def file_of(code):
    """`tracing/run`, for a function of `tracing/run.py`."""
    return place(code).removesuffix(".py")


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


def end_what_was_left_on():
    """End a session of the profiler that a broken function has left, which later trainings would share."""
    broker = profiler_broker._broker
    if broker._session is not None:
        broker._session.lose("it was left on")
    broker.settle()
    while broker._theirs.listeners:
        broker.uninstall()


OPTIONS = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0}


LOGGED = {"classifier": "train/loss_epoch", "gan": "train/loss"}


def make_callback(kind):
    from flopcallback import FlopCallback

    return FlopCallback(warmup_steps=1, latency_steps=1, by_compute=[LOGGED[kind]])


# Their functions are pure, and what one raises is raised by those that call it: what other rooms call is enough.
PURE = ("reporting", "formulas")


def room_of(code):
    return place(code).partition("/")[0].removesuffix(".py")


def reached_by(train):
    """Our functions that a training reaches, and which of ours call them; of pure rooms, what other rooms call.

    In order of place.
    """
    callers = {}

    def note(frame, event, arg):
        is_of_python = frame.f_code.co_filename.endswith(".py")  # and no template
        if event == "call" and is_of_python and place(frame.f_code) is not None:
            directly, caller = frame.f_back.f_code, frame.f_back
            while caller is not None and place(caller.f_code) is None:
                caller = caller.f_back
            is_within = place(directly) is not None and room_of(directly) == room_of(frame.f_code)
            if not is_within or room_of(frame.f_code) not in PURE:
                callers.setdefault(frame.f_code, set()).add(caller and caller.f_code)

    forget_what_is_cached()
    sys.setprofile(note)
    try:
        train()
    finally:
        sys.setprofile(None)
    return {code: callers[code] for code in sorted(callers, key=lambda code: (place(code), code.co_firstlineno))}


def reached_otherwise(reached, before):
    """The functions that are reached from elsewhere than before, or were not reached at all."""
    return {code for code, callers in reached.items() if callers - before.get(code, set())}


# A function is broken in the training of the classifier; of those that its tracker or manual optimisation reaches from
# elsewhere, in the training that does.
TRAININGS = ("classifier", "classifier with a tracker", "gan")

# What manual optimisation has run in other circumstances than automatic optimisation, though the callers are the same.
MODULE_BY_MODULE = {"modules/attempt", "tracing/in_flight", "modules/outermost", "measuring/latency"}

SHARES = {"classifier": 12, "classifier with a tracker": 3, "gan": 4}


@pytest.fixture
def train(lightning, run, classifier, gan):
    """A function that runs one of the trainings."""

    def train(training, callbacks=()):
        make = gan if training == "gan" else classifier
        return run(lightning, callbacks, make=make, loggers=loggers if "tracker" in training else None, **OPTIONS)

    return train


@pytest.fixture(scope="module")
def known():
    """What is found out once."""
    return {}


@pytest.fixture
def reached(known, train):
    """What each of the trainings reaches."""
    if "reached" not in known:
        known["reached"] = {}
        for training in TRAININGS:
            kind = training.partition(" ")[0]
            train(training, [make_callback(kind)])  # imports what it needs
            known["reached"][training] = reached_by(functools.partial(train, training, [make_callback(kind)]))
    return known["reached"]


@pytest.fixture
def to_break(reached):
    """The functions to break in each training, in order of place."""
    alone, with_tracker, gan = (reached[training] for training in TRAININGS)
    files = {place(code) for code in reached_otherwise(with_tracker, alone)}
    of_trackers = {code for code in with_tracker if place(code) in files}
    by_module = {code for code in gan if file_of(code) in MODULE_BY_MODULE} | reached_otherwise(gan, alone)
    chosen = [alone.keys() - of_trackers, of_trackers, by_module]
    return {
        training: [code for code in reached[training] if code in codes and not is_last_resort(code)]
        for training, codes in zip(TRAININGS, chosen, strict=True)
    }


def is_last_resort(code):
    return code.co_name in LAST_RESORTS.get(file_of(code), ())


@pytest.mark.parametrize(
    ("training", "share"), [(training, share) for training in TRAININGS for share in range(SHARES[training])]
)
def test_whatever_of_ours_raises_is_one_warning_and_nothing_else(
    known, train, to_break, differences, leftovers, ours, training, share
):
    if training not in known:
        known[training] = train(training)
    untouched, kind, wrong = known[training], training.partition(" ")[0], []
    codes = to_break[training][share :: SHARES[training]]
    assert codes
    for code in codes:
        callback, where = make_callback(kind), (place(code), code.co_name, code.co_firstlineno)
        with pytest.MonkeyPatch.context() as monkeypatch:
            forget_what_is_cached()
            assert break_function(code, monkeypatch), where
            try:
                left = train(training, [callback])
            except LookupError as error:
                wrong.append((where, "was raised", error))
                continue
            finally:
                monkeypatch.undo()
                end_what_was_left_on()
        more = left.calls_counted - untouched.calls_counted
        if more:  # an engine had to stop, and the call was repeated from the same state: by the other one, or by none
            assert more <= 2 * (1 if kind == "classifier" else 0), where
            left.calls_counted = left.calls_in_file = untouched.calls_counted
        wrong += [(where, line) for line in (*differences(untouched, left), *leftovers(left.model))]
        told, profile = ours(left), callback.profiles.get("train")
        is_noted = profile is not None and "injected" in f"{profile.unknown}{profile.step_note}"
        if not ((len(told) == 1 and "injected" in told[0]) or (is_noted and not told)):
            wrong.append((where, told))
    assert wrong == []


# What a loop calls itself, before and after it trains, and what is a guard or a flag in the place of one.
OF_THE_LOOP = {"__init__", "_weak", "close"}
OF_THE_OPTIONS = {"__post_init__"}
GUARDS = {"_optimizer_steps", "_optimizer_stepped", "began", "_failed", "_guarded", "_give_up", "_let_go"}
GUARDS |= {"call", "_step_aside_failed", "report_steps"}


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


@pytest.mark.parametrize(
    "where",
    [
        "loop/watch",
        *(
            f"training/{file}"
            for file in [
                "options",
                "training",
                "recorder",
                "whole_step",
                "meter",
                "batch_sizes",
                "trainable",
                "sinks",
            ]
        ),
    ],
)
def test_whatever_of_ours_raises_in_a_plain_loop_is_one_warning(tmp_path, differences, leftovers, where):
    untouched, _, _ = plain_loop()
    plain_loop(tmp_path)  # imports what it needs
    wrong, broken = [], []
    for code in reached_by(lambda: plain_loop(tmp_path)):
        exempt = LAST_RESORTS.get(where, set()) | (OF_THE_LOOP | GUARDS if where == "loop/watch" else {"__init__"})
        if file_of(code) != where or code.co_name in exempt | OF_THE_OPTIONS:
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
            finally:
                monkeypatch.undo()
                end_what_was_left_on()
        wrong += [(code.co_name, line) for line in (*differences(untouched, left), *leftovers(model))]
        messages = [str(warning.message) for warning in told]
        if len(messages) != 1 or "injected" not in messages[0]:
            wrong.append((code.co_name, messages))
    assert wrong == []
    assert broken


# --- A plain loop with all that a training may do beside its steps ----------------------------------------------------


class Threaded(nn.Module):
    """A layer that gives a task to a pool, which does no work of the model."""

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return 2 * x if pool.submit(time.monotonic).result() else x


def busy_loop(hook=None):
    """What steps of a loop leave: with compiled code, and with copies that are made while all of it is watched."""
    torch._dynamo.reset()
    torch.manual_seed(2)
    block = torch.compile(nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5)), backend="aot_eager")
    model = nn.Sequential(block, Threaded(), nn.BatchNorm1d(7), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    loss = torch.compile(lambda scores: scores.square().sum(), backend="eager")
    copies = []
    with contextlib.nullcontext() if hook is None else hook(model, optimizer) as seen:
        for step in range(5):
            copies.append(copy.deepcopy(model[2:]).state_dict())
            copies.append(pickle.loads(pickle.dumps(model[3])).state_dict())
            torch.jit.script(model[3])
            loss(model(torch.full((4, 5), float(step)) + torch.randn(4, 5))).backward()
            optimizer.step()
            optimizer.zero_grad()
    if seen is not None:
        copies += [copy.deepcopy(seen).profile and None, pickle.loads(pickle.dumps(seen)).profile and None]
    left = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    return {**left, "copies": [each for each in copies if each is not None]}, model


def busy_hook(model, optimizer):
    return flopcallback.FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False)


OWN = "0.forward"  # of a compiled module, with or without us
CHECKS = {"model_of", "unwrapped", "optimizers_of", "_optimizer_in"}  # of arguments, which may raise

BUSY = [
    "loop/watch",
    "loop/objects",
    "modules/compiled",
    "modules/wrappers",
    "tracing/beside",
    "tracing/marked_scopes",
    "tracing/observer",
    "tracing/scopes",
]


@pytest.mark.parametrize("where", BUSY)
# Of scripting, and (2026-11, torch 2.13) of Dynamo, which asks every input of a compiled function for its grad.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
def test_whatever_of_ours_raises_around_compiled_code_and_copies_is_one_warning_at_most(differences, leftovers, where):
    untouched, _ = busy_loop()
    busy_loop(busy_hook)  # imports what it needs
    wrong, broken = [], []
    exempt = LAST_RESORTS.get(where, set()) | OF_THE_LOOP | CHECKS | (GUARDS if where == "loop/watch" else set())
    for code in reached_by(lambda: busy_loop(busy_hook)):
        if file_of(code) != where or code.co_name in exempt:
            continue
        broken.append(code.co_name)
        with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", flopcallback.FlopCallbackWarning)
            forget_what_is_cached()
            assert break_function(code, monkeypatch), code
            try:
                left, model = busy_loop(busy_hook)
            except LookupError as error:
                wrong.append((code.co_name, "was raised", traceback.format_tb(error.__traceback__)[-2:]))
                continue
            finally:
                monkeypatch.undo()
                end_what_was_left_on()
        wrong += [(code.co_name, line) for line in (*differences(untouched, left), *leftovers(model)) if line != OWN]
        # Each copy of a hook tells for itself.
        messages = {str(each.message) for each in told if each.category is flopcallback.FlopCallbackWarning}
        if len(messages) > 1 or not all("injected" in message for message in messages):
            wrong.append((code.co_name, messages))
    assert not wrong, "\n".join(map(str, wrong))
    assert broken


# Rooms of what is done without a Trainer.
WITHOUT_A_TRAINER = {"cli", "fvcore", "loop", "runs"}


def test_the_trainings_above_reach_every_room_and_every_exception(reached):
    codes = {code for training in TRAININGS for code in reached[training]}
    rooms = {path.parent.name for path in SOURCES.glob("*/__init__.py")}
    assert rooms - {room_of(code) for code in codes} <= WITHOUT_A_TRAINER
    beside = {"tracing/beside", "tracing/dispatch"}  # of compiled modules: the busy loop below has some
    assert (LAST_RESORTS.keys() - beside) | MODULE_BY_MODULE <= {file_of(code) for code in codes}


def test_every_function_that_is_reached_is_broken_in_some_training(reached, to_break):
    codes = {code for training in TRAININGS for code in reached[training]}
    broken = {code for training in TRAININGS for code in to_break[training]}
    assert [place(code) for code in codes - broken if not is_last_resort(code)] == []
