"""Profiles and numbers in a Weights & Biases run."""
