"""How figures stand in reasons: counts with their noun, milliseconds that never round to 0, times.

And how words of others do: as one line without anything that steers a terminal. Times are ISO 8601
in UTC to the second; what shows them to people turns them into local time.
"""

from collections.abc import Iterable
from datetime import UTC, datetime


def count_of(count: int, noun: str) -> str:
    """``1 device``, ``3 devices``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(at: datetime) -> str:
    """``2026-11-24T14:02:11Z``."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def times_ms(seconds: Iterable[float]) -> str:
    """Service times as milliseconds, ``131 118 0.041``."""
    return " ".join(ms(one * 1000) for one in seconds)


def ms(value_ms: float, digits: int = 3) -> str:
    """Milliseconds with so many significant digits, never less than whole (``380``, ``0.041``)."""
    whole = value_ms >= 10 ** (digits - 1)
    return f"{value_ms:.0f}" if whole else f"{value_ms:.{digits}g}"


def one_line(text: str) -> str:
    """What somebody else wrote, for a line of a log or a screen: no breaks, no control characters.

    NUL, which no database keeps, is among them.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}"
        for one in text
    )
