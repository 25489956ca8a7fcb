"""Writes and reads what ships for runtimes whose own format says no names: a head of JSON with
kind, signature and more, then the bytes. The reader on devices is `agent.runtime.packed`.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.domain.model import Signature
from controller.errors import InvalidError

MAGIC = b"LMPACK1\n"
_LENGTH = struct.Struct("<I")


def pack(kind: str, signature: Signature, about: Mapping[str, Any], payload: bytes) -> bytes:
    """A container; the same content gives the same bytes."""
    sides = {"inputs": signature.inputs, "outputs": signature.outputs}
    head = {
        "kind": kind,
        **{
            side: [[s.name, s.dtype, list(s.shape)] for s in specs] for side, specs in sides.items()
        },
        "about": dict(about),
        "bytes": len(payload),
    }
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    return MAGIC + _LENGTH.pack(len(text)) + text + payload


def unpack(path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    """``about`` and the payload. InvalidError for what this project did not write."""
    data = path.read_bytes()
    try:
        if not data.startswith(MAGIC):
            raise ValueError("it has no head")
        (length,) = _LENGTH.unpack_from(data, len(MAGIC))
        begin = len(MAGIC) + _LENGTH.size
        head = json.loads(data[begin : begin + length])
        payload = data[begin + length :]
        if head["kind"] != kind or head["bytes"] != len(payload):
            raise ValueError("it is of another kind, or cut off")
        return dict(head["about"]), payload
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise InvalidError(f"{path.name} is no build for {kind}: {error}") from error
