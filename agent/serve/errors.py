"""The one table from the agent's errors to status codes of gRPC and HTTP. Invents no messages."""

import grpc

from agent.errors import (
    AgentError,
    BusyError,
    InferenceError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)


class RefusedError(AgentError):
    """Clients of this API may not do that: models come with rollouts."""


class WireError(RequestError):
    """A request that HTTP itself has a word for; `status` is that word."""

    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


_CODES: tuple[tuple[type[AgentError], grpc.StatusCode, int], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT, 400),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND, 404),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED, 403),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE, 503),
    (InferenceError, grpc.StatusCode.INTERNAL, 500),
)


_OUTCOMES: tuple[tuple[type[AgentError], str], ...] = (
    (RequestError, "invalid"),
    (UnknownModelError, "unknown"),
    (UnavailableError, "unavailable"),
)


def outcome_of(error: AgentError) -> str:
    """The value of `lighterman_requests_total{outcome}` for an error."""
    return next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "failed")


def code_of(error: AgentError) -> grpc.StatusCode:
    """The gRPC status a client gets for an error."""
    return next((code for kind, code, _ in _CODES if isinstance(error, kind)), _CODES[-1][1])


def status_of(error: AgentError) -> int:
    """The HTTP status a client gets for an error."""
    if isinstance(error, WireError):
        return error.status
    return next((status for kind, _, status in _CODES if isinstance(error, kind)), 500)
