"""Models of `transformers` by small random configurations: what both engines, hooks and the plain forward agree on."""

from __future__ import annotations

import os

# Read when the package is first imported: configurations alone are used, and nothing may be fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from zoo_checks import MODES, Specimen, check
from zoo_decoders import DECODERS
from zoo_encoders import ENCODERS
from zoo_experts import EXPERTS, STATE_SPACES
from zoo_images import IMAGES
from zoo_several_senses import SERIES, SEVERAL_SENSES
from zoo_sizes import Sizes
from zoo_sounds import SOUND
from zoo_translators import ENCODER_DECODERS

pytestmark = pytest.mark.models

FAMILIES = (ENCODERS, DECODERS, EXPERTS, STATE_SPACES, ENCODER_DECODERS, IMAGES, SOUND, SEVERAL_SENSES, SERIES)
ZOO = {name: architecture for family in FAMILIES for name, architecture in family.items()}

# What is expected to be otherwise, and why.
UNKNOWN: dict[str, set[str]] = {}
NOT_UNDER_AUTOCAST = {  # the model itself raises
    "deberta": "cannot be converted to type c10::BFloat16 without overflow",
    "big-bird": "Expected self.dtype to be equal to src.dtype",
    "dbrx": "must have the same scalar type",
}
NOT_TWICE_THE_SAME = {"reformer"}  # in training it draws a seed of its own from the machine


def test_the_zoo_is_large_enough_to_mean_something():
    assert len(ZOO) == sum(map(len, FAMILIES)) >= 200
    assert len({architecture.model for architecture in ZOO.values()}) >= 180


def test_engines_sums_hooks_and_the_plain_forward_agree(name, mode, seed):
    torch.manual_seed(seed)
    model, inputs = ZOO[name].build(Sizes.draw(name, seed))
    model.train(MODES[mode].training)
    call = getattr(model, ZOO[name].call) if ZOO[name].call else model
    specimen = Specimen(call, (), inputs, MODES[mode].context)
    if mode == "autocast" and name in NOT_UNDER_AUTOCAST:
        with pytest.raises(RuntimeError, match=NOT_UNDER_AUTOCAST[name]):
            specimen.run()
        return
    is_noisy = MODES[mode].training and name in NOT_TWICE_THE_SAME
    check(specimen, unknown=UNKNOWN.get(name, ()), other_digits=("trace", "dispatch", "observer") if is_noisy else ())
