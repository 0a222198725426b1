"""One training under any door: its costs, and where they are logged."""
