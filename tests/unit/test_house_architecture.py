"""docs/architecture.md says what the code does: its state diagrams and the files it names."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

import pytest

from controller.domain.rollout import LEGAL, PHASE_LEGAL, AssignmentState, Phase
from tests.support.sources import ROOT

S = TypeVar("S", bound=StrEnum)

PAGE = (ROOT / "docs" / "architecture.md").read_text()
ARROW = re.compile(r"^ +([A-Z_]+) --> ([A-Z_]+)$", re.MULTILINE)

# What the page says of any state in a sentence instead of drawing it.
IN_WORDS = {AssignmentState.WITHDRAWN, AssignmentState.FAILED, AssignmentState.SUPERSEDED}


def drawn(title: str) -> set[tuple[str, str]]:
    """The arrows of the diagram under the heading."""
    section = PAGE.partition(f"### {title}\n")[2].partition("\n###")[0]
    return set(ARROW.findall(section))


def arrows(table: Mapping[S, frozenset[S]], ends: set[S]) -> set[tuple[str, str]]:
    """Every legal step, without those into one of `ends`."""
    return {
        (before.value, after.value)
        for before, allowed in table.items()
        for after in allowed
        if after not in ends
    }


@pytest.mark.parametrize("known", sorted(Phase))
def test_every_phase_is_drawn(known: Phase) -> None:
    assert any(known.value in arrow for arrow in drawn("Phases of a rollout"))


def test_phases_are_drawn_as_they_are_legal() -> None:
    assert drawn("Phases of a rollout") == arrows(PHASE_LEGAL, set())


def test_assignments_are_drawn_as_they_are_legal() -> None:
    assert drawn("States of an assignment") == arrows(LEGAL, IN_WORDS)


def test_the_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:controller|agent|proto|migrations|tests|docs)/[^`]*)`", PAGE))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
