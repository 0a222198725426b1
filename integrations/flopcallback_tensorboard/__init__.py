"""flopcallback's profiles and numbers in TensorBoard: scalars, texts and figures on a writer that the caller owns."""

from flopcallback_tensorboard.tracker import TensorBoardTracker

__all__ = ["TensorBoardTracker"]
