"""A small model of known cost for `transformers.Trainer`, and what its training leaves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

WORDS, WIDTH, HIDDEN, LENGTH, PADDING, BATCH = 11, 5, 7, 3, 1, 2

FORWARD = 2 * BATCH * LENGTH * (WIDTH * HIDDEN + HIDDEN * WORDS)
"""FLOPs of a forward of `Net`: its two linear layers."""

STEP = 3 * FORWARD
"""FLOPs of a step: backward has two products for each of the forward's, since the embedding trains as well."""


class Net(nn.Module):
    """Word by word, an embedding and two linear layers."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.hidden = nn.Linear(WIDTH, HIDDEN)
        self.head = nn.Linear(HIDDEN, WORDS)

    def forward(self, input_ids, labels, attention_mask=None):
        logits = self.head(self.hidden(self.words(input_ids)).relu())
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def examples(number=24):
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([1] * (LENGTH - PADDING) + [0] * PADDING)
    ids = torch.randint(0, WORDS, (number, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row, "attention_mask": mask} for row in ids]


@dataclass
class Left:
    """What a training leaves."""

    digest: str
    log_history: list[dict[str, float]]
    random_state: int
    trainer: Any = field(compare=False)
    told: list[str] = field(compare=False)
    output: Any = field(compare=False)

    @property
    def steps(self):
        return self.trainer.state.global_step


def digest_of(model):
    sums = hashlib.sha256()
    for value in model.state_dict().values():
        sums.update(value.detach().float().numpy().tobytes())
    return sums.hexdigest()


def is_measured(name):
    """Whether a value of the log is a time, or made of one."""
    return "runtime" in name or "per_second" in name


def leftovers(model):
    """What is left on a model: wrappers of its calls, and hooks."""
    own = [(name, key) for name, module in model.named_modules() for key in vars(module) if key == "forward"]
    return own + [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
