"""flopcallback's profiles and numbers in MLflow: metrics, tags, tables and files of a run that the caller owns."""

from flopcallback_mlflow.tracker import MLflowTracker

__all__ = ["MLflowTracker"]
