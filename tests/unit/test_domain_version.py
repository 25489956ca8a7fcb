"""Precedence of versions: the order of semantic versioning, made total."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.version import precedence

# Each older than the next; the first row of words is the example of semver.org.
CHAIN = [
    "0.9",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2",
    "1.10",
    "2.0.0-rc.1",
    "v2",
    "2024-11",
    "2024",
    "stable",
]


def test_the_chain() -> None:
    for older, newer in combinations(CHAIN, 2):
        assert precedence(older) < precedence(newer), (older, newer)


@pytest.mark.parametrize(
    ("one", "other"), [("1.3", "1.3.0"), ("1", "v1.0"), ("1.0+a", "1.0+b"), ("01.2", "1.2")]
)
def test_what_is_equal(one: str, other: str) -> None:
    assert precedence(one) == precedence(other)


@given(st.lists(st.text("01v.-+ab²", max_size=8) | st.text(), min_size=3, max_size=3))
def test_any_texts_have_an_order(texts: list[str]) -> None:
    first, second, third = sorted(texts, key=precedence)
    assert precedence(first) <= precedence(third)
    both = precedence(second) <= precedence(third), precedence(third) <= precedence(second)
    assert any(both)
