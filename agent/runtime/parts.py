"""Requests with more rows than a build takes at once: cut, inferred part by part, put together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Infer = Callable[[Mapping[str, Any]], Sequence[Any]]


def in_parts(
    inputs: Sequence[tuple[str, Any, Sequence[Any]]],
    arrays: Mapping[str, Any],
    most: int,
    infer: Infer,
) -> list[Any]:
    """What ``infer`` gives of at most ``most`` rows at once. Rows are the first axis of inputs that
    leave it open. ValueError without any.
    """
    import numpy

    cut = [name for name, _, axes in inputs if axes and not isinstance(axes[0], int)]
    rows = len(arrays[cut[0]]) if cut else 1
    if not rows:
        raise ValueError("a request of no rows: this build takes them in parts")
    if rows <= most:
        return list(infer(arrays))
    parts = [
        infer({n: a[at : at + most] if n in cut else a for n, a in arrays.items()})
        for at in range(0, rows, most)
    ]
    return [numpy.concatenate(those) for those in zip(*parts, strict=True)]
