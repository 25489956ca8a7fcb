"""Every error that the page quotes is one that the sources can still print."""

import ast
import functools
import re

import pytest

from tests.support.sources import PRODUCT, ROOT, python_files, tree

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
LEAD = re.compile(
    r"^(?:error: |note: |why +|(?:problem|note|ok) +[a-z]+ {2,}|problem +"
    r"|[\d-]* ?[\d:,]{8,12} (?:INFO|WARNING|ERROR) +(?:lighterman\.\w+ +)?"
    r"|[a-z0-9-]+  (?:heavy|light)  [a-z0-9-]+: )"
)
QUOTED = [line for block in BLOCKS for line in block.splitlines() if LEAD.match(line)]
LEAST = 7  # letters of its own that a text needs to say anything


def pattern(node: ast.JoinedStr | ast.Constant) -> str | None:
    """The text of a literal as a pattern: what is filled in may be anything."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
    if sum(len(re.sub(r"\W", "", text)) for text in texts) < LEAST:
        return None
    made = [
        re.escape(p.value)
        if isinstance(p, ast.Constant) and isinstance(p.value, str)
        else "(?:.+?)"
        for p in parts
    ]
    return re.sub(r"%[^a-z ]*[sdf]", "(?:.+?)", "".join(made))  # log lines fill in by percent


@functools.cache
def texts() -> tuple[tuple[re.Pattern[str], int], ...]:
    """Every text of the product as a pattern, and how many letters of its own it has."""
    found: dict[str, int] = {}
    for path in python_files(*PRODUCT):
        nodes = list(ast.walk(tree(path)))
        inner = {id(p) for n in nodes if isinstance(n, ast.JoinedStr) for p in n.values}
        for node in nodes:
            if not isinstance(node, ast.JoinedStr | ast.Constant) or id(node) in inner:
                continue
            made = pattern(node)
            if made is not None and len(made) < 400:
                found[made] = len(re.sub(r"\W", "", made.replace("(?:.+?)", "")))
    return tuple((re.compile(one), letters) for one, letters in sorted(found.items()))


WHOLE = 20  # a text with so many letters may stand in the middle of a line


def known(line: str) -> bool:
    """Whether one text of the sources covers the line from its lead on, or to its end."""
    said = LEAD.sub("", line, count=1).strip()
    for one, letters in texts():
        match = one.search(said)
        if match is None:
            continue
        filled = "(?:.+?)" in one.pattern
        if letters >= WHOLE or match.group() == said:
            return True
        if filled and (match.start() == 0 or match.end() == len(said)):
            return True
    return False


@pytest.mark.parametrize("line", QUOTED)
def test_the_sources_print_it(line: str) -> None:
    assert known(line), f"no text of the sources prints {line!r}"


def test_the_page_quotes_enough() -> None:
    assert len(QUOTED) >= 30


@pytest.mark.parametrize(
    "line",
    [
        "error: enrolment token t-fvvx5r was eaten (1 of 1)",
        "problem  certificate  went away 2026-12-24",
        "error: the disk is on fire",
    ],
)
def test_an_error_that_nothing_prints_is_found(line: str) -> None:
    assert not known(line)
