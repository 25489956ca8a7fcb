"""Bytes and messages that nobody meant, for any message of the protocol, the same for a seed.

Methods and messages come from the descriptors, so that what is new is fuzzed by itself.
"""

import importlib
import math
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

import lighterman.v1

Known = Mapping[str, Sequence[Any]]  # what makes sense, by the name of the field
F = FieldDescriptor

TEXTS = (
    "", " ", "\x00", "a\x00b", "..", "../../etc/passwd", "/", "a" * 64, "x" * 70_000, "🦆" * 5_000,
    "'; DROP TABLE device; --", "%s%n{0}", "NaN", "-1", "A:B", "\u202e\u0000", "=", "1-a",
    "[" * 5_000, '{"a":' * 5_000,
)  # fmt: skip
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, -0.0, 1e308, 5e-324, 1e18, 0.5)
WHOLE = {
    F.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    F.CPPTYPE_INT64: (0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1),
    F.CPPTYPE_UINT32: (0, 1, 2**31, 2**32 - 1),
    F.CPPTYPE_UINT64: (0, 1, 2**63 - 1, 2**63, 2**64 - 1),
}


def services() -> list[str]:
    """Full names of every service of the protocol's package."""
    names = []
    for module in pkgutil.iter_modules(lighterman.v1.__path__):
        if module.name.endswith("_pb2"):
            found = importlib.import_module(f"lighterman.v1.{module.name}").DESCRIPTOR
            names += [one.full_name for one in found.services_by_name.values()]
    return sorted(names)


def methods() -> list[MethodDescriptor]:
    """Every method of `services`."""
    from google.protobuf.descriptor_pool import Default

    return [method for name in services() for method in Default().FindServiceByName(name).methods]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def no_message(kind: Descriptor, good: Message, random: Random, most: int) -> bytes:
    """At most `most` bytes that protobuf does not take for a message of `kind`."""
    parse = GetMessageClass(kind).FromString
    texts = [f.number for f in kind.fields if f.type == F.TYPE_STRING]
    whole = good.SerializeToString()[: most // 2]
    while True:
        choices = [
            random.randbytes(random.randint(1, 200)),
            whole[: random.randint(0, len(whole))],
            whole + _varint(random.randint(1, 40) << 3 | 2) + _varint(2**31 - 1) + b"x",
            b"\x00" + whole,
            b"\xff" * random.randint(1, 20),
            b"\x0b" * 200,
            b"\x0f\x01",
            *(_varint(n << 3 | 2) + b"\x02\xc3\x28" for n in texts),
        ]
        data = random.choice(choices)
        try:
            parse(data)
        except DecodeError:
            return data


@dataclass(frozen=True, slots=True)
class Wild:
    """Makes messages; `tame` of 10 fields hold what makes sense, where that is known.

    A text has at most `longest` characters.
    """

    random: Random
    known: Known
    tame: int = 5
    longest: int = 100_000

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """Some message of this kind; larger ones than a listener takes do not come."""
        made: Any = GetMessageClass(kind)()
        if kind.full_name == "google.protobuf.Timestamp":
            made.seconds = self.random.choice((0, 1_800_000_000, -1, 10**12, -(2**62), 2**62))
            made.nanos = self.random.choice((0, 999_999_999, -1, 2**31 - 1))
            return made  # type: ignore[no-any-return]
        for field in kind.fields:
            if self.random.random() < 0.15 or depth > 4:
                continue
            self._fill(made, field, depth)
        return made  # type: ignore[no-any-return]

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            target = getattr(made, field.name)
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            for _ in range(self.random.choice((0, 1, 2, 60))):
                if value.message_type is None:
                    target[self._value(key)] = self._value(value)
        elif field.is_repeated:
            target = getattr(made, field.name)
            for _ in range(self.random.choice((0, 1, 1, 2, 3, 40 if depth else 200))):
                if entry is not None:
                    target.append(self.message(entry, depth + 1))
                else:
                    target.append(self._value(field, min(300, self.longest)))
        elif entry is not None:
            getattr(made, field.name).CopyFrom(self.message(entry, depth + 1))
        else:
            setattr(made, field.name, self._value(field, self.longest))

    def _value(self, field: FieldDescriptor, most: int = 64) -> Any:
        known = self.known.get(field.name)
        if known and self.random.randrange(10) < self.tame:
            return self.random.choice(known)
        match field.cpp_type:
            case F.CPPTYPE_STRING if field.type == F.TYPE_BYTES:
                return self.random.randbytes(self.random.choice((0, 1, 50, min(most, 5_000))))
            case F.CPPTYPE_STRING:
                return self.random.choice(TEXTS)[:most]
            case F.CPPTYPE_BOOL:
                return self.random.random() < 0.5
            case F.CPPTYPE_DOUBLE | F.CPPTYPE_FLOAT:
                return self.random.choice(NUMBERS)
            case F.CPPTYPE_ENUM:
                return self.random.choice((0, 1, 2, 3, 99, 2**31 - 1, -1))
            case kind:
                return self.random.choice(WHOLE[kind])


def wild_messages(
    kind: Descriptor, known: Known, seed: str, count: int, longest: int = 100_000
) -> Iterator[Message]:
    """So many messages, from mostly tame to wholly wild."""
    random = Random(seed)
    for number in range(count):
        yield Wild(random, known, (9, 7, 5, 0)[number % 4], longest).message(kind)
