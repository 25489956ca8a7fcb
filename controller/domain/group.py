"""Named groups of devices: a selector under a name, asked anew whenever it is used.

Holds no list of devices. Refuses groups that refer to each other in a circle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from controller.domain.selection import OWN_MODEL, VERSION_OF, Op, Selector, Term
from controller.domain.selector import parse_selector
from controller.domain.spec import Spec
from controller.errors import InvalidError, NotFoundError

DEEPEST = 16
MOST_TERMS = 1000
_GROUPS = (Op.GROUP, Op.NOT_GROUP)


@dataclass(frozen=True, slots=True)
class Group:
    """A selector under a name."""

    name: str
    selector: Selector
    description: str = ""


def parse_group(name: str, spec: Mapping[str, object]) -> Group:
    """The ``spec`` of ``kind: Group``; InvalidError names the key that is wrong."""
    top = Spec(spec, f"Group {name}: spec").only("selector", "description")
    text = top.text("selector")
    try:
        selector = parse_selector(text)
    except InvalidError as error:
        raise InvalidError(f"{top.where}.selector: {error.message}", *error.lines) from None
    for term in selector.terms:
        if term.name == OWN_MODEL + VERSION_OF and term.op not in _GROUPS:
            raise InvalidError(
                f"{top.where}.selector: {term} names no model",
                "a group is of no rollout: write the model, for example detector.version<1.3",
            )
    return Group(name, selector, top.text("description", ""))


def parse_groups(texts: Mapping[str, str]) -> dict[str, Selector]:
    """Selectors by the name of their group, as they are stored."""
    return {name: parse_selector(text) for name, text in texts.items()}


def named_groups(selector: Selector) -> tuple[str, ...]:
    """Names of the groups that it refers to itself, each once."""
    return tuple(dict.fromkeys(term.name for term in selector.terms if term.op in _GROUPS))


def resolve(selector: Selector, groups: Mapping[str, Selector], model: str = "") -> Selector:
    """The selector with what its groups hold, and with the model that ``model.version`` means.

    NotFoundError for a group that is not there; InvalidError for a circle, which it names, and for
    one nested more than 16 deep or holds more than 1,000 terms.
    """
    return _Resolver(groups, model).selector(selector, ()).selector


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A selector, how many terms it has with its groups, and how deep these are nested."""

    selector: Selector
    size: int
    depth: int


@dataclass(slots=True)
class _Resolver:
    """Looks every group up once, however often it is named."""

    groups: Mapping[str, Selector]
    model: str
    done: dict[str, _Resolved] = field(default_factory=dict)

    def selector(self, one: Selector, path: tuple[str, ...]) -> _Resolved:
        terms: list[Term] = []
        size, depth = len(one.terms), 0
        for term in one.terms:
            if term.op in _GROUPS:
                found = self.group(term.name, path)
                terms.append(replace(term, inner=found.selector))
                size, depth = size + found.size, max(depth, found.depth + 1)
            elif term.name == OWN_MODEL + VERSION_OF:
                terms.append(replace(term, model=self.model))
            else:
                terms.append(term)
        return _Resolved(Selector(tuple(terms)), size, depth)

    def group(self, name: str, path: tuple[str, ...]) -> _Resolved:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            raise InvalidError(f"groups refer to each other in a circle: {circle}")
        if name not in self.groups:
            raise NotFoundError(f"no group {name}")
        way = (*path, name)
        if name not in self.done:
            if len(way) > DEEPEST:
                raise InvalidError(f"groups are nested over {DEEPEST} deep: {' → '.join(way)}")
            self.done[name] = self.selector(self.groups[name], way)
        found = self.done[name]
        if len(way) + found.depth > DEEPEST:  # looked up before on a shorter way
            raise InvalidError(f"groups are nested over {DEEPEST} deep: {' → '.join(way)} → …")
        if found.size > MOST_TERMS:
            raise InvalidError(
                f"group {name} holds more than {MOST_TERMS:,} terms with the groups it names",
                "give these devices a label instead",
            )
        return found


def texts_of(selectors: Iterable[Selector], groups: Mapping[str, Selector]) -> dict[str, str]:
    """What the groups that these selectors need say now, by name."""
    found: dict[str, str] = {}
    waiting = [name for one in selectors for name in named_groups(one)]
    while waiting:
        name = waiting.pop()
        if name not in found and name in groups:
            found[name] = str(groups[name])
            waiting += named_groups(groups[name])
    return dict(sorted(found.items()))
