"""Names of modules, for a callable that is none itself, and for modules in wrappers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.modules.names import ModuleNames, find_modules

BATCH, WIDE, INNER, OUT, STEPS = 3, 5, 7, 2, 4


def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Pipeline:
    """As those of diffusers: no module, but models in its attributes, and a decorated `__call__`."""

    def __init__(self):
        self.encoder, self.unet = nn.Linear(WIDE, INNER), nn.Sequential(nn.Linear(INNER, INNER), nn.ReLU())
        self.steps = STEPS

    @torch.no_grad()
    @traced
    def __call__(self, x):
        x = self.encoder(x)
        for _ in range(self.steps):
            x = self.unet(x)
        return x


ENCODER, UNET = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * INNER


@pytest.mark.parametrize(
    "called", [lambda pipe: pipe, lambda pipe: pipe.__call__, lambda pipe: functools.partial(pipe)]
)
def test_the_models_of_a_pipeline_are_told_apart(called):
    flops = FlopCountAnalysis(called(Pipeline()), torch.ones(BATCH, WIDE)).hardware_flops()
    assert {name: count for name, count in flops.items() if count} == {
        "": ENCODER + STEPS * UNET, "encoder": ENCODER, "unet": STEPS * UNET, "unet.0": STEPS * UNET
    }  # fmt: skip


def test_the_modules_among_the_arguments_of_a_method_have_the_names_of_its_parameters():
    class Trainer:
        def fit(self, model, teacher=None):
            return model, teacher

    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    assert find_modules(Trainer().fit, (first, second)) == {"model": first, "teacher": second}


def test_what_a_wrapper_wraps_has_its_name_and_the_outermost_value():
    net = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(1, 1))))
    names = ModuleNames({"": nn.DataParallel(net)})
    assert names.shown == {
        "": "", "module": "", "module.0": "0", "module.0._orig_mod": "0", "module.0._orig_mod.0": "0.0"
    }  # fmt: skip
    assert names.as_shown({"module.0._orig_mod": 3, "module.0": 5, "module": 7, "(training_step)": 11}) == {
        "": 7, "0": 5, "(training_step)": 11
    }  # fmt: skip
