"""Roles, names and how a certificate carries them. Makes no certificate and keeps none."""

import re
from dataclasses import dataclass
from enum import StrEnum

from controller.errors import InvalidError

NAME = re.compile(r"[a-z0-9-]{1,63}")
URN = "urn:lighterman:"

# Common names that the controller itself uses on the broker and on its listeners.
RESERVED = frozenset({"controller", "server", "all"})


class Role(StrEnum):
    """What the holder of a certificate may be."""

    DEVICE = "device"
    WORKER = "worker"
    OPERATOR = "operator"
    CONSUMER = "consumer"
    CONTROLLER = "controller"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a certificate speaks for."""

    role: Role
    name: str

    def uri(self) -> str:
        """The subject alternative name: ``urn:lighterman:device:rpi5-1``."""
        return f"{URN}{self.role}:{self.name}"


def check_name(name: str, what: str) -> str:
    """`name` if it is one; InvalidError names `what` otherwise."""
    if not NAME.fullmatch(name):
        raise InvalidError(
            f"{what} {name[:80]!r} is not a name",
            "names are 1 to 63 of a-z, 0-9 and -",
        )
    if name in RESERVED:
        raise InvalidError(f"{what} {name!r} is reserved for the controller itself")
    return name


def parse_uri(uri: str) -> Subject | None:
    """Subject of a subject alternative name, or None where it is not one of ours."""
    if not uri.startswith(URN):
        return None
    role, _, name = uri[len(URN) :].partition(":")
    try:
        return Subject(Role(role), name) if NAME.fullmatch(name) else None
    except ValueError:
        return None
