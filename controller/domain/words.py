"""How figures stand in reasons: counts with their noun, milliseconds that never round to 0."""


def count_of(count: int, noun: str) -> str:
    """``1 device``, ``3 devices``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def ms(value_ms: float, digits: int = 3) -> str:
    """Milliseconds with so many significant digits, never less than whole (``380``, ``0.041``)."""
    whole = value_ms >= 10 ** (digits - 1)
    return f"{value_ms:.0f}" if whole else f"{value_ms:.{digits}g}"
