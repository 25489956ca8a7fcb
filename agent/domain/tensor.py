"""Tensors as the Open Inference Protocol v2 names them: buffers with a type and a shape.

Refuses to look inside a buffer beyond its length, and at texts beyond theirs and their coding:
values belong to the runtimes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from agent.errors import RequestError

Buffer = bytes | bytearray | memoryview
Axis = int | str | None


class DType(StrEnum):
    """Element types. All travel as raw little-endian bytes.

    An element of BYTES is its length in four bytes and so many bytes of UTF-8.
    """

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"

    @property
    def item_bytes(self) -> int:
        """Bytes of one element; of BYTES, those of an empty one."""
        return _ITEM_BYTES[self]


_ITEM_BYTES = {
    DType.BOOL: 1,
    DType.UINT8: 1,
    DType.UINT16: 2,
    DType.UINT32: 4,
    DType.UINT64: 8,
    DType.INT8: 1,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.FP16: 2,
    DType.FP32: 4,
    DType.FP64: 8,
    DType.BF16: 2,
    DType.BYTES: 4,
}
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: an axis is a fixed size, or None or a name when it is dynamic."""

    name: str
    dtype: DType
    shape: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class AxisRange:
    """How large a dynamic axis of an input may be; `typical` is what figures were measured at."""

    name: str
    least: int
    most: int
    typical: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives; the same for every rung of its ladder.

    `axes` bounds dynamic axes; one that is not in it may have any size.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[AxisRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named buffer in row-major order, little-endian."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: Buffer

    @property
    def nbytes(self) -> int:
        """Bytes in the buffer, whatever its view's item size."""
        return self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)


def parse_dtype(text: str) -> DType:
    """The element type named `text`; RequestError names those that exist."""
    try:
        return DType(text)
    except ValueError:
        raise RequestError(
            f"datatype {text!r} is not supported", f"supported: {', '.join(DType)}"
        ) from None


def show_shape(shape: Iterable[Axis]) -> str:
    """A shape for people: `[batch,3,224,224]`, `-1` for a nameless dynamic axis."""
    return "[" + ",".join("-1" if a is None else str(a) for a in shape) + "]"


def wire_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape as the protocol's metadata gives it: dynamic axes are -1."""
    return tuple(a if isinstance(a, int) else -1 for a in spec.shape)


def texts_of(data: Buffer) -> list[str]:
    """The elements of a BYTES tensor; RequestError where lengths lie or it is no UTF-8."""
    view, at, found = memoryview(data), 0, []
    while at < len(view):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(view[at:begin], "little")
        if begin > len(view) or at > len(view):
            raise RequestError("an element of BYTES is cut off: its length says more than is there")
        try:
            found.append(str(view[begin:at], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(f"an element of BYTES is no UTF-8: {error.reason}") from None
    return found


def bytes_of(texts: Iterable[str]) -> bytes:
    """A BYTES tensor of these elements."""
    parts = (text.encode("utf-8", "surrogatepass") for text in texts)
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "little") + part for part in parts)


def is_whole(tensor: Tensor) -> bool:
    """Whether the buffer has what type and shape need."""
    count = prod(tensor.shape)
    if tensor.dtype is DType.BYTES:
        try:
            return len(texts_of(tensor.data)) == count
        except RequestError:
            return False
    return count * tensor.dtype.item_bytes == tensor.nbytes


