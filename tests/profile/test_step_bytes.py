"""The bytes of a whole step: those of its operators, where enough of them are known."""

from __future__ import annotations

import pytest

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.times import IDLE, PYTHON, OperatorTime


def conv(ms, moved):
    return OperatorTime("conv", "aten::conv2d", "forward", ms, 1, 7, moved)


@pytest.mark.parametrize(
    ("operators", "moved"),
    [
        ([conv(5.0, 11), conv(4.0, 13)], 24),
        ([conv(9.0, 11), conv(1.0, None)], 11),
        ([conv(8.9, 11), conv(1.1, None)], None),
        ([conv(1.0, None)], None),
        ([], None),
        # Python and an idle device move nothing.
        ([conv(1.0, 11), *(OperatorTime(None, name, "forward", 50.0) for name in (PYTHON, IDLE))], 11),
    ],
)
def test_bytes_of_a_step_are_known_where_those_of_nine_tenths_of_its_work_are(operators, moved):
    assert ModelProfile("Net", operator_times=tuple(operators)).step_bytes == moved
