"""How figures stand in reasons: counts with their noun, times that never round to nothing."""

from collections.abc import Iterable


def count_of(count: int, noun: str) -> str:
    """``1 inference``, ``1,200 inferences``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def ms(seconds: float | None) -> str:
    """Milliseconds with their unit: ``131 ms``, ``4.2 ms``, ``0.041 ms``; unknown is a dash."""
    return "–" if seconds is None else f"{_figure(seconds * 1000)} ms"


def times_ms(seconds: Iterable[float]) -> str:
    """Service times as bare milliseconds: ``131 118 0.041``."""
    return " ".join(_figure(one * 1000) for one in seconds)


def span(seconds: float) -> str:
    """How long something held: whole seconds, below one with two digits (``0.25 s``)."""
    return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"


def _figure(value: float) -> str:
    """Three significant digits, and never less than the whole number."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
