"""Errors of the training itself surface as they are; what stops the tracer is made good."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = [pytest.mark.lightning, pytest.mark.models]


@pytest.fixture
def callback():
    from flopcallback import FlopCallback

    return FlopCallback(warmup_steps=0, latency_steps=2, summary=False)


class OwnError(Exception):
    pass


class OwnRuntimeError(RuntimeError):
    pass


def raising_at(call, error, classifier, before=lambda model: None):
    """A model whose training step raises at its `call`-th call, after the forward and a log."""

    def make(flavour, calls):
        model = classifier(flavour, calls)
        step = model.training_step

        def training_step(batch, batch_idx):
            loss = step(batch, batch_idx)
            if calls.counted == call:
                raise error
            return loss

        type(model).training_step = lambda self, batch, batch_idx: training_step(batch, batch_idx)
        return model

    return make


@pytest.mark.parametrize("at", [1, 2], ids=["while it is counted", "while it is timed"])
@pytest.mark.parametrize(
    "error",
    [ValueError("theirs"), OwnError("theirs"), RuntimeError("theirs"), OwnRuntimeError("theirs"), SystemExit(3)],
)
def test_an_error_that_the_step_raises_surfaces_after_one_call(
    lightning, run, callback, classifier, leftovers, error, at, tmp_path
):
    models = []

    def make(flavour, calls):
        models.append((raising_at(at, error, classifier)(flavour, calls), calls))
        return models[-1][0]

    with pytest.raises(type(error)) as caught:
        run(lightning, [callback], make=make)
    (model, calls) = models[0]
    assert caught.value is error
    assert calls.counted == calls.in_file == at
    assert leftovers(model) == []


def test_ctrl_c_ends_the_training_after_one_call(lightning, run, callback, classifier, leftovers):
    models = []

    def make(flavour, calls):
        models.append((raising_at(1, KeyboardInterrupt(), classifier)(flavour, calls), calls))
        return models[-1][0]

    with pytest.raises(SystemExit):  # which is how Lightning ends then
        run(lightning, [callback], make=make)
    model, calls = models[0]
    assert calls.counted == 1
    assert leftovers(model) == []


# --- What there is to see of a training that ends early ---------------------------------------------------------------


@pytest.fixture
def tracker(monkeypatch):
    from flopcallback.trackers import MemoryTracker

    tracker = MemoryTracker()
    monkeypatch.setattr("flopcallback.lightning.loggers.tracker_for", lambda logger, prefix: tracker)
    return tracker


@pytest.mark.parametrize(
    ("error", "surfaces"), [(RuntimeError("out of memory"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_a_training_that_ends_early_shows_what_it_has(
    lightning, run, classifier, leftovers, tracker, capsys, error, surfaces
):
    from flopcallback import FlopCallback

    models = []

    def make(flavour, calls):
        models.append(raising_at(5, error, classifier)(flavour, calls))
        return models[0]

    callback = FlopCallback(warmup_steps=0, latency_steps=9)
    with pytest.raises(surfaces):
        run(lightning, [callback], make=make)
    # One step is counted, one is observed whole, two are timed, the fifth raises.
    assert callback.profiles["train"].latency.steps == 2
    assert callback.profiles["train"].step.backward > 0
    assert [step for step, _ in tracker.profiles] == [0, 4]
    assert tracker.closed
    assert capsys.readouterr().out.count("report: MemoryLogger (memory)") == 2
    assert leftovers(models[0]) == []


def test_a_first_step_that_fails_in_its_backward_is_reported(lightning, run, classifier, tracker):
    from flopcallback import FlopCallback

    def make(flavour, calls):
        model = classifier(flavour, calls)

        def on_before_backward(loss):
            raise MemoryError("out of memory")

        model.on_before_backward = on_before_backward
        return model

    with pytest.raises(MemoryError, match="out of memory"):
        run(lightning, [FlopCallback(summary=False)], make=make)
    ((step, profile),) = tracker.profiles
    assert step == 0
    assert profile.forward_flops > 0


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("filter_", ["default", "error"])
@pytest.mark.parametrize("broken", ["tracker", "show", "step"])
def test_what_fails_while_it_is_shown_does_not_hide_the_error(
    lightning, run, classifier, leftovers, tracker, monkeypatch, strict, filter_, broken
):
    import flopcallback.lightning.callback as place
    from flopcallback import FlopCallback, FlopCallbackWarning
    from flopcallback.training import sinks

    def fails(*args, **kwargs):
        raise LookupError("ours")

    broken_at_last = {"tracker": [(tracker, "close")], "show": [(sinks, "profile_line")], "step": [(place, "_step")]}[
        broken
    ]
    error, models = OwnError("theirs"), []

    def make(flavour, calls):
        warnings.simplefilter(filter_, FlopCallbackWarning)
        model = classifier(flavour, calls)
        step = model.training_step

        def training_step(self, batch, batch_idx):
            loss = step(batch, batch_idx)
            if calls.counted == 2:
                for owner, name in broken_at_last:
                    monkeypatch.setattr(owner, name, fails)
                raise error
            return loss

        type(model).training_step = training_step
        models.append(model)
        return model

    with pytest.raises(OwnError) as caught:
        run(lightning, [FlopCallback(strict=strict)], make=make)
    assert caught.value is error
    assert error.__context__ is None
    assert leftovers(models[0]) == []


@pytest.mark.parametrize("module_by_module", [False, True])
def test_what_an_operator_refuses_surfaces_as_it_does_without_us(
    lightning, run, callback, classifier, leftovers, module_by_module
):
    models = []

    def make(flavour, calls):
        model = classifier(flavour, calls)
        model.net.head = nn.Linear(5, 3)
        model.automatic_optimization = not module_by_module
        models.append(model)
        return model

    with pytest.raises(RuntimeError) as without:
        run(lightning, make=make)
    with pytest.raises(RuntimeError) as with_:
        run(lightning, [callback], make=make)
    assert str(with_.value) == str(without.value)
    assert "mat1 and mat2 shapes cannot be multiplied" in str(with_.value)
    assert leftovers(models[1]) == []


def test_an_epoch_that_the_module_skips_leaves_nothing(lightning, run, callback, classifier, leftovers):
    def make(flavour, calls):
        model = classifier(flavour, calls)
        skips = iter([-1])
        model.on_train_batch_start = lambda batch, batch_idx: next(skips, None)
        return model

    training = run(lightning, [callback], make=make, max_epochs=1)
    assert training.calls_counted == 0
    assert leftovers(training.model) == []
    training = run(lightning, [callback], make=make, max_epochs=2)
    assert training.calls_counted == 5
    assert callback.profiles["train"].forward_flops > 0


# --- What stops the tracer --------------------------------------------------------------------------------------------


class Untraceable(nn.Module):
    """Hides a parameter from the tracer, and uses it where no function mode sees it: the tracer raises, and late."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(49, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.hidden = [nn.Parameter(torch.tensor(2.0))]

    def forward(self, x):
        scores = self.norm(self.dropout(self.linear(x.flatten(1))))
        with torch._C.DisableTorchFunction():
            return scores * self.hidden[0]


