"""Compute so far under a real Trainer: integers that are worked out by hand, and what is left out of throughput."""

from __future__ import annotations

import importlib
import json
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.lightning

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FIRST, SECOND = 2 * WIDE * INNER, 2 * INNER * OUT  # FLOPs of a forward, for each sample

# To the weights of both, and from the second back to the first.
PLAIN = FIRST + SECOND + (FIRST + SECOND) + SECOND
# The gradient of the outputs with respect to the inputs, through both; the gradient of that: to both weights, and from
# the first layer back to the second; then that of the outputs, to the weights of both and through both.
PENALTY = FIRST + SECOND + (FIRST + SECOND) + (FIRST + SECOND + FIRST) + (FIRST + SECOND) + (FIRST + SECOND)
FROZEN = FIRST + SECOND + SECOND  # the first layer is


def make_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


def make(flavour, training_step=None, *, optimizers=None, net=make_net, **methods):
    """A LightningModule around a small network, with these methods."""

    class Module(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, batch_idx):
            return self.net(batch).sum()

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.net(batch).sum())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    named = {"training_step": training_step, "configure_optimizers": optimizers, **methods}
    given = {name: method for name, method in named.items() if method is not None}
    return type("Module", (Module,), given)()


def batches(*samples):
    return torch.utils.data.DataLoader([torch.ones(each, WIDE) for each in samples], batch_size=None)


@pytest.fixture
def callback(tmp_path):
    from flopcallback import FlopCallback

    def callback(**options):
        defaults = {"warmup_steps": 1, "latency_steps": 2, "summary": False, "strict": True}
        return FlopCallback(**{**defaults, "report_dir": tmp_path / "report", **options})

    return callback


@pytest.fixture
def trainer(lightning, tmp_path):
    """A function that makes a Trainer with a logger that remembers."""
    loggers = importlib.import_module("lightning.pytorch.loggers.logger")

    class Rows(loggers.Logger):
        name, version = "rows", 0

        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, dict(metrics)))

        def log_hyperparams(self, *args, **kwargs):
            pass

    def trainer(callback, *others, flavour=lightning, **options):
        return flavour.Trainer(
            **{
                "accelerator": "cpu",
                "max_epochs": 1,
                "logger": Rows(),
                "callbacks": [callback, *others],
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "default_root_dir": str(tmp_path),
                **options,
            }
        )

    return trainer


def fit(trainer, module, loader, validation=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader, validation, **options)
    return trainer


def spent(callback):
    """FLOPs, samples, and percent that are estimated."""
    numbers = callback.profiles["train"].training
    return tuple(numbers.get(f"compute/{name}") for name in ("flops_total", "samples_total", "estimated_pct"))


@pytest.fixture
def logged(tmp_path):
    """A function from a number's name to its values by step."""

    def logged(name="compute/flops_total"):
        lines = map(json.loads, (tmp_path / "report" / "scalars.jsonl").read_text().splitlines())
        return {line["step"]: line[name] for line in lines if name in line}

    return logged


def test_steps_that_are_all_alike_are_as_many_times_one(flavour, trainer, callback):
    ours = callback()
    fit(trainer(ours, flavour=flavour), make(flavour), batches(*[BATCH] * 10))
    assert spent(ours) == (10 * BATCH * PLAIN, 10 * BATCH, 0)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_last_short_batch(lightning, trainer, callback, epochs):
    ours = callback()
    fit(trainer(ours, max_epochs=epochs), make(lightning), batches(*[BATCH] * 4, 1))
    total = epochs * (4 * BATCH + 1)
    assert spent(ours) == (total * PLAIN, total, 0)


def test_limited_batches_are_those_that_were_trained_on(lightning, trainer, callback):
    ours = callback()
    fit(trainer(ours, max_epochs=2, limit_train_batches=4), make(lightning), batches(*[BATCH] * 10))
    assert spent(ours) == (8 * BATCH * PLAIN, 8 * BATCH, 0)


