"""What builds gain and lose: accuracy of INT8 and of pruning, speed and size against PyTorch.

`python -m bench.builds [--json FILE] [--only PART]` runs the optimiser's own job process on real
and random weights; docs/benchmarks.md says how each figure is made. Holds no rule of the product.
"""
