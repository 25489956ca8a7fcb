"""Tensors as arrays of numpy and back, for runtimes that speak numpy. Copies nothing but texts.

numpy is imported at the first call: agents start without it. Refuses element types that have no
buffer form.
"""

from collections.abc import Mapping
from typing import Any

from agent.domain.tensor import DType, Tensor, bytes_of, texts_of
from agent.errors import LoadError

_NUMPY = {
    DType.BOOL: "?",
    DType.UINT8: "u1",
    DType.UINT16: "<u2",
    DType.UINT32: "<u4",
    DType.UINT64: "<u8",
    DType.INT8: "i1",
    DType.INT16: "<i2",
    DType.INT32: "<i4",
    DType.INT64: "<i8",
    DType.FP16: "<f2",
    DType.FP32: "<f4",
    DType.FP64: "<f8",
}
# numpy has no bfloat16: it travels as its bits.
_BITS = {**_NUMPY, DType.BF16: "<u2"}


def numpy_type(dtype: DType) -> str:
    """What numpy calls the type. LoadError where it has none."""
    found = _NUMPY.get(dtype)
    if found is None:
        raise LoadError(f"{dtype} has no buffer form here")
    return found


def arrays_of(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Inputs by name, read in place: views of the request's buffers, often read-only."""
    import numpy

    return {
        name: numpy.frombuffer(tensor.data, dtype=_BITS[tensor.dtype]).reshape(tensor.shape)
        if tensor.dtype is not DType.BYTES
        else numpy.array(texts_of(tensor.data), dtype=object).reshape(tensor.shape)
        for name, tensor in inputs.items()
    }


def tensor_of(name: str, dtype: DType, array: Any) -> Tensor:
    """One output; a view of the array's memory."""
    import numpy

    if dtype is DType.BYTES:
        return Tensor(name, dtype, tuple(array.shape), bytes_of(map(str, array.flat)))
    array = numpy.ascontiguousarray(array)
    # An empty array cannot be cast by memoryview.
    data = memoryview(array).cast("B") if array.size else b""
    return Tensor(name, dtype, tuple(array.shape), data)
