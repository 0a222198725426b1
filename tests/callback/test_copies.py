"""Copies of a hook or a callback that is at work, pickled or not, have what is known by then, and watch nothing."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from flopcallback import FlopHook
from flopcallback.trackers import MemoryTracker

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FORWARD = 2 * BATCH * (WIDE * INNER + INNER * OUT)
STEP = 3 * FORWARD - 2 * BATCH * WIDE * INNER  # the inputs require no grad


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, copy.copy, pickled, saved]


def batch_size(batch):
    return len(batch)


# --- FlopHook ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_copy", COPIES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("at", [0, 1, 2, 4, 7])
def test_a_copy_of_a_hook_has_what_is_known_and_the_hook_goes_on(make_copy, at, differences, leftovers):
    """Before anything, behind the counted step, the observed one, within the window, and behind it."""

    def loop(between):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"warmup_steps": 0, "latency_steps": 4, "summary": False, "strict": True}
        with FlopHook(model, optimizer, to=MemoryTracker(), max_flops=3 * STEP, **options) as hook:
            model.hook = hook  # as a user's own module or trainer has it
            for step in range(9):
                if step == at:
                    between(hook)
                model(torch.ones(BATCH, WIDE)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [parameter.detach().clone() for parameter in model.parameters()], model, optimizer, hook

    made = []

    def between(hook):
        known = hook.profile, hook.metrics(), hook.should_stop
        twin = make_copy(hook)
        assert (twin.profile, twin.metrics(), twin.should_stop) == known
        made.append(twin)

    untouched, *_ = loop(lambda hook: None)
    left, model, optimizer, hook = loop(between)
    assert differences(left, untouched) == []
    assert leftovers(model) == []
    assert hook.profile.step.total == STEP
    assert hook.profile.latency.steps == 4
    assert hook.metrics()["compute/flops_total"] == 9 * STEP
    (twin,) = made
    assert (twin.profile is None) == (at == 0)
    # It watches nothing, and nothing of it stands anywhere.
    with twin, twin.step():
        model(torch.ones(BATCH, WIDE)).square().mean().backward()
        optimizer.step()
    assert (twin.profile.forward_flops if at else twin.profile) == (FORWARD if at else None)
    assert twin.state_dict() == {}
    assert not optimizer._optimizer_step_post_hooks


def test_a_copy_of_a_hook_holds_no_model():
    model = nn.Linear(500, 500)
    with FlopHook(model, torch.optim.SGD(model.parameters(), lr=0.1), summary=False, batch_size_fn=batch_size) as hook:
        model(torch.ones(BATCH, 500)).sum().backward()
        size = len(pickle.dumps(hook))
        twin = copy.deepcopy(hook)
    assert size < 500 * 500
    assert twin._options.batch_size_fn is batch_size
    with pytest.warns(UserWarning, match="this is a copy of a hook, which watches no loop"):
        twin.load_state_dict({})


def test_a_model_that_has_its_hook_is_copied_in_the_loop(leftovers):
    model = nn.Sequential(nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, summary=False, latency_steps=4) as model.hook:
        for _ in range(4):
            model(torch.ones(BATCH, WIDE)).sum().backward()
            optimizer.step()
            twins = [make_copy(model) for make_copy in (copy.deepcopy, pickled, saved)]
            assert [leftovers(twin) for twin in twins] == [[], [], []]
            assert [twin.hook.profile.forward_flops for twin in twins] == [FORWARD] * 3


# --- FlopCallback -----------------------------------------------------------------------------------------------------


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize("make_copy", COPIES, ids=lambda each: each.__name__)
def test_a_copy_of_a_callback_at_work_has_options_and_profiles(
    flavour, run, differences, leftovers, ours, make_copy, tmp_path
):
    from flopcallback import FlopCallback

    made = []

    class Copying(flavour.Callback):
        def copied(self, trainer, *_):
            (callback,) = (each for each in trainer.callbacks if isinstance(each, FlopCallback))
            made.append((make_copy(callback), dict(callback.profiles)))

        on_train_batch_start = on_train_batch_end = on_before_backward = on_validation_start = copied
        on_train_start = on_train_end = copied

    def callback():
        options = {"warmup_steps": 0, "latency_steps": 2, "max_flops": 10**12, "by_compute": ["val/loss"]}
        return FlopCallback(
            elementwise=True, summary=False, report_dir=tmp_path / "report", batch_size_fn=batch_size, **options
        )

    watching = callback()
    untouched, with_us = run(flavour), run(flavour, [Copying(), watching, Copying()])
    assert differences(untouched, with_us) == []
    assert ours(with_us) == []
    assert leftovers(with_us.model) == []
    assert len(made) > 20
    for twin, profiles in made:
        assert twin.profiles == profiles
        assert twin._options == watching._options
        assert twin.state_key == watching.state_key
        assert (twin._training, vars(twin).get("log")) == (None, None)
    # A copy that was made in the middle trains as a new one does.
    again = run(flavour, [made[7][0]])
    assert differences(untouched, again) == []
    assert made[7][0].profiles["train"].forward_flops == watching.profiles["train"].forward_flops > 0


@pytest.mark.lightning
@pytest.mark.models
def test_who_trains_with_copies_leaves_the_profiles_with_the_callback_that_the_user_has(flavour, run, tmp_path):
    """A forecasting package keeps the trainer's arguments, and trains and predicts with copies of copies of them."""
    from flopcallback import FlopCallback

    memory = MemoryTracker()
    users = FlopCallback(to=memory, summary=False, latency_steps=0, report_dir=tmp_path)
    arguments = copy.deepcopy({"callbacks": [users]})
    run(flavour, copy.deepcopy(arguments)["callbacks"])
    (kept,) = arguments["callbacks"]
    assert [*users.profiles] == [*kept.profiles] == ["train"]
    assert users.profiles["train"].step.total == memory.profiles[-1][1].step.total > 0
    run(flavour, copy.deepcopy(arguments)["callbacks"], do="predict")
    assert [*users.profiles] == ["train", "predict"]
    # What the user's own object learns is not the copies'.
    run(flavour, [users], do="test")
    assert [*kept.profiles] == ["train", "predict"]


