"""The modules of a model: names, temporary wrappers, and their restoration."""
