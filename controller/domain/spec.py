"""Reads the ``spec`` of documented objects: JSON, sizes, numbers, lists.

Fails closed; knows no object's meaning.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from controller.errors import InvalidError

SIZE_MOST = 2**60
WHOLE_MOST = 2**53
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_FACTORS: dict[str, int] = {"b": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def read_json(text: str, what: str, *, odd: Callable[[str], Any] | None = None) -> Any:
    """Any JSON. InvalidError for what is none, and for numbers that are none (NaN, 1e999).

    ``odd`` makes such a number into something else instead.
    """

    def refuse(found: str) -> Any:
        raise ValueError(f"{found} is no number")

    strange = odd or refuse

    def number(found: str) -> Any:
        value = float(found)
        return value if math.isfinite(value) else strange(found)

    try:
        return json.loads(text, parse_constant=strange, parse_float=number)
    except ValueError as error:
        raise InvalidError(f"{what} is no JSON: {error}") from error
    except RecursionError:
        raise InvalidError(f"{what} is nested too deeply to be read") from None


def parse_size(value: object, where: str) -> int:
    """Bytes of ``512MiB``, ``1.5GB`` or a plain number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SIZE_MOST:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidError(f"{where} is {value!r}, a size is needed", "for example 512MiB")
    factor: int = _FACTORS[(match[2] or "B").lower()]
    size = float(match[1]) * factor
    if size >= SIZE_MOST:
        raise InvalidError(f"{where} is {value!r}, which no machine has", "for example 512MiB")
    return round(size)


@dataclass(frozen=True, slots=True)
class Spec:
    """A mapping and its place, for messages: ``Profile pi: spec.match``."""

    body: Mapping[str, object]
    where: str

    def only(self, *known: str) -> "Spec":
        """Refuse keys that nobody reads: a typo must not be silently the default."""
        unknown = sorted(set(self.body) - set(known), key=str)
        if unknown:
            close = [near for key in unknown for near in get_close_matches(str(key), known, n=1)]
            raise InvalidError(
                f"{self.where} has unknown keys: {', '.join(map(str, unknown))}",
                *([f"did you mean {' or '.join(dict.fromkeys(close))} ?"] if close else []),
                f"known are {', '.join(known)}",
            )
        return self

    def sub(self, key: str) -> "Spec":
        """The mapping under ``key``; empty where it is absent."""
        value = self.body.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise InvalidError(f"{self.where}.{key} is not a mapping")
        return Spec(value, f"{self.where}.{key}")

    def text(self, key: str, default: str | None = None) -> str:
        """Text under ``key``."""
        value = self.body.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (not value and default is None):
            raise InvalidError(f"{self.where}.{key} is {value!r}, text is needed")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false under ``key``."""
        value = self.body.get(key, default)
        if not isinstance(value, bool):
            raise InvalidError(f"{self.where}.{key} is {value!r}, true or false is needed")
        return value

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """A number of at least ``least`` under ``key``."""
        value = self.body.get(key, default)
        bad = isinstance(value, bool) or not isinstance(value, int | float)
        if bad or not least <= value < 1e12:  # type: ignore[operator]
            raise InvalidError(
                f"{self.where}.{key} is {value!r}, a number from {least:g} is needed"
            )
        return float(value)  # type: ignore[arg-type]

    def optional(self, key: str) -> float | None:
        """A number under ``key``, or None where it is absent or null."""
        return None if self.body.get(key) is None else self.number(key)

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        """A whole number of at least ``least`` under ``key``."""
        value = self.body.get(key, default)
        bad = isinstance(value, bool) or not isinstance(value, int)
        if bad or not least <= value < WHOLE_MOST:  # type: ignore[operator]
            raise InvalidError(
                f"{self.where}.{key} is {value!r}, a whole number from {least} is needed"
            )
        return int(value)  # type: ignore[call-overload, no-any-return]

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts under ``key``."""
        value = self.body.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
            raise InvalidError(f"{self.where}.{key} is {value!r}, a list of texts is needed")
        return tuple(value)
