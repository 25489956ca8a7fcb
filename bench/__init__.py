"""Figures of the product, measured on this machine: `python -m bench.NAME --json FILE`."""