@pytest.mark.lightning
@pytest.mark.models
def test_a_pickle_takes_no_other_profiles_along(flavour, run, tmp_path):
    from flopcallback import FlopCallback

    users = FlopCallback(summary=False, latency_steps=0, report_dir=tmp_path)
    twin = pickled(copy.deepcopy(users))
    run(flavour, [twin])
    assert (dict(users.profiles), [*twin.profiles]) == ({}, ["train"])


IMAGES = torch.ones(2, 1, 7, 7)


def scripted(net):
    made = torch.jit.script(net.head)
    return made(torch.ones(2, 28)).tolist(), str(made.graph)


def exported(net):
    made = torch.export.export(net, (IMAGES,))
    return made.module()(IMAGES).shape, str(made.graph)


def copied(net):
    twins = [make_copy(net) for make_copy in (copy.deepcopy, pickled, saved)]
    return [twin.eval()(IMAGES).tolist() for twin in twins], [sorted(vars(twin)) for twin in twins]


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("make", [scripted, exported, copied], ids=lambda make: make.__name__)
def test_a_model_is_scripted_exported_and_copied_at_each_event_as_it_would_be(
    lightning, run, differences, leftovers, ours, make, tmp_path
):
    from flopcallback import FlopCallback

    def making(made):
        class Making(lightning.Callback):
            def make(self, trainer, pl_module, *_):
                with torch.random.fork_rng():  # what is exported is called, and draws numbers
                    made.append(make(pl_module.net))

            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if batch_idx in (0, 1, 2, 4):  # counted and observed, warming up, timed, booked
                    self.make(trainer, pl_module)

            def on_before_backward(self, trainer, pl_module, loss):
                if len(made) < 4:
                    self.make(trainer, pl_module)

            on_train_start = on_train_end = make

        return Making()

    without, with_us = [], []
    watching = FlopCallback(warmup_steps=1, latency_steps=2, summary=False, report_dir=tmp_path, strict=True)
    untouched = run(lightning, [making(without)], max_epochs=1)
    left = run(lightning, [watching, making(with_us)], max_epochs=1)
    assert differences(untouched, left) == []
    assert with_us == without
    assert len(without) > 5
    assert ours(left) == []
    assert leftovers(left.model) == []
    assert watching.profiles["train"].step.total > 0


@pytest.mark.lightning
def test_a_module_whose_hyperparameters_have_the_callback_writes_checkpoints(lightning, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    from flopcallback import FlopCallback

    class Model(BoringModel):
        def __init__(self, callbacks):
            super().__init__()
            self.save_hyperparameters()

    watching = FlopCallback(summary=False, report_dir=tmp_path / "report")
    model = Model([watching])
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=6, callbacks=[watching, keep], **options)
    trainer.fit(model)
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 3
    (twin,) = torch.load(paths[-1], weights_only=False)["hyper_parameters"]["callbacks"]
    assert twin.profiles["train"].forward_flops == watching.profiles["train"].forward_flops > 0
