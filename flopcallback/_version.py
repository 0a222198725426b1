"""The version, in a file that imports nothing: the package, a profile's conditions and the build read it here."""

__version__ = "0.1.0"
