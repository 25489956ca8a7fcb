"""Lines for errors about unknown names: what was meant, or what exists. Raises nothing."""

from collections.abc import Sequence
from difflib import get_close_matches

SHOWN = 8


def suggest_names(wanted: str, known: Sequence[str], nothing: str = "") -> tuple[str, ...]:
    """Lines that help somebody who typed ``wanted``; ``nothing`` is said when nothing exists."""
    if not known:
        return (nothing,) if nothing else ()
    close = get_close_matches(wanted, known, n=3, cutoff=0.6)
    if close:
        return (f"did you mean {' or '.join(close)} ?",)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return (f"known are {', '.join(sorted(known)[:SHOWN])}{more}",)


def size_text(length: int) -> str:
    """Bytes for people: ``24.5 MB``."""
    if length < 1_000_000:
        return f"{length / 1000:.1f} kB"
    return f"{length / 1_000_000:,.1f} MB"
