"""Which devices a selector picks, and in which order.

The order is a hash of seed and device id: stable for one rollout, different between rollouts, so
that not always the same device is the canary. Refuses grammar it does not know; an empty selector
is not "all" here. Groups are looked up by ``group.resolve``: a term of one that was not resolved
holds for no device, negated or not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from operator import ge, gt, le, lt

from controller.domain.model import NAME
from controller.domain.version import precedence

QUARANTINE = "quarantine"
RESERVED = ("profile", "device", "arch")
VERSION_OF = ".version"
OWN_MODEL = "model"  # in `model.version`: the model of the rollout or policy itself


class Op(StrEnum):
    """How one term looks at one name."""

    EQUAL = "="
    NOT_EQUAL = "!="
    HAS = "has"
    HAS_NOT = "!"
    IN = "in"
    NOT_IN = "notin"
    LESS = "<"
    LESS_EQUAL = "<="
    MORE = ">"
    MORE_EQUAL = ">="
    GROUP = "@"
    NOT_GROUP = "!@"


ORDERED = {Op.LESS: lt, Op.LESS_EQUAL: le, Op.MORE: gt, Op.MORE_EQUAL: ge}
# They hold where the name is absent: a slip in it widens what is picked.
NEGATIVE = frozenset({Op.NOT_EQUAL, Op.HAS_NOT, Op.NOT_IN, Op.NOT_GROUP})


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. ``inner`` is what a group holds, ``model`` whose version ``model.version`` is;
    both are known once it is resolved.
    """

    name: str
    op: Op
    value: str = ""
    values: tuple[str, ...] = ()
    inner: "Selector | None" = None
    model: str = ""

    def __str__(self) -> str:
        match self.op:
            case Op.HAS:
                return self.name
            case Op.HAS_NOT | Op.GROUP | Op.NOT_GROUP:
                return f"{self.op}{self.name}"
            case Op.IN | Op.NOT_IN:
                return f"{self.name} {self.op} ({','.join(self.values)})"
            case _:
                return f"{self.name}{self.op}{self.value}"

    @property
    def version_of(self) -> str:
        """The model whose version it asks for; empty where it asks for something else."""
        return "" if self.op in (Op.GROUP, Op.NOT_GROUP) else self.model or model_of(self.name)


@dataclass(frozen=True, slots=True)
class Selector:
    """All terms must hold; no terms: every device."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return ",".join(str(term) for term in self.terms) or "all"

    def walk(self) -> Iterator[Term]:
        """Its terms and, where they are resolved, those of its groups."""
        for term in self.terms:
            yield term
            if term.inner is not None:
                yield from term.inner.walk()

    @property
    def models(self) -> frozenset[str]:
        """Models whose versions it asks for, in its groups too."""
        return frozenset(term.version_of for term in self.walk()) - {""}


EVERYTHING = Selector()


@dataclass(frozen=True, slots=True)
class Subject:
    """What a selector looks at. ``versions``: the one committed on the device, by model."""

    device_id: str
    profile: str = ""
    arch: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    quarantined: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)


def model_of(name: str) -> str:
    """The model in ``detector.version``; empty where the name is none of that form."""
    model = name.removesuffix(VERSION_OF)
    return model if model != name and NAME.fullmatch(model) else ""


def matches(selector: Selector, subject: Subject) -> bool:
    """Whether all terms hold for this device."""
    return all(_holds(term, subject) for term in selector.terms)


def look_up(term: Term, subject: Subject) -> str | None:
    """What the device has under the name of the term; None: it has no such thing.

    A label goes before what a name means here since later releases, so that labels keep their
    meaning: only profile, device and arch were always reserved.
    """
    match term.name:
        case "profile":
            return subject.profile or None
        case "device":
            return subject.device_id
        case "arch":
            return subject.arch or None
        case name if name in subject.labels:
            return subject.labels[name]
        case name if name == QUARANTINE:
            return "" if subject.quarantined else None
        case _:
            return subject.versions.get(term.version_of)


def order_key(seed: str, device_id: str) -> str:
    """Sort key of a device in a rollout: sha256 of seed and id, as hex."""
    return sha256(f"{seed}\n{device_id}".encode()).hexdigest()


def in_order(seed: str, device_ids: Iterable[str]) -> list[str]:
    """Device ids in the stable order of this seed."""
    return sorted(device_ids, key=lambda device_id: order_key(seed, device_id))


def _holds(term: Term, subject: Subject) -> bool:
    match term.op:
        case Op.GROUP:
            return term.inner is not None and matches(term.inner, subject)
        case Op.NOT_GROUP:
            return term.inner is not None and not matches(term.inner, subject)
    value = look_up(term, subject)
    match term.op:
        case Op.HAS:
            return value is not None
        case Op.HAS_NOT:
            return value is None
        case Op.EQUAL:
            return _is_one_of(value, (term.value,), term, subject)
        case Op.NOT_EQUAL:
            return not _is_one_of(value, (term.value,), term, subject)
        case Op.IN:
            return _is_one_of(value, term.values, term, subject)
        case Op.NOT_IN:
            return not _is_one_of(value, term.values, term, subject)
        case _:
            compare = ORDERED[term.op]
            return value is not None and compare(precedence(value), precedence(term.value))


def _is_one_of(value: str | None, wanted: tuple[str, ...], term: Term, subject: Subject) -> bool:
    if value is None or value in wanted:
        return value is not None
    if not term.version_of or term.name in subject.labels:
        return False
    return precedence(value) in {precedence(one) for one in wanted}
