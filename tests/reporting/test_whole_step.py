"""What outputs say of a whole training step."""

from __future__ import annotations

import json

import old_names
import pytest

from flopcallback.reporting import ModelProfile, ModuleRow, StepFlops, footer, html_page

ORDINARY = {"flops/forward", "model/params"}  # other zeros are left out, as those of this profile are

ROWS = (
    ModuleRow("", None, 0, "Net", flops=30, macs=15),
    ModuleRow("fc", "", 1, "Linear", flops=30, own_flops=30, macs=15),
)


@pytest.fixture
def profile():
    return ModelProfile("Net", "train", ROWS, forward_flops=30, forward_macs=15)


@pytest.fixture
def stepped(profile):
    steps = StepFlops(forward=30, backward=60, recompute=30)
    return profile.with_step({"": steps, "fc": steps})


def test_a_step_has_its_numbers_and_its_columns(stepped):
    numbers = {name: value for name, value in stepped.scalars().items() if name not in ORDINARY}
    assert numbers == {
        "flops/train_step": 30 + 60 + 30,
        "flops/backward": 60,
        "flops/recompute": 30,
    }
    record = stepped.module_records()[1]
    assert [record[f"step_{part}flops"] for part in ("", "backward_", "recompute_")] == [120, 60, 30]


def test_without_a_step_there_are_none(profile):
    assert set(profile.scalars()) == ORDINARY
    assert profile.module_records()[1]["step_flops"] is None
    assert not any(line.startswith("training step") for line in footer(profile))


def test_a_step_comes_back_from_json(stepped):
    assert ModelProfile.from_json(stepped.to_json()) == stepped


def test_a_profile_of_an_earlier_version_has_none(profile):
    text = json.dumps(old_names.former_json(profile, 1))
    assert "step" not in text
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        assert ModelProfile.from_json(text) == profile


def test_footer_and_page_say_what_the_step_is_made_of(stepped):
    line = next(line for line in footer(stepped) if line.startswith("training step"))
    assert line == "training step: 120 FLOPs (forward 30, backward 60, recomputed 30)"
    assert html_page(stepped).count("forward 30, backward 60, recomputed 30") > 2  # tile, figures and notes


def test_what_is_not_as_it_should_be_is_said(profile):
    noted = profile.with_step({"": StepFlops(forward=40)}, "its forward has 40 FLOPs")
    assert any(line.endswith("; its forward has 40 FLOPs") for line in footer(noted))
    assert "its forward has 40 FLOPs" in html_page(noted)
