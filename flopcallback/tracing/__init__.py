"""Observation of one call: every operator, in order."""
