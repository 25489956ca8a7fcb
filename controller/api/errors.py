"""The one table from errors to gRPC status codes. Unexpected ones get an id and go to the log."""

import logging
from typing import NoReturn, assert_never

import grpc

from controller.errors import ErrorKind, LightermanError
from controller.services.context import Ctx
from lighterman.details import fitting

log = logging.getLogger("lighterman.api")


def code_of(kind: ErrorKind) -> grpc.StatusCode:
    """The status code of a kind of error."""
    match kind:
        case ErrorKind.NOT_FOUND:
            return grpc.StatusCode.NOT_FOUND
        case ErrorKind.CONFLICT:
            return grpc.StatusCode.ALREADY_EXISTS
        case ErrorKind.INVALID:
            return grpc.StatusCode.INVALID_ARGUMENT
        case ErrorKind.REFUSED:
            return grpc.StatusCode.FAILED_PRECONDITION
        case ErrorKind.DENIED:
            return grpc.StatusCode.PERMISSION_DENIED
        case ErrorKind.UNAUTHENTICATED:
            return grpc.StatusCode.UNAUTHENTICATED
        case ErrorKind.EXHAUSTED:
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case ErrorKind.UNAVAILABLE:
            return grpc.StatusCode.UNAVAILABLE
        case ErrorKind.INTERNAL:
            return grpc.StatusCode.INTERNAL
    assert_never(kind)


def abort_with(context: grpc.ServicerContext, error: Exception, ctx: Ctx, method: str) -> NoReturn:
    """End the call with what the caller may know of `error`."""
    if isinstance(error, LightermanError):
        if error.kind is ErrorKind.INTERNAL:
            log.error("%s: %s", method, error.text(), exc_info=error)
        context.abort(code_of(error.kind), fitting(error.text()))
    number = ctx.ids.new("e")
    log.error("%s: %s (actor %s)", number, method, ctx.actor, exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, f"internal error {number}; see the controller's log")
