"""The one table from the agent's errors to gRPC status codes. Refuses to invent messages."""

import grpc

from agent.errors import (
    AgentError,
    InferenceError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)

_CODES: tuple[tuple[type[AgentError], grpc.StatusCode], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (InferenceError, grpc.StatusCode.INTERNAL),
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
    """The status a client gets for an error."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL
