"""The W&B run for a user's target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

__all__ = ["run_of"]

WAY_OUT = "Make a run and give it: run = wandb.init(...)."


def run_of(target: Any) -> Run:
    """Return the run of a target.

    `WandbTracker` documents the possible targets and errors.
    """
    try:
        from wandb import init  # noqa: F401 - W&B's own folder of runs, `wandb`, would be imported as an empty package
        from wandb.sdk.wandb_run import Run
    except ImportError as error:
        raise ModuleNotFoundError("WandbTracker needs W&B: pip install wandb", name="wandb") from error
    if isinstance(target, str):
        target = _active_run(target)
    # Lightning's logger, of either package: the first access makes the run where there is none yet.
    run = target if isinstance(target, Run) else getattr(target, "experiment", None)
    if not isinstance(run, Run):
        raise TypeError(
            f"WandbTracker: {target!r:.80} is no run of W&B's. {WAY_OUT} The string 'wandb' for the active run and "
            "Lightning's WandbLogger do as well."
        )
    return run


def _active_run(name: str) -> Run:
    import wandb

    if name != "wandb":
        raise TypeError(f'WandbTracker: the string {name!r:.80} is no run; "wandb" is the active one. {WAY_OUT}')
    if wandb.run is None:
        raise RuntimeError(f'WandbTracker: "wandb" is the active run, and there is none. {WAY_OUT}')
    return wandb.run