def test_validation_is_never_in_it_before_in_between_or_after(lightning, trainer, callback):
    ours = callback()
    loop = trainer(ours, max_epochs=2, num_sanity_val_steps=2, val_check_interval=3)
    module = make(lightning)
    fit(loop, module, batches(*[BATCH] * 9), batches(11, 13))
    assert spent(ours) == (18 * BATCH * PLAIN, 18 * BATCH, 0)
    loop.validate(module, batches(11, 13), verbose=False)
    assert spent(ours) == (18 * BATCH * PLAIN, 18 * BATCH, 0)


def test_compute_stands_in_the_rows_of_validation(lightning, trainer, callback, logged):
    loop = trainer(callback(), val_check_interval=4, num_sanity_val_steps=0)
    fit(loop, make(lightning), batches(*[BATCH] * 12), batches(11))
    rows = {step: row for step, row in loop.logger.rows if "val/loss" in row}
    compute = logged()
    assert sorted(rows) == [3, 7, 11]
    assert [compute[step] for step in sorted(rows)] == [4 * BATCH * PLAIN, 8 * BATCH * PLAIN, 12 * BATCH * PLAIN]


def test_accumulation_and_a_last_window_that_is_not_full(lightning, trainer, callback):
    ours = callback()
    fit(trainer(ours, accumulate_grad_batches=4), make(lightning), batches(*[BATCH] * 18))
    assert spent(ours) == (18 * BATCH * PLAIN, 18 * BATCH, 0)


def gan_step(every):
    """Manual optimisation of two networks, each on every so manieth batch."""

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for number, optimizer in enumerate(optimizers):
            if (batch_idx + number) % every:
                continue
            self.toggle_optimizer(optimizer)
            hidden = self.net[0](batch)
            loss = self.net[2](hidden.detach() if number else hidden).sum()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    return training_step


def manual(flavour, training_step, optimizers=None):
    module = make(flavour, training_step, optimizers=optimizers)
    module.automatic_optimization = False
    return module


def two(self):
    return [torch.optim.SGD(self.net[part].parameters(), lr=1e-4) for part in (0, 2)]


# A toggled network's turn: the other one is frozen meanwhile, and the gradient goes through it where it has to.
FOR_GENERATOR = FIRST + SECOND + SECOND + FIRST
FOR_CRITIC = FIRST + SECOND + SECOND


def test_a_gan_that_trains_one_network_on_even_and_the_other_on_odd_batches(flavour, trainer, callback):
    ours = callback()
    fit(trainer(ours, flavour=flavour), manual(flavour, gan_step(2), two), batches(*[BATCH] * 20))
    assert spent(ours) == (10 * BATCH * (FOR_GENERATOR + FOR_CRITIC), 20 * BATCH, 0)


def test_a_gan_that_trains_both_each_step(lightning, trainer, callback):
    ours = callback()
    fit(trainer(ours), manual(lightning, gan_step(1), two), batches(*[BATCH] * 10))
    assert spent(ours) == (10 * BATCH * (FOR_GENERATOR + FOR_CRITIC), 10 * BATCH, 0)


def penalty_step(is_due):
    def training_step(self, batch, batch_idx):
        if not is_due(batch_idx):
            return self.net(batch).sum()
        x = batch.clone().requires_grad_()
        loss = self.net(x).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + gradient.pow(2).sum()

    return training_step


@pytest.mark.parametrize("first", [0, 5])
def test_a_penalty_on_gradients_every_16th_step(lightning, trainer, callback, first):
    ours, steps = callback(), 70
    fit(trainer(ours), make(lightning, penalty_step(lambda number: number % 16 == first)), batches(*[BATCH] * steps))
    penalties = len(range(first, steps, 16))
    assert spent(ours) == (BATCH * (penalties * PENALTY + (steps - penalties) * PLAIN), steps * BATCH, 0)


