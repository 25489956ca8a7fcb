"""Numbers and texts of JSON to buffers of tensors and back. numpy stays out: agents start without.

Refuses what does not fit the element type; NaN and infinities, which JSON has no word for, are read
as Python and JavaScript write them and given as null.
"""

import math
import struct
from array import array
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, Literal

from agent.domain.tensor import Buffer, DType, Tensor, bytes_of, show_shape, texts_of
from agent.errors import RequestError

Code = Literal["b", "B", "h", "H", "i", "I", "q", "Q", "f", "d"]
# Type codes of array and memoryview; the wire's byte order is that of every platform we run on.
_CODES: dict[DType, Code] = {
    DType.BOOL: "B",
    DType.INT8: "b",
    DType.INT16: "h",
    DType.INT32: "i",
    DType.INT64: "q",
    DType.UINT8: "B",
    DType.UINT16: "H",
    DType.UINT32: "I",
    DType.UINT64: "Q",
    DType.FP32: "f",
    DType.FP64: "d",
}
_FLOATS = frozenset({DType.FP16, DType.BF16, DType.FP32, DType.FP64})


def pack(name: str, dtype: DType, shape: Sequence[int], data: Any) -> Buffer:
    """The elements of a JSON list, flat or nested like the shape, as bytes. RequestError."""
    values = _flat(name, shape, data)
    if len(values) != prod(shape):
        raise RequestError(
            f"input {name!r} has {len(values)} values, {show_shape(shape)} needs {prod(shape)}"
        )
    try:
        return _pack(dtype, values)
    except (OverflowError, TypeError, ValueError, struct.error) as error:
        raise RequestError(f"input {name!r} does not fit into {dtype}: {error}") from None


def unpack(tensor: Tensor) -> list[Any]:
    """The elements in row-major order, as JSON has them."""
    data = memoryview(tensor.data).cast("B")
    match tensor.dtype:
        case DType.BYTES:
            return list(texts_of(data))
        case DType.BOOL:
            return [bool(value) for value in data]
        case DType.FP16:
            values: list[Any] = list(struct.unpack(f"<{len(data) // 2}e", data))
        case DType.BF16:
            wide = array("I", (bits << 16 for bits in data.cast("H")))
            values = memoryview(wide).cast("B").cast("f").tolist()
        case _:
            values = _listed(data, _CODES[tensor.dtype])
    if tensor.dtype in _FLOATS and not all(map(math.isfinite, values)):
        return [value if math.isfinite(value) else None for value in values]
    return values


def _listed(data: memoryview, code: Code) -> list[Any]:
    values = array(code)
    values.frombytes(data)
    return values.tolist()


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise RequestError(f"input {name!r}: data is no list")
    sizes = [len(data)]
    while data and type(data[0]) is list:
        if len(sizes) > len(shape) or any(type(row) is not list for row in data):
            raise RequestError(f"input {name!r}: data is nested unlike {show_shape(shape)}")
        lengths = set(map(len, data))
        if len(lengths) > 1:
            raise RequestError(f"input {name!r}: rows of data differ in length")
        sizes.append(lengths.pop())
        data = list(chain.from_iterable(data))
    if len(sizes) > 1 and sizes != list(shape):
        raise RequestError(
            f"input {name!r}: data is nested as {show_shape(sizes)}, its shape is"
            f" {show_shape(shape)}"
        )
    found: list[Any] = data
    return found


def _pack(dtype: DType, values: list[Any]) -> Buffer:
    match dtype:
        case DType.BOOL:
            if any(value is not True and value is not False for value in values):
                raise TypeError("a value is neither true nor false")
            return bytes(values)
        case DType.BYTES:
            if any(type(value) is not str for value in values):
                raise TypeError("a value is no text")
            return bytes_of(values)
        case DType.FP16:
            return struct.pack(f"<{len(values)}e", *values)
        case DType.BF16:
            return array("H", map(_bf16, array("f", values))).tobytes()
        case _:
            return array(_CODES[dtype], values).tobytes()


def _bf16(value: float) -> int:
    """The upper half of a float32, rounded to nearest even; NaN stays one."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    if value != value:
        return int(bits >> 16) | 0x40
    return int((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
