"""Why a selector picks nobody: which term is to blame, what was meant. Picks nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from controller.domain.selection import (
    NEGATIVE,
    ORDERED,
    QUARANTINE,
    RESERVED,
    Op,
    Selector,
    Subject,
    Term,
    look_up,
    matches,
)
from controller.domain.words import count_of
from controller.errors import NotFoundError

SHOWN = 8
_GROUPS = (Op.GROUP, Op.NOT_GROUP)


def nobody_matches(selector: Selector, subjects: Sequence[Subject], text: str) -> NotFoundError:
    """The error for a selector, written as `text`, that picks none of these devices."""
    if not subjects:
        return NotFoundError(
            "there is no device to pick from", "fleetctl admin token create, then enrol one"
        )
    lines = [_what_there_is(selector, subjects)]
    alone = [term for term in selector.terms if not _some(term, subjects)]
    for term in alone:
        lines += _meant(term, subjects)
    if not alone:
        lines += _together(selector, subjects)
    return NotFoundError(f"no device matches  {text}", *lines)


def slips(selector: Selector, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """What looks like a slip in a selector that picks devices: a negative term of no known name.

    Said only where a name is near: that nothing is in quarantine or has a label is no news.
    """
    names = _names(subjects)
    notes = []
    for term in selector.walk():
        if term.op in NEGATIVE and term.op not in _GROUPS and term.name not in names:
            close = [] if term.version_of else get_close_matches(term.name, names, 3, 0.6)
            if close:
                meant = f"did you mean {' or '.join(close)} ?"
                notes.append(f"{term} leaves nobody out, no device has {term.name}: {meant}")
    return tuple(notes)


def _some(term: Term, subjects: Sequence[Subject]) -> bool:
    return any(matches(Selector((term,)), one) for one in subjects)


def _names(subjects: Sequence[Subject]) -> list[str]:
    labels = {name for one in subjects for name in one.labels}
    return sorted(labels | {QUARANTINE} | set(RESERVED))


def _what_there_is(selector: Selector, subjects: Sequence[Subject]) -> str:
    """Devices by profile, of those that the terms pick which are not about the profile."""
    others = Selector(tuple(term for term in selector.terms if term.name != "profile"))
    found = [one for one in subjects if matches(others, one)] if others.terms else []
    what = f"{others} has {count_of(len(found), 'device')}" if found else ""
    shown = found or subjects
    profiles = Counter(one.profile or "of no profile" for one in shown)
    named = ", ".join(f"{name} ({count})" for name, count in profiles.most_common(SHOWN))
    return f"{what or count_of(len(subjects), 'device')}: {named}"


def _together(selector: Selector, subjects: Sequence[Subject]) -> list[str]:
    """Each term holds somewhere: the first that leaves none of what those before it picked."""
    left = subjects
    for number, term in enumerate(selector.terms):
        found = [one for one in left if matches(Selector((term,)), one)]
        if not found:
            before = Selector(selector.terms[:number])
            return [
                f"{before} has {count_of(len(left), 'device')}, {term} leaves none of them",
                *(line for line in _meant(term, left, narrowed=True)),
            ]
        left = found
    return []


def _meant(term: Term, subjects: Sequence[Subject], *, narrowed: bool = False) -> list[str]:
    """What is close to a term that holds for none of these devices."""
    if term.op in _GROUPS:
        return _group_meant(term, subjects)
    values = Counter(value for one in subjects if (value := look_up(term, one)))
    there = [value for value, _ in values.most_common()]
    if term.version_of and (values or not narrowed):
        runs = ", ".join(f"{value} ({count})" for value, count in values.most_common(SHOWN))
        return [f"{term.name} is {runs}" if runs else f"no device runs {term.version_of}"]
    if not values:
        return [] if narrowed else _name_meant(term, subjects)
    if term.op not in (Op.EQUAL, Op.IN):
        if term.op in ORDERED or not all(look_up(term, one) for one in subjects):
            return [f"known for {term.name}: {_list(there)}"]
        return [f"every device has {term.name}: {_list(there)}"]
    wanted = term.values or (term.value,)
    close = list(
        dict.fromkeys(near for one in wanted for near in get_close_matches(one, there, 3, 0.6))
    )
    if close and not narrowed:
        meant = (
            [str(replace(term, op=Op.EQUAL, value=one, values=())) for one in close]
            if term.op is Op.EQUAL or len(close) == 1
            else [str(replace(term, values=tuple(close)))]
        )
        return [f"did you mean {' or '.join(meant)} ?"]
    return [f"known for {term.name}: {_list(there)}"]


def _name_meant(term: Term, subjects: Sequence[Subject]) -> list[str]:
    names = _names(subjects)
    close = [one for one in get_close_matches(term.name, names, 4, 0.6) if one != term.name]
    if term.name == QUARANTINE:
        return ["none of them is in quarantine"]
    hint = [f"did you mean {' or '.join(close[:3])} ?"] if close else []
    return [f"no device has the label {term.name}", *(hint or [f"known are {_list(names)}"])]


def _group_meant(term: Term, subjects: Sequence[Subject]) -> list[str]:
    inner = term.inner or Selector()
    if term.op is Op.NOT_GROUP:
        return [f"every device is in group {term.name} ({inner})"]
    lines = [f"group {term.name} ({inner}) holds no device"]
    alone = [one for one in inner.terms if not _some(one, subjects)]
    for one in alone:
        lines += _meant(one, subjects)
    return lines if alone else [*lines, *_together(inner, subjects)]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
