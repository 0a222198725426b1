"""FlopTrainerCallback over the life of a training: checkpoints, budgets, errors, copies, several processes."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import json
import os
import pickle
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from hf_training import FORWARD, STEP, Net, leftovers

pytestmark = pytest.mark.models

transformers = pytest.importorskip("transformers", reason="the core's own environment has no optional packages")

SAVING = {"save_strategy": "steps", "save_steps": 2}


# --- Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restored", [False, True])
def test_a_resumed_training_goes_on_to_the_same_integer(train, make_callback, restored):
    whole = make_callback()
    train(whole)
    first = make_callback(log_every_n_steps=4)
    left = train(first, max_steps=4, **SAVING)
    saved = json.loads((left.output / "checkpoint-4" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["FlopTrainerCallback"]["args"] == {"log_every_n_steps": 4, "summary": False}

    second = make_callback(log_every_n_steps=4)
    arguments = {"restore_callback_states_from_checkpoint": restored}
    resumed = train(second, resume=left.output / "checkpoint-4", output=left.output, **arguments)
    callback = next(each for each in resumed.trainer.callback_handler.callbacks if type(each) is type(second))

    assert (callback is second) is not restored  # restored, the Trainer has made another one
    assert callback._options == second._options
    assert resumed.told == []
    numbers = callback.metrics()
    assert numbers["compute/flops_total"] == whole.metrics()["compute/flops_total"] == 6 * STEP
    assert numbers["compute/tokens_total"] == whole.metrics()["compute/tokens_total"]
    assert numbers["compute/estimated_pct"] == 0


def test_what_no_checkpoint_can_hold_is_named_when_the_trainer_makes_the_callback_anew(train, make_callback):
    left = train(make_callback(tokens_fn=lambda batch: 1), max_steps=2, **SAVING)
    resume = {"resume": left.output / "checkpoint-2", "output": left.output}
    told = train(make_callback(), restore_callback_states_from_checkpoint=True, **resume).told
    assert len(told) == 1
    assert "without tokens_fn" in told[0]


def test_it_can_be_added_to_a_training_that_began_without_it(train, make_callback):
    left = train(max_steps=2, **SAVING)
    callback = make_callback()
    resumed = train(callback, resume=left.output / "checkpoint-2", output=left.output, max_steps=4, **SAVING)
    assert resumed.steps == 4
    assert callback.metrics()["compute/flops_total"] == 2 * STEP


def test_of_two_callbacks_the_first_counts_and_resumes_its_own(train, make_callback):
    def both():
        return make_callback(), make_callback(prefix="other/")

    left = train(*both(), max_steps=4, **SAVING)
    first, second = both()
    resumed = train(first, second, resume=left.output / "checkpoint-4", output=left.output)
    assert first.metrics()["compute/flops_total"] == 6 * STEP
    assert second.metrics() == {}
    assert [text for text in resumed.told if "another FlopTrainerCallback before this one" in text] == resumed.told
    assert len(resumed.told) == 1


def test_a_checkpoint_that_was_damaged_is_one_warning(train, make_callback):
    left = train(make_callback(), max_steps=2, **SAVING)
    file = left.output / "checkpoint-2" / "trainer_state.json"
    content = json.loads(file.read_text())
    content["stateful_callbacks"]["FlopTrainerCallback"]["attributes"]["compute"]["ledger"] = -1
    file.write_text(json.dumps(content))
    callback = make_callback()
    resumed = train(callback, resume=left.output / "checkpoint-2", output=left.output)
    assert len(resumed.told) == 1
    assert "compute so far begins anew" in resumed.told[0]
    assert callback.metrics()["compute/flops_total"] == 4 * STEP


# --- A budget ---------------------------------------------------------------------------------------------------------


def test_a_budget_ends_the_training_after_the_step_that_spends_it(train, make_callback, tmp_path):
    callback = make_callback(max_flops=2 * STEP + 1)
    assert train(callback).steps == 3
    assert callback.metrics()["compute/flops_total"] == 3 * STEP


def test_a_budget_that_a_checkpoint_has_spent_ends_the_training_after_a_step(train, make_callback):
    left = train(make_callback(), max_steps=4, **SAVING)
    callback = make_callback(max_flops=3 * STEP)
    assert train(callback, resume=left.output / "checkpoint-4", output=left.output).steps == 5


# --- Errors -----------------------------------------------------------------------------------------------------------


MODULES = [import_module(f"flopcallback_transformers.{name}") for name in ("callback", "errors", "padding", "trainer")]

# What ends a failure, what is no part of a training, what only a weak reference calls, and the Trainer's own guards.
NOT_BROKEN = {
    *("__init__", "_watch_nothing", "_give_up", "_end_early", "_let_go", "take_off", "_raised"),
    *("__call__", "__reduce__", "_same"),  # of a wrapper, which makes the Trainer's own call
    *("on_train_begin", "state"),
    *("__getstate__", "__setstate__", "metrics", "_dropped", "log_profile", "close"),
}


def functions_of_ours():
    """Functions and methods of the package, each with all the places that know it."""
    for module in MODULES:
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                yield name, [each for each in MODULES if hasattr(each, name)]
            elif inspect.isclass(value):
                yield from ((each, [value]) for each in vars(value) if inspect.isfunction(vars(value)[each]))


class InjectedError(Exception):
    """What a function of ours raises in a test."""


def broken(function):
    """The function, raising; an event keeps the guard around it."""

    @functools.wraps(function)
    def fail(*_, **__):
        raise InjectedError("injected")

    return MODULES[0].guarded(fail) if hasattr(function, "__wrapped__") else fail


class OtherReporter(transformers.TrainerCallback):
    """A callback of `report_to` that no tracker takes the place of."""

    def on_train_begin(self, *_, **__):
        """Write nothing."""

    def on_log(self, *_, **__):
        """Write nothing."""


class Early(transformers.Trainer):
    """A Trainer that works before it calls the model."""

    def compute_loss(self, *args, **more):
        torch.ones(2, 3) @ torch.ones(3, 2)
        return super().compute_loss(*args, **more)


@pytest.mark.tensorboard
@pytest.mark.parametrize("strict", [False, True])
def test_whatever_of_ours_raises_is_one_warning_and_nothing_else(train, make_callback, monkeypatch, strict):
    started = train(make_callback(), max_steps=1, save_strategy="steps", save_steps=1)
    arguments = {
        "resume": started.output / "checkpoint-1",
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "report_to": "tensorboard",
        "trainer": Early,
        **SAVING,
    }
    monkeypatch.setitem(transformers.integrations.INTEGRATION_TO_CALLBACK, "other", OtherReporter)
    plain, wrong, names = train(OtherReporter(), **arguments), [], []

    for name, places in list(functions_of_ours()):
        if name in NOT_BROKEN:
            continue
        names.append(name)
        callback, left = make_callback(strict=strict, summary=True, by_compute=["eval/loss"]), None
        with monkeypatch.context() as patch:
            for place in places:
                patch.setattr(place, name, broken(getattr(place, name)))
            try:
                left = train(OtherReporter(), callback, **arguments)
            except InjectedError:
                wrong += [] if strict else [(name, "was raised")]
        if left is None:
            continue
        if strict:
            wrong.append((name, "was not raised"))
        elif left != plain or leftovers(left.trainer.model) or len(left.told) != 1 or "injected" not in left.told[0]:
            wrong.append((name, left == plain, left.told, leftovers(left.trainer.model)))
    assert len(names) > 30
    assert wrong == []


def test_a_trainer_that_never_calls_its_model_is_told_so_once_and_early(train, make_callback):
    class Penalty(transformers.Trainer):
        def compute_loss(self, model, inputs, *_, **__):
            return sum(each.square().sum() for each in model.parameters())

    told = train(make_callback(), trainer=Penalty).told
    early = "no training call of the model was seen before the first step of an optimizer, and nothing is counted"
    assert len(told) == 1
    assert told[0].startswith(f"FlopTrainerCallback: {early}. It counts")
    assert "FlopHook" not in told[0]


def test_nothing_stays_on_the_model_of_a_callback_that_is_gone(train, make_callback):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise KeyboardInterrupt

    made = []

    def net():
        made.append(Net())
        return made[0]

    with pytest.raises(KeyboardInterrupt):
        train(make_callback(), Stop(), model=net)
    gc.collect()  # the Trainer and its callbacks refer to each other
    assert leftovers(made[0]) == []


def test_smaller_batches_after_a_lack_of_memory_are_counted_anew(train, make_callback):
    class Tight(Net):
        def forward(self, input_ids, labels, attention_mask=None):
            if self.training and len(input_ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(input_ids, labels, attention_mask)

    callback = make_callback()
    left = train(callback, model=Tight, auto_find_batch_size=True, per_device_train_batch_size=4)
    assert left.trainer._train_batch_size < 4
    assert callback.metrics()["compute/flops_total"] == left.steps * STEP * left.trainer._train_batch_size // 2


# --- Copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_has_options_and_results_and_can_train(train, make_callback, copied, tmp_path):
    from transformers import TrainerCallback

    copies = []

    class Copying(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                copies.append(copied(callback))

    callback = make_callback(str(tmp_path / "report"), prefix="x/")
    left = train(callback, Copying())
    assert left == train()
    assert copies[0].metrics()["x/compute/flops_total"] == 3 * STEP
    assert copies[0].profiles["train"].forward_flops == FORWARD
    (tmp_path / "report" / "flopcallback.html").unlink()
    train(copies[0])
    assert copies[0].metrics()["x/compute/flops_total"] == 6 * STEP
    assert (tmp_path / "report" / "flopcallback.html").is_file()


def test_an_argument_that_is_none_is_named(make_callback):
    with pytest.raises(ValueError, match=r"^FlopTrainerCallback: max_flops is -1, expected"):
        make_callback(max_flops=-1)


# --- Several processes ------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
from hf_training import Net, digest_of, examples
from transformers import Trainer, TrainingArguments
from flopcallback_transformers import FlopTrainerCallback
import os, torch

folder, left = Path(sys.argv[1]), {}
for name in ("plain", "counted", "resumed"):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(folder / name), max_steps=6 if name == "resumed" else 4, per_device_train_batch_size=2, logging_steps=2,
        report_to="none", save_strategy="steps", save_steps=2, use_cpu=True, disable_tqdm=True, ddp_backend="gloo",
        ddp_find_unused_parameters=False, dataloader_pin_memory=False,
    )
    callback = FlopTrainerCallback(summary=False, strict=True)
    callbacks = [] if name == "plain" else [callback]
    trainer = Trainer(Net(), arguments, train_dataset=examples(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(folder / "counted" / "checkpoint-4") if name == "resumed" else None)
    left[name] = {"digest": digest_of(trainer.model), "numbers": callback.metrics()}
(folder / f"left-{os.environ['RANK']}.json").write_text(json.dumps(left))
"""


@pytest.mark.slow
def test_two_processes_count_their_sum_and_resume_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [*launch, str(script), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "FlopCallbackWarning" not in ran.stderr
    first, other = (json.loads((tmp_path / f"left-{rank}.json").read_text()) for rank in (0, 1))
    for rank in (first, other):
        assert rank["counted"]["digest"] == rank["plain"]["digest"]
    assert first["counted"]["numbers"]["compute/flops_total"] == 2 * 4 * STEP
    assert other["counted"]["numbers"].get("compute/flops_total") is None  # the first process logs for both
    assert first["resumed"]["numbers"]["compute/flops_total"] == 2 * 6 * STEP
    assert first["resumed"]["numbers"]["compute/samples_total"] == 2 * 6 * 2