@pytest.mark.parametrize("first", [0, 5])
def test_the_same_under_manual_optimisation(lightning, trainer, callback, first):
    automatic = penalty_step(lambda number: number % 16 == first)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(automatic(self, batch, batch_idx))
        optimizer.step()

    ours, steps = callback(), 70
    fit(trainer(ours), manual(lightning, training_step), batches(*[BATCH] * steps))
    penalties = len(range(first, steps, 16))
    assert spent(ours) == (BATCH * (penalties * PENALTY + (steps - penalties) * PLAIN), steps * BATCH, 0)


def test_layers_that_thaw_at_an_epoch(lightning, trainer, callback):
    def on_train_epoch_start(self):
        self.net[0].requires_grad_(self.current_epoch == 1)

    ours = callback()
    module = make(lightning, on_train_epoch_start=on_train_epoch_start)
    fit(trainer(ours, max_epochs=3), module, batches(*[BATCH] * 5))
    assert spent(ours) == (BATCH * (10 * FROZEN + 5 * PLAIN), 15 * BATCH, 0)


def test_lightnings_own_finetuning(lightning, trainer, callback):
    from lightning.pytorch.callbacks import BaseFinetuning

    class Thaw(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

    def optimizers(self):
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=1e-4)

    ours = callback()
    fit(trainer(ours, Thaw(), max_epochs=2), make(lightning, optimizers=optimizers), batches(*[BATCH] * 6))
    assert spent(ours) == (BATCH * (6 * FROZEN + 6 * PLAIN), 12 * BATCH, 0)


def test_lengths_that_vary_are_each_exact(lightning, trainer, callback):
    lengths = [2, 3, 5, 7, 11, 3, 2, 13, 5, 2] * 2
    ours = callback()
    fit(trainer(ours), make(lightning), batches(*lengths))
    assert spent(ours) == (sum(lengths) * PLAIN, sum(lengths), 0)


def test_more_lengths_than_32_are_estimated_and_that_is_shown(lightning, trainer, callback):
    ours = callback()
    lengths = range(1, 51)
    fit(trainer(ours), make(lightning), batches(*lengths))
    flops, samples, estimated = spent(ours)
    assert samples == sum(lengths)
    assert flops == sum(lengths) * PLAIN  # in proportion to the elements, as estimates are
    # The first one is counted and observed at once, and is none of the 32.
    assert estimated == pytest.approx(100 * sum(range(34, 51)) / sum(lengths))


def test_batches_for_which_the_step_returns_nothing(lightning, trainer, callback):
    def training_step(self, batch, batch_idx):
        loss = self.net(batch).sum()
        return loss if batch_idx % 3 else None

    ours = callback()
    fit(trainer(ours), make(lightning, training_step), batches(*[BATCH] * 12))
    assert spent(ours) == (BATCH * (8 * PLAIN + 4 * (FIRST + SECOND)), 12 * BATCH, 0)


def test_a_closure_that_is_called_again_and_again(lightning, trainer, callback):
    calls = 0

    def training_step(self, batch, batch_idx):
        nonlocal calls
        calls += 1
        return self.net(batch).pow(2).sum()

    def optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=1e-6, max_iter=4, tolerance_grad=0, tolerance_change=0)

    ours = callback()
    fit(trainer(ours), make(lightning, training_step, optimizers=optimizers), batches(*[BATCH] * 6))
    assert calls == 6 * 4
    assert spent(ours)[1] == 6 * BATCH
    parameters = WIDE * INNER + INNER + INNER * OUT + OUT
    step = ours.profiles["train"].step
    assert step.total - step.optimizer == 4 * BATCH * PLAIN
    dots, rest = divmod(step.optimizer, 2 * parameters)
    assert rest == 0
    assert dots > 0


def test_what_the_user_says_a_step_costs_stands_in_its_place(lightning, trainer, callback):
    ours = callback(flops_fn=lambda batch: 1009 * len(batch))
    fit(trainer(ours), make(lightning), batches(3, 3, 4))
    assert spent(ours) == (1009 * 10, 10, 0)


