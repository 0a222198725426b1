"""Small models under test: a forward given as a function, on named children."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


class ModelOf(nn.Module):
    """`ModelOf(lambda self, x: self.fc(x), fc=nn.Linear(3, 5))`."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.body = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, *args, **kwargs)


@pytest.fixture
def model_of() -> type[ModelOf]:
    """Builds a model from a function and children."""
    return ModelOf


@pytest.fixture
def x() -> torch.Tensor:
    """A 2x3 input."""
    return torch.arange(6.0).reshape(2, 3)


@pytest.fixture
def no_tracing_state_left():
    """Checks, after a test, that the process is as it was: no trace, no mode."""
    yield
    assert torch._C._get_tracing_state() is None
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not torch.jit.is_tracing()
    assert torch.jit.is_tracing.__module__.startswith("torch")
