"""Profiles and numbers of flopcallback in MLflow.

They are metrics, tags, tables and files of a run that the caller owns.
"""

from flopcallback_mlflow.tracker import MLflowTracker

__all__ = ["MLflowTracker"]