def test_tokens_are_those_of_input_ids_or_of_the_users_function_or_absent(lightning, trainer, callback):
    ids = [{"input_ids": torch.zeros(BATCH, length, dtype=torch.long)} for length in (5, 7, 5)]
    loader = torch.utils.data.DataLoader(ids, batch_size=None)

    def training_step(self, batch, batch_idx):
        return self.net(F.one_hot(batch["input_ids"], WIDE).float()).sum()

    ours = callback()
    fit(trainer(ours), make(lightning, training_step), loader)
    assert ours.profiles["train"].training["compute/tokens_total"] == BATCH * (5 + 7 + 5)
    assert spent(ours)[:2] == (BATCH * (5 + 7 + 5) * PLAIN, 3 * BATCH)
    ours = callback(tokens_fn=lambda batch: 2 * batch.numel())
    fit(trainer(ours), make(lightning), batches(*[BATCH] * 4))
    assert ours.profiles["train"].training["compute/tokens_total"] == 4 * 2 * BATCH * WIDE
    ours = callback()
    fit(trainer(ours), make(lightning), batches(*[BATCH] * 4))
    assert not any("tokens" in name for name in ours.profiles["train"].training)


def test_a_compiled_module_is_exact(lightning, trainer, callback, capsys):
    ours = callback(summary=True)
    module = make(lightning, net=lambda: torch.compile(make_net(), backend="eager"))
    fit(trainer(ours), module, batches(*[BATCH] * 6))
    assert spent(ours) == (6 * BATCH * PLAIN, 6 * BATCH, 0)
    assert "estimated" not in capsys.readouterr().out


def test_a_second_fit_of_the_same_trainer_goes_on_and_one_of_another_begins_anew(lightning, trainer, callback):
    ours = callback()
    module = make(lightning)
    loop = fit(trainer(ours), module, batches(*[BATCH] * 5))
    loop.fit_loop.max_epochs = 2
    fit(loop, module, batches(*[BATCH] * 5))
    assert spent(ours) == (10 * BATCH * PLAIN, 10 * BATCH, 0)
    fit(trainer(ours), module, batches(*[BATCH] * 5))
    assert spent(ours) == (5 * BATCH * PLAIN, 5 * BATCH, 0)


# --- When it is logged --------------------------------------------------------------------------------------------


def test_it_is_logged_at_the_trainers_log_steps_and_at_the_end(lightning, trainer, callback, logged):
    fit(trainer(callback(), log_every_n_steps=4), make(lightning), batches(*[BATCH] * 10))
    assert logged() == {3: 4 * BATCH * PLAIN, 7: 8 * BATCH * PLAIN, 9: 10 * BATCH * PLAIN}
    assert set(logged("perf/step_time_ms")) == {3, 7, 9}


def test_or_at_its_own(lightning, trainer, callback, logged):
    fit(
        trainer(callback(log_every_n_steps=3, prefix="net/"), log_every_n_steps=4),
        make(lightning),
        batches(*[BATCH] * 10),
    )
    assert list(logged("net/compute/flops_total")) == [2, 5, 8, 9]
    assert logged() == {}


def test_under_accumulation_log_steps_are_the_optimizers(lightning, trainer, callback, logged):
    loop = trainer(callback(), log_every_n_steps=2, accumulate_grad_batches=3)
    fit(loop, make(lightning), batches(*[BATCH] * 15))
    assert logged() == {1: 6 * BATCH * PLAIN, 3: 12 * BATCH * PLAIN, 4: 15 * BATCH * PLAIN}


def test_a_trainer_that_logs_nothing_has_it_at_the_end(lightning, trainer, callback, logged):
    fit(trainer(callback(), log_every_n_steps=0), make(lightning), batches(*[BATCH] * 7))
    assert logged() == {6: 7 * BATCH * PLAIN}


# --- Throughput ---------------------------------------------------------------------------------------------------

LONG_S = 0.6
STEPS = 40


def test_validation_is_left_out_of_throughput(lightning, trainer, callback, logged):
    def validation_step(self, batch, batch_idx):
        time.sleep(LONG_S)

    loop = trainer(callback(), val_check_interval=20, log_every_n_steps=10, num_sanity_val_steps=0)
    fit(loop, make(lightning, validation_step=validation_step), batches(*[BATCH] * STEPS), batches(11))
    assert max(logged("perf/step_time_ms").values()) < LONG_S * 1e3 / 20


