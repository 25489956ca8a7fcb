"""Streams that begin with a header: takes them apart. Stores nothing, bounds nothing."""

from collections.abc import Iterator
from typing import TypeVar

from controller.errors import InvalidError
from lighterman.v1 import build_pb2, device_pb2, fleet_pb2

Part = TypeVar(
    "Part", fleet_pb2.UploadRequest, build_pb2.PutBlobRequest, device_pb2.PublishEngineRequest
)


def split_upload(parts: Iterator[Part]) -> tuple[Part, Iterator[bytes]]:
    """The first message, with the header, and the bytes of all. InvalidError without a header."""
    first = next(parts, None)
    if first is None or not first.HasField("header"):
        raise InvalidError("an upload begins with its header: digest, length, name")
    return first, _data(first, parts)


def _data(first: Part, parts: Iterator[Part]) -> Iterator[bytes]:
    if first.data:
        yield first.data
    for part in parts:
        if part.HasField("header"):
            raise InvalidError("an upload has one header")
        yield part.data
