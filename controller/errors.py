"""Errors of the controller: what was wrong, where, and what to do. They know no transport.

``message`` is one line; ``lines`` add detail and the way out. ``api`` maps kinds to status codes
in one table.
"""

from enum import StrEnum


class ErrorKind(StrEnum):
    """What a transport needs to know of an error."""

    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    INVALID = "invalid"
    REFUSED = "refused"
    DENIED = "denied"
    UNAUTHENTICATED = "unauthenticated"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class LightermanError(Exception):
    """Base of all errors that are told to people."""

    kind = ErrorKind.INTERNAL

    def __init__(self, message: str, *lines: str) -> None:
        super().__init__(message)
        self.message = message
        self.lines = lines

    def text(self) -> str:
        """Message and detail lines, as people read them."""
        return "\n".join((self.message, *self.lines))


class NotFoundError(LightermanError):
    """What was named does not exist."""

    kind = ErrorKind.NOT_FOUND


class ConflictError(LightermanError):
    """It exists already with other content, or somebody was faster."""

    kind = ErrorKind.CONFLICT


class InvalidError(LightermanError):
    """The input itself is wrong."""

    kind = ErrorKind.INVALID


class RefusedError(LightermanError):
    """The input is fine, the state of things forbids it."""

    kind = ErrorKind.REFUSED


class DeniedError(LightermanError):
    """The caller is known and may not do this."""

    kind = ErrorKind.DENIED


class UnauthenticatedError(LightermanError):
    """The caller is not known."""

    kind = ErrorKind.UNAUTHENTICATED


class ExhaustedError(LightermanError):
    """Too much, too large or too often."""

    kind = ErrorKind.EXHAUSTED


class UnavailableError(LightermanError):
    """Something needed is away at the moment."""

    kind = ErrorKind.UNAVAILABLE


class InvariantError(LightermanError):
    """A rule that must never break was about to break; nothing was written."""

    kind = ErrorKind.INTERNAL
