"""Every line that the page quotes is one that the sources can still print, hints too."""

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
COUNTED = re.compile(r" +\d+ devices: [a-z0-9-]+ \(\d+\)")  # names and numbers alone
QUOTED = [
    line
    for block in BLOCKS
    for line in block.splitlines()
    if line.strip() and not COUNTED.match(line)
]
LEAST = 6  # letters of its own that a text needs to say anything
FILLED = "\0"  # what a text leaves to be filled in
# What the page says in passing: between backticks, with spaces, and nothing that people type.
TYPED = re.compile(
    r"fleetctl |lighterman-|--|systemctl |journalctl |kill |date |pip |rungs: |log = |python "
)
PROSE = re.sub(r"```\n.*?```", "", PAGE, flags=re.DOTALL)
SPOKEN = [
    span for span in re.findall(r"`([^`\n]+)`", PROSE) if " " in span and not TYPED.match(span)
]


def literal(node: ast.JoinedStr | ast.Constant) -> str:
    """The text of a literal, with a mark for each value that is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(
        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else FILLED
        for part in parts
    )
    return re.sub(r"%[^a-z ]*[sdf]", FILLED, text)  # log lines fill in by percent


@functools.cache
def literals() -> frozenset[str]:
    """Every text of the product, line by line."""
    found: set[str] = set()
    for path in python_files(*PRODUCT):
        nodes = list(ast.walk(tree(path)))
        inner = {id(p) for n in nodes if isinstance(n, ast.JoinedStr) for p in n.values}
        for node in nodes:
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner:
                found.update(line.strip() for line in literal(node).split("\n"))
    return frozenset(one for one in found if len(one) < 300 and own_letters(one) >= LEAST)


def own_letters(text: str) -> int:
    return len(re.sub(r"\W", "", text))


@functools.cache
def texts() -> tuple[tuple[re.Pattern[str], int], ...]:
    """Every line as a pattern, and how many letters of its own it has."""
    return tuple(
        (re.compile(re.escape(one).replace(re.escape(FILLED), "(?:.+?)")), own_letters(one))
        for one in sorted(literals())
    )


WHOLE = 20  # a text with so many letters may stand in the middle of a line


def known(line: str) -> bool:
    """Whether one text of the sources covers the line from its lead on, or to its end."""
    said = LEAD.sub("", line, count=1).strip()
    for one, letters in texts():
        match = one.search(said)
        if match is None:
            continue
        filled = "(?:.+?)" in one.pattern
        if match.group() == said or (letters >= WHOLE and 2 * letters >= own_letters(said)):
            return True
        if filled and (match.start() == 0 or match.end() == len(said)):
            return True
    return False


def said(text: str) -> bool:
    """Whether a text of the sources holds these words; … may be anything."""
    wanted = re.compile(".*".join(re.escape(part) for part in text.split("…")))
    return any(wanted.search(one) for one in literals())


@pytest.mark.parametrize("text", SPOKEN)
def test_the_sources_say_it_in_passing(text: str) -> None:
    assert said(text), f"no text of the sources says {text!r}"


@pytest.mark.parametrize("line", QUOTED)
def test_the_sources_print_it(line: str) -> None:
    assert known(line), f"no text of the sources prints {line!r}"


def test_the_page_quotes_enough() -> None:
    assert len(QUOTED) >= 60
    assert len(SPOKEN) >= 6
    assert not said("the controller's disk is on fire")


@pytest.mark.parametrize(
    "line",
    [
        "error: enrolment token t-fvvx5r was eaten (1 of 1)",
        "problem  certificate  went away 2026-12-24",
        "error: the disk is on fire",
        "  put the fire out, and that `lighterman-controller serve` burns there",
    ],
)
def test_an_error_that_nothing_prints_is_found(line: str) -> None:
    assert not known(line)
