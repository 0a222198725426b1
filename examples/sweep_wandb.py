"""Train the six networks of sweep.py as runs of W&B.

Usage: python examples/sweep_wandb.py [--online] [--budget 16e9] [--output sweep_wandb_output]

--online is a real sweep and needs an account: W&B's server hands out the configurations. Offline, the same function is
called for each of them, in one group of runs; `wandb sync` uploads them later.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from sweep import GRID, compare, configurations, name_of, options, train

# FLOPs need no entry: everything that FlopCallback logs can be an axis of the sweep's plots.
SWEEP = {
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {name: {"values": values} for name, values in GRID.items()},
}


def train_one(budget: float, **settings: Any) -> None:
    """Train one configuration of the sweep.

    `wandb agent` calls it without settings.
    """
    with wandb.init(project="digits", **settings) as run:
        configuration = {name: run.config[name] for name in GRID}
        run.name = name_of(configuration)
        loss, _ = train(configuration, WandbLogger(experiment=run), budget)
        print(f"{run.name}: val/loss {loss:.4f}, {run.summary['workload/flops_total']:,} FLOPs")


def main() -> None:
    is_online = "--online" in sys.argv
    # `options` of sweep.py does not know the flag.
    sys.argv = [argument for argument in sys.argv if argument != "--online"]
    given = options(__doc__, "sweep_wandb_output")
    if is_online:
        wandb.agent(wandb.sweep(SWEEP, project="digits"), partial(train_one, given.budget, dir=given.output))
        return
    # Otherwise each of the six runs prints its summary.
    os.environ.setdefault("WANDB_SILENT", "true")
    for configuration in configurations():
        train_one(given.budget, mode="offline", group="sweep", config=configuration, dir=given.output)
    runs = Path(given.output) / "wandb"
    compare([runs], given.output / "compare.html")
    print(f"\nto have them on a server: wandb sync {runs}/offline-run-*")


if __name__ == "__main__":
    main()
