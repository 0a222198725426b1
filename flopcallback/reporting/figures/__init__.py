"""Profiles as figures."""
