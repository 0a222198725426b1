"""Profiles built from observed operators and measured times."""
