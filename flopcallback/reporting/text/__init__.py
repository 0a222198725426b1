"""Profiles as text: tables for terminals, Markdown, CSV."""
