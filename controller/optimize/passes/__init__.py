"""Passes over PyTorch's program, one small file each; a recipe says which ones and in what order.

A pass takes a `Network` (`network.py`) and changes it in place. What it may be asked is declared in
`controller.domain.passes`, so that a recipe is refused when it is applied and not when it is built.
"""