def test_a_step_that_cannot_be_traced_is_put_back_and_counted_by_records(
    lightning, run, callback, classifier, differences, leftovers, ours
):
    def make(flavour, calls):
        return classifier(flavour, calls, net=Untraceable)

    without = run(lightning, make=make)
    with_ = run(lightning, [callback], make=make)
    assert with_.calls_counted == without.calls_counted + 1
    with_.calls_counted = with_.calls_in_file = without.calls_counted
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []
    profile = callback.profiles["train"]
    assert profile.config["flops.engine"] == "observer"
    assert "the tracer stopped with RuntimeError: Cannot insert a Tensor" in profile.config["flops.engine_reason"]
    assert {row.path: row.flops for row in profile.modules}["net.linear"] == 2 * 6 * 49 * 3
    (told,) = ours(with_)
    assert "counted by PyTorch's records, since the tracer could not: RuntimeError: Cannot insert" in told


def test_without_putting_back_the_test_above_would_fail(lightning, run, callback, classifier, differences, monkeypatch):
    from flopcallback.modules.snapshot import Snapshot

    def make(flavour, calls):
        return classifier(flavour, calls, net=Untraceable)

    monkeypatch.setattr(Snapshot, "restore", lambda self: None)
    found = differences(run(lightning, make=make), run(lightning, [callback], make=make))
    parts = {line.partition(":")[0].partition("[")[0] for line in found}
    assert {"rows", "random", "weights.net.norm.running_mean"} <= parts


