"""Lays tables out in lines: columns as wide as their cells, wrapped at spaces, words never broken.

Knows no console and no message; `session` prints what comes out.
"""

import textwrap
from collections.abc import Iterator, Sequence

GAP = "  "

# A row of cells, or a heading that stands alone above the rows that follow.
Row = Sequence[str] | str


def layout(columns: Sequence[str], rows: Sequence[Row], width: int | None) -> list[str]:
    """Lines of the table, its head first; a column whose name starts with ``>`` is right-aligned.

    With `width` characters given, left columns are wrapped between words until the lines fit;
    a word that is wider than its column stays whole.
    """
    right = [column.startswith(">") for column in columns]
    head = [column.lstrip(">") for column in columns]
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max(len(line[n]) for line in (head, *cells)) for n in range(len(head))]
    if width is not None:
        _shrink(widths, right, (head, *cells), width)
    lines = list(_lines(head, widths, right))
    for row in rows:
        lines += [row] if isinstance(row, str) else _lines(row, widths, right)
    return lines


def _shrink(
    widths: list[int], right: Sequence[bool], rows: Sequence[Sequence[str]], width: int
) -> None:
    """Take from the widest left column first, never below its longest word."""
    least = [
        max((len(word) for row in rows for word in row[n].split()), default=0)
        for n in range(len(widths))
    ]
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while over > 0:
        able = [n for n in range(len(widths)) if not right[n] and widths[n] > least[n]]
        if not able:
            return
        widest = max(able, key=lambda n: widths[n])
        widths[widest] -= 1
        over -= 1


def _lines(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    parts = [
        textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""]
        if len(cell) > width
        else [cell]
        for cell, width in zip(row, widths, strict=True)
    ]
    for number in range(max(len(part) for part in parts)):
        line = [part[number] if number < len(part) else "" for part in parts]
        yield GAP.join(
            cell.rjust(width) if turned else cell.ljust(width)
            for cell, width, turned in zip(line, widths, right, strict=True)
        ).rstrip()
