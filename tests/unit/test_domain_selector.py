"""The grammar of selectors: old forms as ever, new ones, places of errors, a second opinion."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.selection import NEGATIVE, Op, Selector, Subject, Term, matches
from controller.domain.selector import MOST_VALUES, SelectorError, parse_filter, parse_selector
from controller.domain.version import precedence

PI = Subject(
    "pi-1",
    "raspberry-pi-5",
    "aarch64",
    {"site": "berlin", "lab": "", "floor": "2 b", "fw.version": "1.10"},
    versions={"detector": "1.2.0", "photo": "2.0.0-rc.1"},
)
QUARANTINED = Subject("pi-2", quarantined=True)

# What every release before understood, and how it is written back.
OLD = {
    "all": "all",
    " all ": "all",
    "site=berlin": "site=berlin",
    "site!=paris": "site!=paris",
    "lab": "lab",
    "!lab": "!lab",
    "all,lab": "all,lab",
    "in": "in",
    "notin,in=x": "notin,in=x",
    "model": "model",
    "group=a": "group=a",
    "quarantine=x": "quarantine=x",
    "lab=": "lab=",
    "lab!=": "lab!=",
    "a=b c": "a=b c",
    "a= b ,c": "a=b,c",
    "a=x in (y)": "a=x in (y)",
    "a=<1.3": "a=<1.3",
    "a=@b": "a=@b",
    "a=(b": "a=(b",
    "A/b.c_d-e=f:g/h@i": "A/b.c_d-e=f:g/h@i",
    "device=pi-1,arch=aarch64,profile": "device=pi-1,arch=aarch64,profile",
    "fw.version=1.10": "fw.version=1.10",
    "a=1\t,\nb": "a=1,b",
}


@pytest.mark.parametrize(("text", "written"), OLD.items())
def test_old_forms_are_what_they_were(text: str, written: str) -> None:
    selector = parse_selector(text)
    assert str(selector) == written
    assert {term.op for term in selector.terms} <= {Op.EQUAL, Op.NOT_EQUAL, Op.HAS, Op.HAS_NOT}
    assert str(selector) == _by_the_old_grammar(text)


@given(st.text("ab=!, .\t(<>@in", max_size=12))
def test_what_the_old_grammar_read_is_read_the_same(text: str) -> None:
    old = _by_the_old_grammar(text)
    if old is not None:
        assert str(parse_selector(text)) == old


def _by_the_old_grammar(text: str) -> str | None:
    """As the release before read it, word for word; None: refused."""
    if text.strip() == "all":
        return "all"
    parts = []
    for part in text.strip().split(","):
        found = re.fullmatch(r"(!?)([A-Za-z0-9][A-Za-z0-9._/-]*)(?:(!=|=)([^,=!]*))?", part.strip())
        if found is None or (found[1] and found[3]):
            return None
        parts.append(f"{found[1]}{found[2]}{found[3] or ''}{(found[4] or '').strip()}")
    return ",".join(parts)


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        ("profile in (raspberry-pi-5,intel-n100)", True),
        ("profile in(intel-n100)", False),
        ("profile notin ( intel-n100 , x )", True),
        ("floor in (2 b)", True),
        ("nolabel in (a)", False),
        ("nolabel notin (a)", True),
        ("site = berlin , floor != 3", True),
        ("detector.version<1.3", True),
        ("detector.version < 1.2.0", False),
        ("detector.version<=1.2", True),
        ("detector.version>=1.2", True),
        ("detector.version>1.1.9", True),
        ("detector.version=1.2", True),
        ("detector.version!=1.2", False),
        ("detector.version in (1.1,1.2)", True),
        ("detector.version notin (1.1,v1.2.0+cpu)", False),
        ("photo.version<2.0.0", True),
        ("photo.version>2.0.0-beta", True),
        ("detector.version", True),
        ("!other.version", True),
        ("other.version<9", False),
        ("other.version>=0", False),
        ("other.version=1", False),
        ("other.version!=1", True),
        ("other.version notin (1)", True),
        ("fw.version<2", True),
        ("fw.version>1.9", True),
        ("fw.version=1.10.0", False),  # a label is text, as ever
        ("!quarantine", True),
        ("@line", False),  # not looked up: holds for nobody, either way
        ("!@line", False),
    ],
)
def test_what_new_forms_pick(text: str, picked: bool) -> None:
    assert matches(parse_selector(text), PI) is picked


def test_quarantine_is_a_flag_and_may_be_a_label() -> None:
    assert matches(parse_selector("quarantine"), QUARANTINED)
    assert not matches(parse_selector("!quarantine"), QUARANTINED)
    assert matches(parse_selector("quarantine=x"), Subject("a", labels={"quarantine": "x"}))


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("site=berlin,profile in (a", 26, "expected `)`"),
        ("site=berlin,profile in (a=b)", 26, "expected `)`"),
        ("profile in ()", 13, "expected a value of `in (…)`"),
        ("profile in (a,)", 15, "expected a value"),
        ("profile in (a) b", 16, "expected `,` or the end"),
        ("profile not in (a)", 9, "expected `,` or one of"),
        ("a,", 3, "expected a name"),
        ("a,,b", 3, "expected a name"),
        ("=x", 1, "expected a name"),
        ("!a=b", 3, "after !a expected `,`"),
        ("a==b", 3, "a value holds no `=`"),
        ("a=b!=c", 4, "a value holds no `!`"),
        ("a=b c=d", 6, "a value holds no `=`"),
        ("site<3", 5, "`<` compares versions alone"),
        (".version<3", 1, "expected a name"),
        ("detector.version<", 18, "'' is no version"),
        ("detector.version>=1 2", 19, "'1 2' is no version"),
        ("@", 2, "expected the name of a group"),
        ("@Line", 2, "expected the name of a group"),
        ("@line=a", 6, "expected `,` or the end"),
        ("a&b", 2, "expected `,` or one of"),
        ("  ", 1, "it is empty"),
    ],
)
def test_errors_name_the_column(text: str, column: int, said: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_selector(text)
    assert caught.value.column == column
    assert f"at column {column}: {said}" in caught.value.message
    assert caught.value.lines, "what to do"


def test_a_list_has_an_end() -> None:
    many = ",".join(map(str, range(MOST_VALUES)))
    assert len(parse_selector(f"a in ({many})").terms[0].values) == MOST_VALUES
    with pytest.raises(SelectorError, match="more than 1,000 values"):
        parse_selector(f"a in ({many},x)")


@given(st.one_of(st.text(), st.text("ab12=!, .<>()@in not-v\n", max_size=40)))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    column = 1
    try:
        selector = parse_filter(text)
    except SelectorError as error:
        column = error.column
    else:
        assert parse_selector(str(selector)) == selector
        matches(selector, PI)
    assert 1 <= column <= len(text) + 1


def test_a_long_one_takes_no_longer_than_its_length() -> None:
    assert len(parse_selector(",".join(["a=b"] * 50_000)).terms) == 50_000
    with pytest.raises(SelectorError):
        parse_selector("a " * 200_000)


names = st.sampled_from(["site", "lab", "profile", "device", "arch", "quarantine"])
version_names = st.sampled_from(["detector.version", "photo.version", "fw.version"])
words = st.sampled_from(["berlin", "", "x", "pi-1", "raspberry-pi-5", "a b"])
versions = st.sampled_from(["1.2", "1.2.0", "1.3.0-rc.1", "1.10", "2.0.0-rc.1", "v2", "2+x", "x"])
terms = st.one_of(
    st.builds(Term, names, st.sampled_from([Op.EQUAL, Op.NOT_EQUAL]), words),
    st.builds(Term, names | version_names, st.sampled_from([Op.HAS, Op.HAS_NOT])),
    st.builds(
        Term,
        names,
        st.sampled_from([Op.IN, Op.NOT_IN]),
        values=st.lists(words.filter(bool), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(
        Term,
        version_names,
        st.sampled_from([Op.IN, Op.NOT_IN]),
        values=st.lists(versions, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(
        Term,
        version_names,
        st.sampled_from([Op.EQUAL, Op.NOT_EQUAL, Op.LESS, Op.LESS_EQUAL, Op.MORE, Op.MORE_EQUAL]),
        versions,
    ),
)
selectors = st.lists(terms, max_size=4).map(lambda found: Selector(tuple(found)))
subjects = st.builds(
    Subject,
    device_id=st.sampled_from(["pi-1", "pi-2"]),
    profile=st.sampled_from(["", "raspberry-pi-5"]),
    arch=st.sampled_from(["", "x"]),
    labels=st.dictionaries(st.sampled_from(["site", "lab", "quarantine"]), words, max_size=3)
    | st.fixed_dictionaries({"fw.version": versions}),
    quarantined=st.booleans(),
    versions=st.dictionaries(st.sampled_from(["detector", "photo"]), versions, max_size=2),
)


@given(selectors)
def test_what_is_written_is_read_back(selector: Selector) -> None:
    assert parse_selector(str(selector)) == selector


@given(selectors, subjects)
def test_a_naive_evaluator_agrees(selector: Selector, subject: Subject) -> None:
    assert matches(selector, subject) is all(_naive(str(term), subject) for term in selector.terms)


@given(terms, subjects)
def test_negative_terms_are_exact_opposites(term: Term, subject: Subject) -> None:
    opposite = {Op.NOT_EQUAL: Op.EQUAL, Op.HAS_NOT: Op.HAS, Op.NOT_IN: Op.IN}
    if term.op in NEGATIVE:
        other = Term(term.name, opposite[term.op], term.value, term.values)
        assert matches(Selector((term,)), subject) is not matches(Selector((other,)), subject)


def _naive(text: str, subject: Subject) -> bool:
    """One term, from its text alone, with the facts of the device in one plain dictionary."""
    facts = {f"{model}.version": value for model, value in subject.versions.items()}
    if subject.quarantined:
        facts["quarantine"] = ""
    labels = dict(subject.labels)
    facts |= labels
    facts["device"] = subject.device_id
    for name, value in (("profile", subject.profile), ("arch", subject.arch)):
        facts.pop(name, None)
        if value:
            facts[name] = value
    listed = re.fullmatch(r"(\S+) (in|notin) \((.*)\)", text)
    if listed:
        found = any(_naive(f"{listed[1]}={one}", subject) for one in listed[3].split(","))
        return found is (listed[2] == "in")
    compared = re.fullmatch(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", text)
    if not compared:
        return (text.lstrip("!") in facts) is not text.startswith("!")
    name, sign, wanted = compared.groups()
    if name not in facts:
        return sign == "!="
    have = facts[name]
    if sign in ("=", "!="):
        versioned = name.endswith(".version") and name not in labels
        same = precedence(have) == precedence(wanted) if versioned else have == wanted
        return same is (sign == "=")
    signs: dict[str, Callable[[object, object], bool]] = {
        "<": lambda a, b: a < b,  # type: ignore[operator]
        "<=": lambda a, b: a <= b,  # type: ignore[operator]
        ">": lambda a, b: a > b,  # type: ignore[operator]
        ">=": lambda a, b: a >= b,  # type: ignore[operator]
    }
    return signs[sign](precedence(have), precedence(wanted))
