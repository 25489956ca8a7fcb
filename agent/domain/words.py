"""How figures stand in reasons: counts with their noun, times that never round to nothing.

And how words of others do: without anything that steers a terminal.
"""

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


def one_line(text: str) -> str:
    """What somebody else wrote, for a line of the log: no breaks, no control characters."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}"
        for one in text
    )


def in_line(text: str) -> str:
    """The same; what errors tell to do, on an indented line of its own, is joined to the rest."""
    return one_line(text.replace("\n  ", "; "))


def plain(text: str) -> str:
    """The same for the screen: breaks stay."""
    return "\n".join(one_line(line) for line in text.split("\n"))


def _figure(value: float) -> str:
    """Three significant digits, and never less than the whole number."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
