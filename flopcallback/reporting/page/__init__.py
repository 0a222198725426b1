"""The HTML pages of a profile and of a comparison."""
