"""flopcallback's profiles and numbers in Weights & Biases: history, tables, charts and files of the caller's run."""

from flopcallback_wandb.tracker import WandbTracker

__all__ = ["WandbTracker"]
