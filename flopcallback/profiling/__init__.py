"""From what was observed and timed to a profile."""
