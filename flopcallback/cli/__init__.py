"""Command line: `flopcallback count`, `flopcallback diff` and `flopcallback compare`."""
