"""`import flopcallback` must stay cheap: torch, and nothing that trains, tracks, plots or compiles."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Parts of torch that `import torch` leaves out on purpose, since each costs a second or another package.
HEAVY_PARTS_OF_TORCH = ("torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "torch.onnx._internal")

PROBE = """
import sys
import torch
before = set(sys.modules)
{statement}
print(*sorted(set(sys.modules) - before))
"""


def packages_added_to_torch(statement: str) -> set[str]:
    """Top-level packages and heavy parts of torch that `statement` imports after `import torch` (stdlib left out)."""
    # -I: neither the working directory nor the environment may lend a module.
    run = subprocess.run(
        [sys.executable, "-I", "-c", PROBE.format(statement=statement)], check=True, capture_output=True, text=True
    )
    modules = run.stdout.split()
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"torch"}
    return packages | {part for part in HEAVY_PARTS_OF_TORCH if part in modules}


def test_importing_flopcallback_imports_torch_and_nothing_else():
    assert packages_added_to_torch("import flopcallback") == {"flopcallback"}


@pytest.mark.parametrize(
    ("modules", "packages"),
    [
        (("rich", "tabulate", "torch._dynamo"), {"rich", "tabulate", "torch._dynamo"}),
        pytest.param(
            ("tensorboard", "matplotlib.pyplot", "torch.utils.tensorboard"),
            {"tensorboard", "matplotlib", "torch.utils.tensorboard"},
            marks=pytest.mark.tensorboard,
        ),
        pytest.param(("lightning.pytorch",), {"lightning"}, marks=pytest.mark.lightning),
    ],
)
def test_the_check_above_would_see_packages_that_slipped_in(modules, packages):
    assert packages <= packages_added_to_torch(f"import flopcallback, {', '.join(modules)}")
