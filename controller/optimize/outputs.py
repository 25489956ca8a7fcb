"""What a model answers, row by row: of the signature's shape, numbers, and those of its source.

Judges nothing but the shape, of which a device could make nothing: rows with NaN or infinity and
rows that differ from the source are counted, the gate decides.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from controller.domain.model import Signature, TensorSpec
from controller.errors import InvalidError
from controller.optimize.rows import NUMPY_TYPES, Array

# Kernels sum in another order than PyTorch's: some 1e-5 of the largest value. A wrong export is
# far beyond a hundredth. Half precision has three digits to begin with.
TOLERANCE, HALF_TOLERANCE = 0.01, 0.05
TOLERANCE_ABSOLUTE = 1e-4

Mask = NDArray[np.bool_]


def check_shapes(found: Sequence[Array], inputs: Sequence[Array], signature: Signature) -> None:
    """InvalidError where ``found`` is not what the signature promises for ``inputs``.

    A dynamic axis that an input has as well must have that input's size.
    """
    if len(found) != len(signature.outputs):
        raise InvalidError(
            f"the model gave {len(found)} outputs, its signature has {len(signature.outputs)}"
        )
    sizes: dict[str, int] = {}
    for array, spec in zip(inputs, signature.inputs, strict=True):
        names = zip(spec.shape, array.shape, strict=True)
        sizes |= {axis: size for axis, size in names if isinstance(axis, str)}
    for array, spec in zip(found, signature.outputs, strict=True):
        if not _fits(array, spec, sizes):
            raise InvalidError(
                f"the output {spec.name} came as {list(array.shape)} {array.dtype},"
                f" the signature says {spec.text()}",
                f"inputs were {', '.join(str(list(one.shape)) for one in inputs)}",
            )


def not_finite(found: Iterable[Array], rows: int) -> Mask:
    """Which of the rows have NaN or infinity in any output; all, where rows cannot be told."""
    wrong = np.zeros(rows, dtype=bool)
    for array in found:
        if array.dtype.kind in "fc":
            wrong |= _per_row(~np.isfinite(array), rows)
    return wrong


def differing(found: Sequence[Array], source: Sequence[Array], rows: int) -> Mask:
    """Which rows differ from the source's by more than rounding, in any output."""
    wrong = np.zeros(rows, dtype=bool)
    for mine, theirs in zip(found, source, strict=True):
        if mine.shape != theirs.shape:
            wrong[:] = True
        elif theirs.dtype.kind == "f":
            wrong |= _per_row(_far(mine, theirs), rows)
        else:
            wrong |= _per_row(mine != theirs, rows)
    return wrong


def _far(mine: Array, theirs: Array) -> Mask:
    share = HALF_TOLERANCE if theirs.dtype.itemsize < 4 else TOLERANCE
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    rest = tuple(range(1, b.ndim))
    size = np.nan_to_num(np.abs(b), nan=0.0, posinf=0.0)
    largest = size.max(axis=rest, keepdims=True, initial=0.0) if rest else size
    allowed = share * largest + TOLERANCE_ABSOLUTE
    with np.errstate(invalid="ignore"):  # infinity less infinity; both are counted elsewhere
        close = (np.abs(a - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~close, dtype=bool)


def _per_row(wrong: Mask, rows: int) -> Mask:
    if wrong.ndim and len(wrong) == rows:
        return np.asarray(wrong.reshape(rows, -1).any(axis=1), dtype=bool)
    return np.full(rows, bool(wrong.any()))


def _fits(array: Array, spec: TensorSpec, sizes: dict[str, int]) -> bool:
    wanted = [sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in spec.shape]
    kind = NUMPY_TYPES.get(spec.dtype)
    return (
        len(wanted) == array.ndim
        and all(size in (-1, real) for size, real in zip(wanted, array.shape, strict=True))
        and kind in (None, array.dtype.name)
    )
