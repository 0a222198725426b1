"""Sums over observed operator calls: FLOPs, activations, bytes."""
