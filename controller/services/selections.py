"""Why a selector picks nobody: which term is to blame, what was meant. Picks nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from controller.domain.selection import (
    RESERVED,
    Op,
    Selector,
    Subject,
    Term,
    matches,
    parse_selector,
)
from controller.domain.words import count_of
from controller.errors import NotFoundError

SHOWN = 8


def nobody_matches(text: str, subjects: Sequence[Subject]) -> NotFoundError:
    """The error for a selector that picks none of these devices."""
    if not subjects:
        return NotFoundError(
            "there is no device to pick from", "fleetctl admin token create, then enrol one"
        )
    selector = parse_selector(text)
    lines = [_what_there_is(selector, subjects)]
    for term in selector.terms:
        if not any(matches(Selector((term,)), one) for one in subjects):
            lines += _meant(term, subjects)
    return NotFoundError(f"no device matches  {text}", *lines)


def _what_there_is(selector: Selector, subjects: Sequence[Subject]) -> str:
    """Devices by profile, of those that the terms pick which are not about the profile."""
    others = Selector(tuple(term for term in selector.terms if term.name != "profile"))
    found = [one for one in subjects if matches(others, one)] if others.terms else []
    what = f"{others} has {count_of(len(found), 'device')}" if found else ""
    shown = found or subjects
    profiles = Counter(one.profile or "of no profile" for one in shown)
    named = ", ".join(f"{name} ({count})" for name, count in profiles.most_common(SHOWN))
    return f"{what or count_of(len(subjects), 'device')}: {named}"


def _meant(term: Term, subjects: Sequence[Subject]) -> list[str]:
    """What is close to a term that holds for no device."""
    values = Counter(value for one in subjects if (value := _value(term.name, one)))
    if not values:
        names = sorted({name for one in subjects for name in one.labels} | set(RESERVED))
        close = get_close_matches(term.name, names, n=3, cutoff=0.6)
        hint = [f"did you mean {' or '.join(close)} ?"] if close else []
        return [f"no device has the label {term.name}", *(hint or [f"known are {_list(names)}"])]
    if term.op is not Op.EQUAL:
        return [
            f"every device has {term.name}: {_list([name for name, _ in values.most_common()])}"
        ]
    close = get_close_matches(term.value, list(values), n=3, cutoff=0.6)
    if close:
        return [f"did you mean {' or '.join(str(replace(term, value=one)) for one in close)} ?"]
    return [f"known for {term.name}: {_list([name for name, _ in values.most_common()])}"]


def _value(name: str, subject: Subject) -> str:
    match name:
        case "profile":
            return subject.profile
        case "device":
            return subject.device_id
        case "arch":
            return subject.arch
        case _:
            return subject.labels.get(name, "")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
