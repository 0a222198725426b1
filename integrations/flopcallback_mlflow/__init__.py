"""Profiles and numbers in an MLflow run."""