def test_strict_raises_what_fails(lightning, run, classifier):
    from flopcallback import FlopCallback

    def broken(batch):
        raise LookupError("no such size")

    with pytest.raises(LookupError, match="no such size"):
        run(lightning, [FlopCallback(batch_size_fn=broken, strict=True)])


def test_what_fails_is_one_warning_that_names_it(lightning, run, ours, leftovers, differences):
    from flopcallback import FlopCallback

    def broken(batch):
        raise LookupError("no such size")

    training = run(lightning, [FlopCallback(batch_size_fn=broken)])
    (told,) = ours(training)
    assert told == (
        "the number of samples is not known: LookupError: no such size. Training is not affected and goes on. "
        "(strict=True raises this; the logger 'flopcallback' has the traceback at DEBUG.)"
    )
    assert differences(run(lightning), training) == []
    assert leftovers(training.model) == []


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("x", "TypeError: batch_size_fn returned 'x', expected an int."),
        (6.0, "TypeError: batch_size_fn returned 6.0, expected an int."),
        (None, "TypeError: batch_size_fn returned None, expected an int."),
        (-6, "ValueError: batch_size_fn returned -6, expected 0 or more."),
    ],
)
def test_a_batch_size_that_is_none_costs_the_numbers_per_sample_alone(lightning, run, ours, size, told):
    from flopcallback import FlopCallback

    callback = FlopCallback(batch_size_fn=lambda batch: size, warmup_steps=0, latency_steps=2, summary=False)
    (warning,) = ours(run(lightning, [callback]))
    assert warning.startswith(f"the number of samples is not known: {told} ")
    scalars = callback.profiles["train"].scalars()
    assert "flops/forward_per_sample" not in scalars
    assert {"flops/forward", "latency/forward_ms"} <= set(scalars)


def test_a_batch_size_may_be_a_tensor_of_one_number(lightning, run, ours, tmp_path):
    from flopcallback import FlopCallback
    from flopcallback.reporting import ModelProfile

    def of_labels(batch):
        return torch.ones_like(batch[1]).sum()

    callback = FlopCallback(batch_size_fn=of_labels, summary=False, report_dir=tmp_path / "report")
    assert ours(run(lightning, [callback])) == []
    read = ModelProfile.from_json((tmp_path / "report" / "flopcallback.json").read_text())
    assert (type(read.batch_size), read.batch_size) == (int, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fma": 3}, "fma is 3, expected 1, 2 or None"),
        ({"fma": 1.0}, "fma is 1.0, expected 1, 2 or None"),
        ({"warmup_steps": None}, "warmup_steps is None, expected a whole number, 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps is -1, expected a whole number, 0 or more"),
        ({"latency_steps": 1.5}, "latency_steps is 1.5, expected a whole number, 0 or more"),
        ({"latency_steps": True}, "latency_steps is True, expected a whole number, 0 or more"),
        ({"elementwise": "no"}, "elementwise is 'no', expected True or False"),
        ({"summary": 1}, "summary is 1, expected True or False"),
        ({"strict": None}, "strict is None, expected True or False"),
        ({"batch_size_fn": 5}, "batch_size_fn is 5, expected a function or None"),
        (
            {"by_compute": "val/loss"},
            "by_compute is 'val/loss', expected a list of names of metrics, such as ['val/loss']",
        ),
        ({"by_compute": ["val/loss", ""]}, "by_compute is ['val/loss', ''], expected a list of names of metrics"),
        ({"by_compute": [5]}, "by_compute is [5], expected a list of names of metrics"),
        ({"by_compute": None}, "by_compute is None, expected a list of names of metrics"),
        ({"prefix": None}, "prefix is None, expected a string"),
        ({"report_dir": 5}, "report_dir is 5, expected a folder ('.' is the working directory) or None"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_with_what_is_expected(options, message):
    from flopcallback import FlopCallback

    with pytest.raises(ValueError, match=re.escape(f"FlopCallback: {message}")):
        FlopCallback(**options)


def test_a_step_without_modules_is_said_not_to_be_countable(lightning, run, ours):
    from flopcallback import FlopCallback

    def make(flavour, calls):
        class Bare(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False
                self.weight = nn.Parameter(torch.ones(7))

            def training_step(self, batch, batch_idx):
                return F.relu(self.weight).sum()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Bare()

    (told,) = ours(run(lightning, [FlopCallback()], make=make))
    assert "no module was called in it" in told
