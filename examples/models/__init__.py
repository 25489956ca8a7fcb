"""Example models: EfficientNet-Lite2 and Lite0 with their ImageNet weights, in four versions.

    python -m examples.models                  # into the cache, once per machine
    python -m examples.models --out DIR        # and a copy in DIR

Downloads nothing: weights and photos come with the packages of constraints/demo.txt.
"""

from examples.models.make import ExampleModelsError, generate

__all__ = ["ExampleModelsError", "generate"]
