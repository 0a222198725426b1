"""A model's modules: their names, and how to watch them and leave them as they were."""
