"""What outputs say of a whole training step."""

from __future__ import annotations

import pytest

from flopcallback.reporting import ModelProfile, ModuleRow, StepFlops, footer, html_page

ROWS = (ModuleRow("", None, 0, "Net", flops=15, hw_flops=30), ModuleRow("fc", "", 1, "Linear", flops=15, hw_flops=30))


@pytest.fixture
def profile():
    return ModelProfile("Net", "train", ROWS, forward_flops=15, forward_hw_flops=30)


@pytest.fixture
def stepped(profile):
    steps = StepFlops(forward=30, backward=60, recompute=30)
    return profile.with_step({"": steps, "fc": steps})


def test_a_step_has_its_numbers_and_its_columns(stepped):
    numbers = {name: value for name, value in stepped.scalars().items() if "train_step" in name}
    assert numbers == {
        "flops/train_step_hw": 30 + 60 + 30,
        "flops/train_step_forward_hw": 30,
        "flops/train_step_backward_hw": 60,
        "flops/train_step_recompute_hw": 30,
        "flops/train_step_optimizer_hw": 0,
    }
    record = stepped.module_records()[1]
    assert [record[f"step_{part}hw_flops"] for part in ("", "backward_", "recompute_")] == [120, 60, 30]


def test_without_a_step_there_are_none(profile):
    assert not any("train_step" in name for name in profile.scalars())
    assert profile.module_records()[1]["step_hw_flops"] is None
    assert not any(line.startswith("training step") for line in footer(profile))


def test_a_step_comes_back_from_json(stepped):
    assert ModelProfile.from_json(stepped.to_json()) == stepped


def test_a_profile_of_an_earlier_version_has_none(profile):
    text = profile.to_json().replace('"flopcallback_profile": 3', '"flopcallback_profile": 1')
    without = text.replace(', "step": null, "step_note": "", "verdict": null', "").replace('"step": null, ', "")
    assert "step" not in without
    assert ModelProfile.from_json(without) == profile


def test_footer_and_page_say_what_the_step_is_made_of(stepped):
    line = next(line for line in footer(stepped) if line.startswith("training step"))
    assert line == "training step: 120 hardware FLOPs (forward 30, backward 60, recomputed 30)"
    assert "hardware FLOPs: forward 30, backward 60, recomputed 30" in html_page(stepped)


def test_what_is_not_as_it_should_be_is_said(profile):
    noted = profile.with_step({"": StepFlops(forward=40)}, "its forward has 40 hardware FLOPs")
    assert any(line.endswith("; its forward has 40 hardware FLOPs") for line in footer(noted))
    assert "its forward has 40 hardware FLOPs" in html_page(noted)
