"""Reads what build workers pack: a head of JSON that says kind, signature and more, then the bytes
of the library's own format. The writer is `controller.optimize.packed`.

Refuses containers that are not whole, of another kind, or that say more than they hold. In the
syntax of Python 3.8.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

MAGIC = b"LMPACK1\n"
MAX_HEAD_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_DTYPES = frozenset(
    [
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "FP32",
        "FP64",
        "BF16",
    ]
)

Spec = Tuple[str, str, Tuple[Any, ...]]  # name, datatype of the protocol, axes


class PackError(ValueError):
    """The file is no such container; the text says what is wrong."""


@dataclass(frozen=True)
class Packed:
    """What a container holds; `about` is the library's own, texts and numbers."""

    inputs: List[Spec]  # noqa: UP006 - evaluated by dataclasses
    outputs: List[Spec]  # noqa: UP006
    about: Dict[str, Any]  # noqa: UP006
    payload: bytes


def unpack(path: str, kind: str) -> Packed:
    """Read a container of this kind. PackError, OSError."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise PackError("it is no container of a build worker's")
        (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
        if length > MAX_HEAD_BYTES:
            raise PackError(f"its head has {length} bytes")
        try:
            head = json.loads(_exactly(file, length).decode("utf-8"))
            if head["kind"] != kind:
                raise PackError(f"it is a build for {head['kind']!r}, not {kind!r}")
            size = int(head["bytes"])
            found = Packed(
                [_spec(item) for item in head["inputs"]],
                [_spec(item) for item in head["outputs"]],
                dict(head["about"]),
                file.read(),
            )
        except PackError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PackError(f"its head is damaged ({type(error).__name__})") from None
    if len(found.payload) != size or not size:
        raise PackError(f"it holds {len(found.payload)} bytes of {size}")
    return found


def _exactly(file: Any, count: int) -> bytes:
    data: bytes = file.read(count)
    if len(data) != count:
        raise PackError("it is cut off")
    return data


def _spec(item: Any) -> Spec:
    name, dtype, axes = item
    if not isinstance(name, str) or dtype not in _DTYPES or not isinstance(axes, list):
        raise PackError(f"it names a tensor {item!r}")
    for axis in axes:
        if isinstance(axis, bool) or not isinstance(axis, (int, str)):
            raise PackError(f"{name} has the axis {axis!r}")
    return name, dtype, tuple(axes)
