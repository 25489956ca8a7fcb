"""Looks for numbers that are none: NaN or infinity in the float outputs of a model.

Refuses to repair them. numpy is imported at the first call: a backend has brought it by then.
"""

from collections.abc import Iterable

from agent.domain.tensor import DType, Tensor

_FLOATS = {DType.FP16: "<f2", DType.FP32: "<f4", DType.FP64: "<f8"}
_BF16_EXPONENT = 0x7F80


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every float of every tensor is a number. One pass over the bytes, no copy."""
    for tensor in tensors:
        if not tensor.nbytes:
            continue
        if tensor.dtype in _FLOATS:
            import numpy

            values = numpy.frombuffer(tensor.data, dtype=_FLOATS[tensor.dtype])
            if not numpy.isfinite(values).all():
                return False
        elif tensor.dtype is DType.BF16:
            import numpy

            bits = numpy.frombuffer(tensor.data, dtype="<u2")
            # All exponent bits set is NaN or infinity.
            if ((bits & _BF16_EXPONENT) == _BF16_EXPONENT).any():
                return False
    return True
