"""Trainings by `transformers.Trainer`."""

from __future__ import annotations

import warnings

import pytest
import torch
from hf_training import BATCH, Left, Net, digest_of, examples, is_measured


@pytest.fixture
def train(tmp_path):
    """A function that trains for 6 steps of 2 examples, and returns what that leaves."""
    from transformers import Trainer, TrainingArguments

    made = []

    def run(*callbacks, model=None, trainer=Trainer, resume=None, output=None, **arguments):
        output = output or tmp_path / f"output{len(made)}"
        made.append(output)
        defaults = {
            "max_steps": 6,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 4,
            "logging_steps": 2,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            model = Net() if model is None else model()
            made_trainer = trainer(
                model,
                TrainingArguments(str(output), **{**defaults, **arguments}),
                train_dataset=examples(),
                eval_dataset=examples(4),
                callbacks=list(callbacks),
            )
            made_trainer.train(resume_from_checkpoint=resume)
        history = [
            {name: value for name, value in entry.items() if not is_measured(name)}
            for entry in made_trainer.state.log_history
        ]
        told = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
        told = [text for text in told if "flopcallback" in text.lower() or "FlopTrainer" in text]
        return Left(
            digest_of(model), history, hash(torch.get_rng_state().numpy().tobytes()), made_trainer, told, output
        )

    return run


@pytest.fixture
def make_callback():
    """A function that makes a callback that prints nothing."""
    from flopcallback_transformers import FlopTrainerCallback

    def make(*args, **options):
        return FlopTrainerCallback(*args, **{"summary": False, **options})

    return make
