"""Profiles and numbers of flopcallback in TensorBoard.

They are scalars, texts and figures, written through a writer that the caller owns.
"""

from flopcallback_tensorboard.tracker import TensorBoardTracker

__all__ = ["TensorBoardTracker"]
