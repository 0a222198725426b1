"""Training with the callback is training without it, to the bit, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.lightning, pytest.mark.models]

STEPS = 3 * 5  # epochs x batches


@pytest.fixture
def callback():
    from flopcallback import FlopCallback

    return FlopCallback(warmup_steps=2, latency_steps=4, strict=True, summary=False)


def test_losses_weights_buffers_optimizers_metrics_and_random_streams_are_the_same(
    flavour, run, callback, differences, leftovers, ours
):
    without = run(flavour)
    with_ = run(flavour, [callback])
    assert differences(without, with_) == []
    assert with_.calls_counted == with_.calls_in_file == with_.calls_logged == STEPS
    assert leftovers(with_.model) == []
    assert ours(with_) == []
    assert callback.profiles["train"].latency.steps == 4


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        {"num_sanity_val_steps": 2, "val_check_interval": 2},
        {"detect_anomaly": True, "max_epochs": 1},
        {"limit_train_batches": 1, "max_epochs": 2},
    ],
    ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)
def test_so_they_are_with(lightning, run, callback, differences, leftovers, options):
    without = run(lightning, **options)
    with_ = run(lightning, [callback], **options)
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []
    assert callback.profiles["train"].config["flops.engine"] == "trace"


def test_so_they_are_under_manual_optimisation_with_two_optimizers(
    lightning, run, callback, differences, leftovers, gan
):
    without = run(lightning, make=gan)
    with_ = run(lightning, [callback], make=gan)
    assert differences(without, with_) == []
    assert with_.calls_counted == with_.calls_logged == STEPS
    assert leftovers(with_.model) == []
    assert callback.profiles["train"].config["flops.engine"] == "trace"


def test_so_they_are_with_an_optimizer_that_calls_the_step_several_times(
    lightning, run, callback, differences, leftovers, classifier
):
    def make(flavour, calls):
        model = classifier(flavour, calls)
        model.configure_optimizers = lambda: torch.optim.LBFGS(model.parameters(), max_iter=3)
        return model

    without = run(lightning, make=make, max_epochs=1)
    with_ = run(lightning, [callback], make=make, max_epochs=1)
    assert without.calls_counted > 5
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []


@pytest.mark.tensorboard
def test_so_they_are_where_a_tracker_draws_and_writes(lightning, run, differences, leftovers):
    from flopcallback import FlopCallback

    def loggers(folder):
        return [lightning.loggers.TensorBoardLogger(folder), lightning.loggers.CSVLogger(folder)]

    without = run(lightning, loggers=loggers)
    with_ = run(lightning, [FlopCallback(strict=True)], loggers=loggers)
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []


@pytest.mark.parametrize("do", ["validate", "test", "predict"])
def test_so_are_evaluations(flavour, run, callback, differences, leftovers, do):
    without = run(flavour, do=do)
    with_ = run(flavour, [callback], do=do)
    assert differences(without, with_) == []
    assert leftovers(with_.model) == []
    assert list(callback.profiles) == [do]


# --- The checks above can fail ----------------------------------------------------------------------------------------


def leaking(flavour, leak):
    class Leaking(flavour.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            leak(pl_module, batch)

    return Leaking()


@pytest.mark.parametrize(
    ("leak", "seen"),
    [
        (lambda model, batch: torch.rand(1), "random"),
        (lambda model, batch: model.net.eval()(batch[0]), "weights.net.head.bias"),
        (lambda model, batch: model.net(batch[0]), "weights.net.norm.running_mean"),
        (lambda model, batch: model.accuracy(model.net(batch[0]), batch[1]), "rows"),
        (lambda model, batch: model.training_step(batch, 0), "calls_counted"),
        (lambda model, batch: model.seen.append(None), "attributes"),
    ],
)
def test_a_callback_that_touches_training_is_seen(lightning, run, differences, leak, seen):
    found = differences(run(lightning), run(lightning, [leaking(lightning, leak)]))
    assert any(line.startswith(seen) for line in found)


@pytest.mark.parametrize(
    ("leak", "seen"),
    [
        (lambda model, batch: vars(model.net).update(forward=model.net.forward), ["net.forward"]),
        (lambda model, batch: model.net.register_forward_hook(print), ["net._forward_hooks"]),
        (lambda model, batch: vars(model).update(training_step=model.training_step), [".training_step"]),
    ],
)
def test_a_callback_that_leaves_something_on_the_model_is_seen(lightning, run, leftovers, leak, seen):
    training = run(lightning, [leaking(lightning, leak)], max_epochs=1, limit_train_batches=1)
    assert leftovers(training.model) == seen


def test_a_mode_that_stays_is_seen(leftovers):
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        assert leftovers(torch.nn.Identity()) == ["a dispatch mode is active"]
    with torch.device("cpu"):
        assert leftovers(torch.nn.Identity()) == ["a function mode is active"]
    assert leftovers(torch.nn.Identity()) == []
