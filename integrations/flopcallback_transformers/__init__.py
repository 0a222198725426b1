"""FLOPs and compute of trainings by `transformers.Trainer`, and by what derives from it."""

from flopcallback_transformers.callback import FlopTrainerCallback

__all__ = ["FlopTrainerCallback"]