def test_checkpoints_are_left_out_of_throughput(lightning, trainer, callback, tmp_path, logged):
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    class Slow(TorchCheckpointIO):
        saved = 0

        def save_checkpoint(self, *args, **kwargs):
            time.sleep(LONG_S)
            Slow.saved += 1
            super().save_checkpoint(*args, **kwargs)

    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=15, save_top_k=-1)
    loop = trainer(callback(), keeper, plugins=[Slow()], log_every_n_steps=10, enable_checkpointing=True)
    fit(loop, make(lightning), batches(*[BATCH] * STEPS))
    assert Slow.saved >= 2
    assert max(logged("perf/step_time_ms").values()) < LONG_S * 1e3 / 20


def test_steps_that_are_observed_are_left_out_of_throughput(lightning, trainer, callback, monkeypatch, logged):
    from flopcallback.tracing.observer import StepRecorder

    observed = []
    watching = StepRecorder.watching

    def slow(observer, **how):
        observed.append(observer)
        time.sleep(LONG_S)
        return watching(observer, **how)

    monkeypatch.setattr(StepRecorder, "watching", slow)
    loop = trainer(callback(), log_every_n_steps=10)
    fit(loop, make(lightning), batches(*[BATCH] * 24, 7, *[BATCH] * 10))
    assert len(observed) >= 3  # the counted one, the first like it, that of another kind, and audits
    assert max(logged("perf/step_time_ms").values()) < LONG_S * 1e3 / 20


def test_waiting_for_data_has_its_share(lightning, trainer, callback, logged):
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            time.sleep(0.01)
            return torch.ones(BATCH, WIDE)

    fit(trainer(callback()), make(lightning), torch.utils.data.DataLoader(Slow(), batch_size=None))
    assert min(logged("perf/data_wait_pct").values()) > 5


def test_no_step_between_two_logs_waits_for_the_device(lightning, trainer, callback, monkeypatch):
    from flopcallback.training.meter import ComputeMeter

    waits, steps = [], []
    monkeypatch.setattr(ComputeMeter, "_synchronize", lambda meter: waits.append(len(steps)))

    def training_step(self, batch, batch_idx):
        steps.append(batch_idx)
        return self.net(batch).sum()

    ours = callback()
    fit(trainer(ours, log_every_n_steps=25), make(lightning, training_step), batches(*[BATCH] * 100))
    after_window = [at for at in waits if at > 5]
    assert {25, 50, 75, 100} <= set(after_window)
    audited = ours.profiles["train"].training["compute/audited_steps"]
    assert len(after_window) - 5 <= audited  # at log steps, at the end, and where an audit is left out of throughput


# --- The promise --------------------------------------------------------------------------------------------------


def late_kinds(flavour):
    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch), torch.zeros(len(batch), dtype=torch.long))
        if batch_idx % 8 == 3:
            x = batch.clone().requires_grad_()
            loss = loss + torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0].pow(2).sum()
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx > 20)

    def optimizers(self):
        return torch.optim.AdamW(self.parameters())

    def net():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(WIDE, INNER), nn.BatchNorm1d(INNER), nn.Dropout(0.3), nn.Linear(INNER, OUT))

    return make(flavour, training_step, optimizers=optimizers, net=net, on_train_batch_start=on_train_batch_start)


def test_steps_that_are_observed_late_change_no_bit_and_leave_nothing(
    lightning, trainer, callback, differences, leftovers
):
    left = []
    for callbacks in ([callback()], []):
        module = late_kinds(lightning)
        loop = fit(trainer(*callbacks or [lightning.Callback()]), module, batches(*[2 + n % 5 for n in range(40)]))
        left.append((module.state_dict(), [each.state_dict() for each in loop.optimizers], torch.get_rng_state()))
        assert leftovers(module) == []
    assert differences(*left) == []
