"""A folder with a model in it, and the command run there in this process."""

from __future__ import annotations

import importlib
import sys

import pytest
from typer.testing import CliRunner

from flopcallback.cli.app import app

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 7)

    def forward(self, x):
        return self.last(self.first(x).relu())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 3), nn.Linear(3, 13)

    def forward(self, ids, mask=None):
        assert ids.dtype == torch.int64
        assert mask is None or mask.dtype == torch.bool
        return self.head(self.embed(ids))


class Counting(nn.Module):
    def forward(self, x):
        print("the model says", self.training, torch.is_grad_enabled(), x.dtype, x.device.type)
        return x @ x.T


class Looking(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


class Exponential(nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(x.T @ x / 100)


class Sparse(nn.Module):
    def forward(self, x):
        return torch.eye(3).to_sparse() @ x.T


class Sized(nn.Module):
    def __init__(self, width):
        super().__init__()


def lazy():
    return nn.LazyLinear(5)


def make(width=5, deep=False):
    print("made here")
    return nn.Sequential(Net(width), nn.Linear(7, 2)) if deep else Net(width)


def function():
    return lambda x: x @ x.T


def nothing():
    pass


class nested:
    make = staticmethod(make)


ready = Net(2)
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: a module with models, one that imports what is not there, one that is a script."""
    (tmp_path / "some_net.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "needy.py").write_text("import not_there_at_all\n", encoding="utf-8")
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script.py DATA')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("some_net", "needy", "script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("some_net", None)


@pytest.fixture
def flopcallback(folder, monkeypatch):
    """Runs the command in the folder: `flopcallback("count", "some_net:make")`; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "140")
    runner = CliRunner()

    def run(*arguments):
        return runner.invoke(app, [str(argument) for argument in arguments], prog_name="flopcallback")

    return run
