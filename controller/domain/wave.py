"""Waves: how many devices may be exposed when.

Refuses a first wave above one percent without a reason.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from controller.domain.words import count_of
from controller.errors import InvalidError, RefusedError

_ENTRY = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(%?)")
DEFAULT_WAVES = ("1", "10%", "50%", "100%")


@dataclass(frozen=True, slots=True)
class Wave:
    """One wave; ``cumulative`` is the cap of exposure while it is the newest open one."""

    number: int
    entry: str
    devices: int
    cumulative: int


@dataclass(frozen=True, slots=True)
class Waves:
    """The waves of a rollout and what was made of the entries."""

    waves: tuple[Wave, ...]
    notes: tuple[str, ...] = ()


def split_waves(text: str) -> tuple[str, ...]:
    """``1,10%,50%,100%`` as entries."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_waves(entries: Sequence[str], total: int, override_reason: str = "") -> Waves:
    """The waves over ``total`` devices.

    Shares are rounded up. An entry that adds no device is dropped with a note, a smaller one is
    an InvalidError, and the last has to reach every device. The first wave is at most
    max(1, 1 % rounded up): more is a RefusedError unless ``override_reason`` is given.
    """
    if total < 1:
        raise InvalidError("no device to roll out to")
    if not entries:
        raise InvalidError("no waves", "for example 1,10%,50%,100%")
    waves: list[Wave] = []
    notes: list[str] = []
    dropped: list[str] = []
    before = 0
    for entry in entries:
        cumulative, note = _cumulative(entry, total)
        notes += [note] if note else []
        if cumulative < before:
            raise InvalidError(
                f"wave {entry} of {count_of(total, 'device')} is {cumulative},"
                f" the one before is {before}",
                "each entry is the number or share exposed in all, so it cannot go down",
            )
        if cumulative == before:
            dropped.append(entry)
            continue
        waves.append(Wave(len(waves) + 1, entry, cumulative - before, cumulative))
        before = cumulative
    if before != total:
        raise InvalidError(
            f"the last wave reaches {before} of {count_of(total, 'device')}",
            "the last entry is 100%",
        )
    _check_first(waves[0], total, override_reason)
    notes += _dropped(dropped, entries[-1], total)
    return Waves(tuple(waves), tuple(notes))


def _dropped(dropped: Sequence[str], last: str, total: int) -> list[str]:
    """One note for all of them. Nobody misses the last: all devices are reached before it."""
    missed = [entry for entry in dropped if entry != last]
    of = f"of {count_of(total, 'device')}"
    match missed:
        case []:
            return []
        case [one]:
            return [f"wave {one} {of} adds none and was dropped"]
        case _:
            return [f"waves {', '.join(missed)} {of} add none and were dropped"]


def first_wave_limit(total: int) -> int:
    """The largest first wave that needs no override."""
    return max(1, math.ceil(Fraction(total, 100)))


def _cumulative(entry: str, total: int) -> tuple[int, str]:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None or (not match[2] and "." in match[1]):
        raise InvalidError(f"{entry!r} is no wave", "a number of devices or a share such as 10%")
    value = Fraction(match[1])
    if value == 0:
        raise InvalidError(f"wave {entry} exposes no device")
    if match[2]:
        if value > 100:
            raise InvalidError(f"wave {entry} is more than every device")
        return math.ceil(value * total / 100), ""
    number = int(value)
    if number > total:
        return (
            total,
            f"wave {entry} was cut to {count_of(total, 'device')}, there are no more",
        )
    return number, ""


def _check_first(first: Wave, total: int, override_reason: str) -> None:
    limit = first_wave_limit(total)
    if first.cumulative > limit and not override_reason.strip():
        raise RefusedError(
            f"the first wave is {first.cumulative} of {count_of(total, 'device')},"
            f" at most {limit} without a reason",
            f"start with {limit}, or add --override first-wave --reason TEXT; it is recorded",
        )
