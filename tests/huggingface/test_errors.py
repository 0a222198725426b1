"""An error that ends a training leaves nothing of FlopTrainerCallback behind."""

from __future__ import annotations

import copy
import pickle

import pytest
from hf_training import STEP, leftovers

pytestmark = pytest.mark.models

transformers = pytest.importorskip("transformers", reason="the core's own environment has no optional packages")


def watch(owner, told):
    from flopcallback_transformers.errors import LoopErrors

    return LoopErrors(owner, told)


def raising_once(error, place):
    """A Trainer whose fourth step, or what comes after it, raises at a place, the first time that it gets there."""
    from transformers import Trainer, TrainerCallback

    errors = [error]

    def maybe(state, here):
        if errors and here == place and state.global_step >= 3:
            raise errors.pop()

    class Raise(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            maybe(state, "the begin of an epoch")

        def on_step_end(self, args, state, control, **_):
            maybe(state, "the end of a step")

        def on_log(self, args, state, control, logs, **_):
            if "train_runtime" in logs:
                maybe(state, "the last log")

    class Raising(Trainer):
        def __init__(self, *args, callbacks, **more):
            super().__init__(*args, callbacks=[Raise(), *callbacks], **more)
            self.calls_before = [leftovers(self.model), names_of(self), names_of(self.callback_handler)]
            made.append(self)

        def compute_loss(self, *args, **more):
            loss = super().compute_loss(*args, **more)
            maybe(self.state, "a call of the model")
            return loss

    def names_of(owner):
        return sorted(name for name, value in vars(owner).items() if callable(value))

    def what_is_left(trainer):
        return [leftovers(trainer.model), names_of(trainer), names_of(trainer.callback_handler)]

    made = []
    return Raising, made, what_is_left


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "place", ["a call of the model", "the end of a step", "the begin of an epoch", "the last log", "the first step"]
)
def test_an_error_that_ends_a_training_leaves_nothing_behind(train, make_callback, place, error):
    raising, made, what_is_left = raising_once(error, place)
    callback = make_callback(strict=True)
    arguments = {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 8, "trainer": raising}
    if place == "the first step":  # whose data raise
        made_of = raising.get_train_dataloader
        raising.get_train_dataloader = lambda self: Raised(made_of(self), error) if self is made[0] else made_of(self)
    with pytest.raises(error):
        train(callback, **arguments)
    (trainer,) = made
    assert what_is_left(trainer) == trainer.calls_before
    # Where a step ends, the callback before ours raises.
    steps = {"the first step": 0, "the end of a step": 2, "the last log": 6}.get(place, 3)
    assert callback.metrics().get("compute/flops_total", 0) == steps * 4 * STEP

    raising.get_train_dataloader = transformers.Trainer.get_train_dataloader
    trainer.train()
    assert what_is_left(trainer) == trainer.calls_before
    assert callback.metrics()["compute/flops_total"] == 6 * 4 * STEP
    left = train(callback, **arguments)
    assert left == train(**arguments)
    assert callback.metrics()["compute/flops_total"] == 6 * 4 * STEP


class Raised:
    """Data of which even the first batch raises."""

    def __init__(self, batches, error):
        self.batches, self.error = batches, error

    def __iter__(self):
        raise self.error

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_copy_of_what_the_trainer_is_watched_by_calls_the_copy(copied):
    owner = Loop()
    errors = watch(owner, Loop().tell)
    twin = copied(owner)
    twin.name = "twin"
    assert [owner._run_epoch(), twin._run_epoch()] == ["first", "twin"]
    assert type(twin._run_epoch) is type(owner.tell)
    errors.close()
    assert vars(owner).keys() == {"name", "callback_handler"}


def test_a_wrapper_of_somebody_else_is_kept_and_ours_below_it_tells_nothing():
    owner, told = Loop(), Loop()
    errors = watch(owner, told.tell)
    ours = owner._run_epoch
    owner._run_epoch = lambda: ours() + "!"
    errors.close()
    assert owner._run_epoch() == "first!"
    owner.name = None
    with pytest.raises(TypeError):
        owner._run_epoch()
    assert told.name == "first"


def test_two_watches_are_taken_off_in_any_order():
    owner, told = Loop(), Loop()
    owner._run_epoch = own = owner.__str__
    first, second = watch(owner, told.tell), watch(owner, told.tell)
    first.close()
    second.close()
    assert owner._run_epoch is own


class Loop:
    """What stands for a Trainer, and for a callback."""

    def __init__(self):
        self.name = "first"
        self.callback_handler = self

    def _run_epoch(self):
        return "" + self.name

    def on_epoch_begin(self):
        """Do nothing."""

    def tell(self):
        self.name = "told"
