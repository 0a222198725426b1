"""Profiles as an HTML page."""
