"""Profiles and numbers of flopcallback in Weights & Biases.

They are history, tables, charts and files of a run that the caller owns.
"""

from flopcallback_wandb.tracker import WandbTracker

__all__ = ["WandbTracker"]
