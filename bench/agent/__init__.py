"""What one agent costs and does: throughput, memory, swaps, an idle minute, bytes on the wire.

`python -m bench.agent [--json FILE]` starts a controller and agents of its own; docs/benchmarks.md
says how each figure is made. Holds no rule of the product.
"""
