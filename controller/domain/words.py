"""How figures stand in reasons: counts with their noun, milliseconds that never round to 0."""


def count_of(count: int, noun: str) -> str:
    """``1 device``, ``3 devices``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def ms(value_ms: float) -> str:
    """Milliseconds: three significant digits, whole from 100 on (``38.4``, ``0.041``)."""
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.3g}"
