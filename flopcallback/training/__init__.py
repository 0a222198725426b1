"""One training, whatever drives it: what it costs, and where that is shown."""
