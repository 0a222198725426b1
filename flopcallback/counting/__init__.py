"""From a callable and its real inputs to operator calls, and from those to counts."""
