"""Named groups: looked up anew, never in a circle, bounded."""

import pytest

from controller.domain.group import (
    DEEPEST,
    MOST_TERMS,
    named_groups,
    parse_group,
    parse_groups,
    resolve,
    texts_of,
)
from controller.domain.selection import Selector, Subject, matches
from controller.domain.selector import parse_selector
from controller.errors import InvalidError, NotFoundError

GROUPS = parse_groups(
    {
        "berlin": "site=berlin",
        "line-a": "@berlin,line=a",
        "rest": "!@line-a",
        "old": "detector.version<2",
    }
)
A = Subject("a", labels={"site": "berlin", "line": "a"}, versions={"detector": "1.0"})
B = Subject("b", labels={"site": "berlin", "line": "b"}, versions={"detector": "2.0"})
C = Subject("c", labels={"line": "a"})


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        ("@berlin", "ab"),
        ("@line-a", "a"),
        ("!@line-a", "bc"),
        ("@rest", "bc"),
        ("!@rest", "a"),
        ("@berlin,!@line-a", "b"),
        ("@old", "a"),
        ("@berlin,!@old", "b"),
    ],
)
def test_what_groups_pick(text: str, picked: str) -> None:
    selector = resolve(parse_selector(text), GROUPS)
    assert "".join(one.device_id for one in (A, B, C) if matches(selector, one)) == picked
    assert str(selector) == text, "looking up changes nothing in what is written"


def test_the_models_of_groups_are_asked_for_too() -> None:
    selector = resolve(parse_selector("@old,photo.version"), GROUPS)
    assert selector.models == {"detector", "photo"}


def test_model_version_is_the_rollouts_own_model() -> None:
    selector = resolve(parse_selector("model.version<2"), {}, "detector")
    assert [matches(selector, one) for one in (A, B, C)] == [True, False, False]
    unknown = resolve(parse_selector("model.version<2"), {})
    assert not any(matches(unknown, one) for one in (A, B, C))


@pytest.mark.parametrize(
    ("texts", "path"),
    [
        ({"a": "@a"}, "a → a"),
        ({"a": "x,@b", "b": "!@c", "c": "@a"}, "a → b → c → a"),
        ({"a": "@b", "b": "@c", "c": "@b"}, "b → c → b"),
    ],
)
def test_a_circle_is_refused_with_its_path(texts: dict[str, str], path: str) -> None:
    with pytest.raises(InvalidError, match=f"in a circle: {path}$"):
        resolve(parse_selector("@a"), parse_groups(texts))


def test_a_group_named_twice_is_no_circle() -> None:
    groups = parse_groups({"a": "@c,!x", "b": "@c", "c": "site"})
    assert str(resolve(parse_selector("@a,@b,@c,@c"), groups)) == "@a,@b,@c,@c"


def chain(length: int) -> dict[str, Selector]:
    """g1 names g2 names g3 … ."""
    texts = {f"g{n}": f"@g{n + 1}" for n in range(1, length)} | {f"g{length}": "site=berlin"}
    return parse_groups(texts)


def test_nesting_has_a_bottom_whatever_the_order_of_looking_up() -> None:
    deepest = resolve(parse_selector("@g1"), chain(DEEPEST))
    assert matches(deepest, A)
    for text in ("@g1", f"@g{DEEPEST},@g8,@g1"):
        with pytest.raises(InvalidError, match="over 16 deep: g1 → "):
            resolve(parse_selector(text), chain(DEEPEST + 1))


def test_what_doubles_at_each_step_is_refused() -> None:
    texts = {f"g{n}": f"@g{n + 1},!@g{n + 1}" for n in range(1, 15)} | {"g15": "site"}
    with pytest.raises(InvalidError, match=f"more than {MOST_TERMS:,} terms"):
        resolve(parse_selector("@g1"), parse_groups(texts))


def test_an_unknown_group_is_an_error() -> None:
    with pytest.raises(NotFoundError, match="no group b"):
        resolve(parse_selector("@a"), parse_groups({"a": "@b"}))


def test_what_is_kept_of_groups_is_what_is_needed() -> None:
    found = texts_of([parse_selector("@rest,site"), parse_selector("@nobody")], GROUPS)
    assert found == {"berlin": "site=berlin", "line-a": "@berlin,line=a", "rest": "!@line-a"}
    assert named_groups(parse_selector("@a,b,!@c,@a")) == ("a", "c")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "spec.selector is None, text is needed"),
        ({"selector": "a", "devices": 3}, "unknown keys: devices"),
        ({"selector": "a in (b"}, "spec.selector: the selector 'a in (b', at column 8"),
        ({"selector": "model.version<2"}, "model.version<2 names no model"),
    ],
)
def test_bad_groups_are_refused_by_name(spec: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_group("line", spec)
    assert caught.value.message.startswith("Group line: spec")
    assert said in caught.value.message
