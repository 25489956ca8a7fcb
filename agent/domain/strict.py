"""JSON as manifests have it, read strictly: every value by its place. Knows no manifest.

ManifestError names the place of the first thing that is wrong.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from agent.domain.desired import JsonValue
from agent.errors import ManifestError

MAX_MANIFEST_BYTES = 8 * 1024 * 1024

T = TypeVar("T")
Object = dict[str, JsonValue]

# Names become parts of file names and topics: no separators, no leading dot.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def load(data: bytes) -> JsonValue:
    """JSON of UTF-8 without double keys, NaN or infinity."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES}")
    try:
        value: JsonValue = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest is not JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is no number")


def get(body: Object, key: str, where: str) -> JsonValue:
    """What stands under a key that has to be there."""
    if key not in body:
        raise ManifestError(f"{where}.{key} is missing")
    return body[key]


def as_object(value: JsonValue, where: str) -> Object:
    """An object."""
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is not an object")
    return value


def as_list(body: Object, key: str, where: str) -> list[JsonValue]:
    """A list under a key."""
    value = get(body, key, where)
    if not isinstance(value, list):
        raise ManifestError(f"{where}.{key} is not a list")
    return value


def text(body: Object, key: str, where: str) -> str:
    """Text that is not empty under a key."""
    value = get(body, key, where)
    if not isinstance(value, str) or not value:
        raise ManifestError(f"{where}.{key} is not text")
    return value


def text_or_none(body: Object, key: str, where: str) -> str | None:
    """Text under a key; None for null and nothing."""
    return None if get(body, key, where) in (None, "") else text(body, key, where)


def texts(body: Object, key: str, where: str) -> tuple[str, ...]:
    """A list of texts under a key."""
    found = []
    for item in as_list(body, key, where):
        if not isinstance(item, str):
            raise ManifestError(f"{where}.{key} holds something that is not text")
        found.append(item)
    return tuple(found)


def name(body: Object, key: str, where: str) -> str:
    """A name that may become part of a path."""
    value = text(body, key, where)
    if not _NAME.fullmatch(value):
        raise ManifestError(f"{where}.{key} {value!r} is not a name")
    return value


def whole(body: Object, key: str, where: str, least: int = 0) -> int:
    """A whole number of at least `least` under a key."""
    value = get(body, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
        raise ManifestError(f"{where}.{key} is {value!r}, a whole number from {least} is needed")
    return value


def number(body: Object, key: str, where: str) -> float:
    """A number from 0 under a key."""
    value = get(body, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ManifestError(f"{where}.{key} is {value!r}, a number from 0 is needed")
    return float(value)


def positive(body: Object, key: str, where: str) -> float:
    """A number above 0 under a key."""
    value = number(body, key, where)
    if value == 0:
        raise ManifestError(f"{where}.{key} is 0, it has to be above")
    return value


def as_enum(kind: Callable[[str], T], said: str, where: str) -> T:
    """One of the values of an enumeration."""
    try:
        return kind(said)
    except ValueError:
        raise ManifestError(f"{where} {said!r} is unknown") from None


def moment(body: Object, key: str, where: str) -> datetime:
    """An aware time under a key."""
    said = text(body, key, where)
    try:
        value = datetime.fromisoformat(said)
    except ValueError:
        raise ManifestError(f"{where}.{key} {said!r} is not a time") from None
    if value.tzinfo is None:
        raise ManifestError(f"{where}.{key} {said!r} has no time zone")
    return value
