"""Selectors: grammar, what they pick, and the stable order of a rollout."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.selection import (
    Subject,
    in_order,
    matches,
)
from controller.domain.selector import parse_filter, parse_selector
from controller.errors import InvalidError

PI = Subject("pi-1", "raspberry-pi-5", "aarch64", {"site": "berlin", "lab": ""})


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        ("all", True),
        ("site=berlin", True),
        ("site=paris", False),
        ("site!=paris", True),
        ("floor!=2", True),
        ("lab", True),
        ("!lab", False),
        ("floor", False),
        ("!floor", True),
        ("profile=raspberry-pi-5", True),
        ("profile", True),
        ("arch=x86_64", False),
        ("device=pi-1", True),
        ("device!=pi-1", False),
        ("site=berlin,arch=aarch64", True),
        ("site=berlin,arch=x86_64", False),
        ("site=", False),
        ("lab=", True),
        (" site=berlin , lab ", True),
    ],
)
def test_what_it_picks(text: str, picked: bool) -> None:
    assert matches(parse_selector(text), PI) is picked


@pytest.mark.parametrize("text", ["", "  ", ",", "=x", "!a=b", "a=b=c", "a,,b"])
def test_grammar(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_selector(text)


def test_an_empty_filter_of_a_list_means_all() -> None:
    assert str(parse_filter("")) == "all"
    assert str(parse_filter(" a=b , !c ")) == "a=b,!c"


@given(st.sets(st.text("abc123-", min_size=1), max_size=30), st.text())
def test_the_order_is_stable_and_of_the_rollout(ids: set[str], seed: str) -> None:
    order = in_order(seed, ids)
    assert order == in_order(seed, sorted(ids, reverse=True))
    assert set(order) == ids
    smaller = in_order(seed, list(ids)[1:])
    positions = {device_id: n for n, device_id in enumerate(order)}
    assert all(positions[a] < positions[b] for a, b in pairwise(smaller))


def test_different_rollouts_have_different_canaries() -> None:
    ids = [f"pi-{n}" for n in range(20)]
    assert len({in_order(f"r-{n}", ids)[0] for n in range(50)}) > 5
