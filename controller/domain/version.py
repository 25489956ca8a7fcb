"""Precedence of versions: which of two is the newer one.

Semantic versioning 2.0, made total: any text that is a version has a place. Missing numbers are 0
(``1.3`` is ``1.3.0``), a leading ``v`` before a digit and everything after ``+`` say nothing.
"""

Precedence = tuple[tuple[tuple[int, int, str], ...], int, tuple[tuple[int, int, str], ...]]

_ZERO = (0, 0, "")


def precedence(version: str) -> Precedence:
    """A key that sorts versions, the newest last; equal keys have equal precedence.

    A pre-release stands before its release. Within a part numbers compare as numbers and stand
    before words, which compare as text; a longer pre-release stands after its own beginning.
    """
    text = version.partition("+")[0]
    if text[:1] in ("v", "V") and _is_number(text[1:2]):
        text = text[1:]
    core, dash, before = text.partition("-")
    numbers = [_part(part) for part in core.split(".")]
    while len(numbers) > 1 and numbers[-1] == _ZERO:
        numbers.pop()
    return (
        tuple(numbers),
        0 if dash else 1,
        tuple(_part(part) for part in before.split(".")) if dash else (),
    )


def _part(text: str) -> tuple[int, int, str]:
    # int() refuses thousands of digits; a number of that length is compared as text.
    if _is_number(text) and len(text) <= 64:
        return (0, int(text), "")
    return (1, 0, text) if text else _ZERO


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
