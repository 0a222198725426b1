"""A call that is observed, by an engine that fits: every operator of it, in order."""
