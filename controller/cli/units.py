"""Durations, sizes, times and counts: as people type them and as tables show them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import click
from google.protobuf.timestamp_pb2 import Timestamp

UNKNOWN = "–"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """``30s``, ``5m``, ``1h30m`` as seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds, or a usage error that shows the form."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            self.fail(f"{text!r} is no duration; write 30s, 5m, 2h or 1h30m", param, ctx)
        return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


DURATION = Duration()


class KeyValue(click.ParamType[tuple[str, str]]):
    """``name=value``."""

    name = "name=value"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The pair, or a usage error."""
        if isinstance(value, tuple):
            return value
        name, sign, rest = str(value).partition("=")
        if not sign or not name or not rest:
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        return name, rest


KEY_VALUE = KeyValue()


def size(count: int) -> str:
    """Bytes as ``24.5 MB`` (decimal units)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return UNKNOWN


def duration(seconds: float) -> str:
    """Seconds as ``0.2 s``, ``35 s``, ``12 min``, ``3 h 10 min``, ``4 d``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h {minutes} min"


def clock(seconds: float) -> str:
    """Elapsed time as ``00:21:07``."""
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def instant(stamp: Timestamp) -> datetime | None:
    """A wire time as aware UTC, or None where it was never set."""
    if stamp.seconds == 0 and stamp.nanos == 0:
        return None
    return stamp.ToDatetime(tzinfo=UTC)


def local(stamp: Timestamp, with_date: bool = True) -> str:
    """A wire time in the reader's zone."""
    when = instant(stamp)
    if when is None:
        return UNKNOWN
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S" if with_date else "%H:%M:%S")


def localise(text: str, now: datetime) -> str:
    """Every ISO time with zone in a sentence as local time; of today without the date."""

    def there(found: re.Match[str]) -> str:
        when = datetime.fromisoformat(found[0]).astimezone()
        today = when.date() == now.astimezone().date()
        return when.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")

    return _INSTANT.sub(there, text)


def ago(stamp: Timestamp, now: datetime) -> str:
    """``3 s ago`` or a dash."""
    when = instant(stamp)
    if when is None:
        return UNKNOWN
    return f"{duration(max(0.0, (now - when).total_seconds()))} ago"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, without the unit."""
    return ms(seconds * 1000)


def count_of(count: int, noun: str) -> str:
    """``1 device``, ``3 devices``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def ms(value_ms: float, digits: int = 2) -> str:
    """Milliseconds with so many significant digits, never less than whole: ``131``, ``0.041``."""
    whole = value_ms >= 10 ** (digits - 1) - 0.5 / 10
    return f"{value_ms:.0f}" if whole else f"{value_ms:.{digits}g}"


def in_order(pairs: dict[str, int], order: Sequence[str]) -> dict[str, int]:
    """The pairs in this order, what it does not name behind it by name: maps travel unordered."""
    known = [name for name in order if name in pairs]
    return {name: pairs[name] for name in (*known, *sorted(pairs.keys() - set(order)))}


def signed(value: float) -> str:
    """``+0.3``, ``−1.5``, ``±0.0``."""
    text = f"{abs(value):.1f}"
    sign = "±" if text == "0.0" else "+" if value > 0 else "−"
    return sign + text


def counts(pairs: dict[str, int]) -> str:
    """``committed 7  probation 7`` in the order given, zeros left out."""
    return "  ".join(f"{name.lower()} {count}" for name, count in pairs.items() if count)
