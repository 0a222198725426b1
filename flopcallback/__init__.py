"""FLOPs per module and per operator, traced on the first real batch and logged by the tracker in use."""

__version__ = "0.1.0"

__all__ = ["__version__"]
