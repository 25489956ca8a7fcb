"""Runnable examples: real models, simulated host trees, a small fleet on one machine, the demo."""