def check_request(
    signature: Signature, inputs: Sequence[Tensor], outputs: Sequence[str] = ()
) -> None:
    """Hold a request against the signature; RequestError says which tensor and what is expected.

    Every input exactly once, type and shape fitting, as many bytes as the shape needs; a dynamic
    axis that is named has the same size wherever the name stands. `outputs` may be empty (all).
    """
    wanted = {spec.name: spec for spec in signature.inputs}
    given: set[str] = set()
    axes: dict[str, tuple[int, str]] = {}
    bounds = {one.name: one for one in signature.axes}
    for tensor in inputs:
        spec = wanted.get(tensor.name)
        if spec is None:
            raise RequestError(
                f"input {tensor.name!r} is unknown", f"inputs: {', '.join(wanted) or 'none'}"
            )
        if tensor.name in given:
            raise RequestError(f"input {tensor.name!r} is given twice")
        given.add(tensor.name)
        check_tensor(spec, tensor)
        _same_axes(spec, tensor, axes)
        if bounds:
            _within(spec, tensor, bounds)
    missing = [name for name in wanted if name not in given]
    if missing:
        raise RequestError(f"missing input: {', '.join(missing)}")
    known = {spec.name for spec in signature.outputs}
    for name in outputs:
        if name not in known:
            raise RequestError(
                f"output {name!r} is unknown",
                f"outputs: {', '.join(s.name for s in signature.outputs)}",
            )


def check_tensor(spec: TensorSpec, tensor: Tensor) -> None:
    """Hold one tensor against its spec: type, rank, sizes, bytes; RequestError when it differs."""
    where = f"input {tensor.name!r}"
    if tensor.dtype is not spec.dtype:
        raise RequestError(f"{where} is {tensor.dtype}, expected {spec.dtype}")
    fits = len(tensor.shape) == len(spec.shape) and all(
        size >= 0 and (not isinstance(axis, int) or axis == size)
        for axis, size in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise RequestError(
            f"{where} has shape {show_shape(tensor.shape)}, expected {show_shape(spec.shape)}"
        )
    if tensor.dtype is DType.BYTES:
        _check_texts(where, tensor)
        return
    need = prod(tensor.shape) * tensor.dtype.item_bytes
    if need != tensor.nbytes:
        raise RequestError(
            f"{where} has {tensor.nbytes} bytes,"
            f" {tensor.dtype} {show_shape(tensor.shape)} needs {need}"
        )


def _check_texts(where: str, tensor: Tensor) -> None:
    try:
        texts = texts_of(tensor.data)
    except RequestError as error:
        raise RequestError(f"{where}: {error.message}") from None
    if len(texts) != prod(tensor.shape):
        raise RequestError(
            f"{where} has {len(texts)} texts, BYTES {show_shape(tensor.shape)} needs"
            f" {prod(tensor.shape)}"
        )


def rows_of(signature: Signature, inputs: Mapping[str, Tensor]) -> int:
    """How many rows a request has: the first axis of the first input, where that is dynamic."""
    first = signature.inputs[0] if signature.inputs else None
    if first is None or not first.shape or isinstance(first.shape[0], int):
        return 1
    return inputs[first.name].shape[0]


def typical_shape(signature: Signature, spec: TensorSpec) -> tuple[int, ...]:
    """A shape to try a model with: one row, every other dynamic axis at its typical size."""
    typical = {one.name: one.typical for one in signature.axes}
    return tuple(
        axis if isinstance(axis, int) else typical.get(axis or "", 1) for axis in spec.shape
    )


def _within(spec: TensorSpec, tensor: Tensor, bounds: Mapping[str, AxisRange]) -> None:
    for axis, size in zip(spec.shape, tensor.shape, strict=True):
        bound = bounds.get(axis) if isinstance(axis, str) else None
        if bound is not None and not bound.least <= size <= bound.most:
            raise RequestError(
                f"input {tensor.name!r} has {size} as {axis}, expected {bound.least} to"
                f" {bound.most}"
            )


def _same_axes(spec: TensorSpec, tensor: Tensor, axes: dict[str, tuple[int, str]]) -> None:
    for axis, size in zip(spec.shape, tensor.shape, strict=True):
        if not isinstance(axis, str):
            continue
        seen, other = axes.setdefault(axis, (size, tensor.name))
        if seen != size:
            raise RequestError(
                f"axis {axis!r} is {seen} in input {other!r} but {size} in {tensor.name!r}"
            )
