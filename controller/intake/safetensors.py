"""Weights in the safetensors format: a header of JSON and plain tensors behind it. No library.

Refuses headers that claim other bytes than there are, tensors that overlap or leave gaps, and types
that PyTorch's networks do not have.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from controller.errors import InvalidError

MAX_HEADER_BYTES = 16 * 1024**2
MAX_TENSORS = 100_000
_LENGTH_BYTES = 8
# Name in the file, name in PyTorch, bytes.
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: ``begin`` and ``end`` are places in the file, in bytes."""

    name: str
    dtype: str  # PyTorch's name
    shape: tuple[int, ...]
    begin: int
    end: int


def looks_like_safetensors(head: bytes, length: int) -> bool:
    """By the first nine bytes: the length of a header that fits, and its first bracket."""
    told = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and told + _LENGTH_BYTES <= length


def parse_safetensors(path: Path, cap_bytes: int, what: str) -> tuple[StoredTensor, ...]:
    """The tensors of a file, in its order. Raises InvalidError that begins with ``what``."""
    length = path.stat().st_size
    if length > cap_bytes:
        raise InvalidError(f"{what} is {length} bytes long", f"at most {cap_bytes} are allowed")
    with path.open("rb") as stream:
        told = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if not 0 < told <= min(MAX_HEADER_BYTES, length - _LENGTH_BYTES):
            raise InvalidError(f"{what} has a header of {told} bytes, which is not in it")
        data = stream.read(told)
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} has a header that is no JSON: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise InvalidError(f"{what} has a header that lists no tensors, or too many")
    start = _LENGTH_BYTES + told
    found = [_tensor(name, one, start, what) for name, one in header.items() if name[:2] != "__"]
    _check_layout(found, start, length, what)
    return tuple(found)


def _tensor(name: str, item: object, start: int, what: str) -> StoredTensor:
    where = f"{what}: {name[:80]!r}"
    if not isinstance(item, dict) or not name.isprintable() or len(name) > 500:
        raise InvalidError(f"{where} is no tensor")
    kind, shape, offsets = (item.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in DTYPES:
        raise InvalidError(f"{where} has the type {str(kind)[:20]}", f"known: {', '.join(DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:  # type: ignore[arg-type]
        raise InvalidError(f"{where} has no shape or no place")
    dtype, width = DTYPES[kind]
    begin, end = offsets  # type: ignore[misc]
    if end - begin != math.prod(shape) * width:  # type: ignore[arg-type]
        raise InvalidError(f"{where} claims the shape {shape} and carries {end - begin} bytes")
    return StoredTensor(name, dtype, tuple(shape), start + begin, start + end)  # type: ignore[arg-type]


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**48 for one in value
    )


def _check_layout(found: list[StoredTensor], start: int, length: int, what: str) -> None:
    """Each byte belongs to one tensor, as the format demands."""
    at = start
    for one in sorted(found, key=lambda tensor: (tensor.begin, tensor.end)):
        if one.begin != at:
            raise InvalidError(f"{what}: {one.name[:80]!r} overlaps another, or leaves a gap")
        at = one.end
    if at != length or not found:
        raise InvalidError(f"{what} holds {length - start} bytes of tensors, its header {at}")
