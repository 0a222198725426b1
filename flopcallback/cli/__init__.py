"""The command line: `flopcallback count` and `flopcallback diff`."""
