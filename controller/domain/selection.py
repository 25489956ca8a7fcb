"""Which devices a selector picks, and in which order.

The order is a hash of seed and device id: stable for one rollout, different between rollouts, so
that not always the same device is the canary. Refuses grammar it does not know; an empty selector
is not "all" here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

from controller.errors import InvalidError

RESERVED = ("profile", "device", "arch")
_TERM = re.compile(r"(!?)([A-Za-z0-9][A-Za-z0-9._/-]*)(?:(!=|=)([^,=!]*))?")


class Op(StrEnum):
    """How one term looks at one name."""

    EQUAL = "="
    NOT_EQUAL = "!="
    HAS = "has"
    HAS_NOT = "!"


@dataclass(frozen=True, slots=True)
class Term:
    """One condition."""

    name: str
    op: Op
    value: str = ""

    def __str__(self) -> str:
        match self.op:
            case Op.HAS:
                return self.name
            case Op.HAS_NOT:
                return f"!{self.name}"
            case Op.EQUAL | Op.NOT_EQUAL:
                return f"{self.name}{self.op}{self.value}"


@dataclass(frozen=True, slots=True)
class Selector:
    """All terms must hold; no terms: every device."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return ",".join(str(term) for term in self.terms) or "all"


EVERYTHING = Selector()


@dataclass(frozen=True, slots=True)
class Subject:
    """What a selector looks at."""

    device_id: str
    profile: str = ""
    arch: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_selector(text: str) -> Selector:
    """``all``, or comma-separated ``name=value``, ``name!=value``, ``name``, ``!name``.

    InvalidError otherwise.
    """
    stripped = text.strip()
    if stripped == "all":
        return EVERYTHING
    if not stripped:
        raise InvalidError("the selector is empty", "write all, or for example site=berlin")
    return Selector(tuple(_term(part.strip(), text) for part in stripped.split(",")))


def parse_filter(text: str) -> Selector:
    """The selector of a list, where empty means all."""
    return parse_selector(text.strip() or "all")


def matches(selector: Selector, subject: Subject) -> bool:
    """Whether all terms hold for this device."""
    return all(_holds(term, subject) for term in selector.terms)


def order_key(seed: str, device_id: str) -> str:
    """Sort key of a device in a rollout: sha256 of seed and id, as hex."""
    return sha256(f"{seed}\n{device_id}".encode()).hexdigest()


def in_order(seed: str, device_ids: Iterable[str]) -> list[str]:
    """Device ids in the stable order of this seed."""
    return sorted(device_ids, key=lambda device_id: order_key(seed, device_id))


def _term(part: str, whole: str) -> Term:
    match = _TERM.fullmatch(part)
    if match is None or (match[1] and match[3]):
        raise InvalidError(
            f"{part!r} in the selector {whole!r} is no term",
            "name=value, name!=value, name (has the label) or !name, separated by commas",
            f"reserved names: {', '.join(RESERVED)}",
        )
    if match[3]:
        return Term(match[2], Op(match[3]), match[4].strip())
    return Term(match[2], Op.HAS_NOT if match[1] else Op.HAS)


def _holds(term: Term, subject: Subject) -> bool:
    value = _value(term.name, subject)
    match term.op:
        case Op.EQUAL:
            return value == term.value
        case Op.NOT_EQUAL:
            return value != term.value
        case Op.HAS:
            return value is not None
        case Op.HAS_NOT:
            return value is None


def _value(name: str, subject: Subject) -> str | None:
    match name:
        case "profile":
            return subject.profile or None
        case "device":
            return subject.device_id
        case "arch":
            return subject.arch or None
        case _:
            return subject.labels.get(name)
