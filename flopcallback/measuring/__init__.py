"""Clocks and devices: latency of modules and peak rates of hardware."""
