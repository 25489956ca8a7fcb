"""Figures of the controller with a simulated fleet: `python -m bench.fleet --devices 1000`."""
