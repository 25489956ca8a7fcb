"""Reads selectors: the one grammar of `--selector`, `--to`, policies and groups.

Total: any text gives a selector or a SelectorError that says where it stopped.
"""

import re
from dataclasses import dataclass

from controller.domain.model import NAME, VERSION
from controller.domain.selection import (
    EVERYTHING,
    ORDERED,
    RESERVED,
    Op,
    Selector,
    Term,
    model_of,
)
from controller.errors import InvalidError

MOST_VALUES = 1000
FORMS = (
    "terms, separated by commas: name=value, name!=value, name in (a,b), name notin (a,b), name"
    " (has it), !name, MODEL.version<1.3, @group, !@group; or all",
    f"always there: {', '.join(RESERVED)}, quarantine",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_SHOWN = 120


class SelectorError(InvalidError):
    """A selector that cannot be read. ``column`` counts from 1."""

    def __init__(self, text: str, column: int, what: str, *lines: str) -> None:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        super().__init__(f"the selector {shown!r}, at column {column}: {what}", *(lines or FORMS))
        self.column = column


def parse_selector(text: str) -> Selector:
    """``all``, or terms separated by commas. SelectorError otherwise, for an empty one too."""
    if text.strip() == "all":
        return EVERYTHING
    if not text.strip():
        raise SelectorError(text, 1, "it is empty", "write all, or for example site=berlin")
    reader = _Reader(text)
    terms = [reader.term()]
    while reader.comma():
        terms.append(reader.term())
    return Selector(tuple(terms))


def parse_filter(text: str) -> Selector:
    """The selector of a list, where empty means all."""
    return parse_selector(text if text.strip() else "all")


@dataclass(slots=True)
class _Reader:
    """Goes through the text once, from term to term."""

    text: str
    at: int = 0

    def term(self) -> Term:
        self._spaces()
        start = self.at
        no = self._take("!")
        if self._take("@"):
            return Term(self._name(NAME, "the name of a group"), Op.NOT_GROUP if no else Op.GROUP)
        name = self._name(_NAME, "a name")
        self._spaces()
        if no:
            if not self._at_end():
                raise self._error(
                    f"after {self.text[start : self.at].strip()} expected `,` or the end",
                    f"write {name}!=VALUE or {name} notin (A,B)",
                )
            return Term(name, Op.HAS_NOT)
        if self._at_end():
            return Term(name, Op.HAS)
        return self._compared(name)

    def comma(self) -> bool:
        """Whether another term follows."""
        self._spaces()
        if self.at == len(self.text):
            return False
        if not self._take(","):
            raise self._error("expected `,` or the end")
        return True

    def _compared(self, name: str) -> Term:
        for op in (Op.NOT_IN, Op.IN):
            if re.compile(rf"{op}\s*\(").match(self.text, self.at):
                return Term(name, op, values=self._values(op))
        start = self.at
        for op in (Op.NOT_EQUAL, Op.LESS_EQUAL, Op.MORE_EQUAL, Op.EQUAL, Op.LESS, Op.MORE):
            if self._take(op):
                value = self._value()
                if op in ORDERED:
                    self._check_version(name, op, value, start)
                return Term(name, op, value)
        hint = f"for one of several: {name} in (A,B)"
        raise self._error("expected `,` or one of = != < <= > >= in (…) notin (…)", hint, *FORMS)

    def _value(self) -> str:
        """All up to the next comma."""
        end = self.text.find(",", self.at)
        end = len(self.text) if end < 0 else end
        for position in range(self.at, end):
            if self.text[position] in "=!":
                self.at = position
                raise self._error(f"a value holds no `{self.text[position]}`")
        value, self.at = self.text[self.at : end].strip(), end
        return value

    def _values(self, op: Op) -> tuple[str, ...]:
        self.at = self.text.index("(", self.at) + 1
        values: list[str] = []
        while True:
            self._spaces()
            start = self.at
            while self.at < len(self.text) and self.text[self.at] not in ",()=!":
                self.at += 1
            value = self.text[start : self.at].strip()
            if not value:
                raise self._error(f"expected a value of `{op} (…)`")
            values.append(value)
            if len(values) > MOST_VALUES:
                raise self._error(
                    f"more than {MOST_VALUES:,} values", "give these devices a label instead"
                )
            if self._take(")"):
                return tuple(values)
            if not self._take(","):
                raise self._error("expected `)`")

    def _check_version(self, name: str, op: Op, value: str, column: int) -> None:
        if not model_of(name):
            self.at = column
            raise self._error(f"`{op}` compares versions alone", "for example detector.version<1.3")
        if not VERSION.fullmatch(value):
            self.at = column + len(op)
            raise self._error(f"{value[:_SHOWN]!r} is no version", "for example 1.3 or 2.0.0-rc.1")

    def _name(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self._error(f"expected {what}")
        self.at = found.end()
        return found[0]

    def _take(self, word: str) -> bool:
        if self.text.startswith(word, self.at):
            self.at += len(word)
            return True
        return False

    def _spaces(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def _at_end(self) -> bool:
        return self.at == len(self.text) or self.text[self.at] == ","

    def _error(self, what: str, *lines: str) -> SelectorError:
        return SelectorError(self.text, self.at + 1, what, *lines)
