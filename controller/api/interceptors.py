"""Stands before every call: the role in the certificate must fit the service, errors are mapped.

Holds no knowledge of any single method.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from controller.api.base import Caller, caller_of
from controller.api.errors import abort_with
from controller.api.live import LiveStreams
from controller.errors import DeniedError, InvalidError
from controller.services.context import Ctx

NewCtx = Callable[[str], Ctx]
Admit = Callable[[Caller], None]

ROLES: Mapping[str, str] = {
    "lighterman.v1.DeviceService": "device",
    "lighterman.v1.BuildService": "worker",
    "lighterman.v1.FleetService": "operator",
}


def check_role(method: str, caller: Caller) -> None:
    """DeniedError when the caller's certificate is not for this service."""
    service = method.strip("/").partition("/")[0]
    wanted = ROLES.get(service)
    if caller.role != wanted:
        raise DeniedError(
            f"the certificate of {caller.name} has the role {caller.role}",
            f"{service.rpartition('.')[2] or 'this service'} is for the role {wanted or 'none'}",
        )


class _Unreadable:
    """Stands for bytes that are no message of the method; gRPC itself would call that INTERNAL."""


_UNREADABLE = _Unreadable()


def _reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _UNREADABLE  # told behind the check of the caller: a stranger learns nothing

    return read


def _read(request: Any, method: str) -> Any:
    """The request as it was sent. InvalidError where it cannot be read."""
    if request is _UNREADABLE:
        raise InvalidError(
            f"the request is no message that {method.rpartition('/')[2]} takes",
            "it is cut off or damaged, or the caller speaks another protocol: compare versions",
        )
    return request


def _read_each(requests: Iterator[Any], method: str) -> Iterator[Any]:
    for request in requests:
        yield _read(request, method)


class Gate(grpc.ServerInterceptor):
    """Checks who calls (unless `open_to_all`), then maps what the servicer raises.

    `admit` raises for certificates that were revoked since; streams are looked at while they last.
    """

    def __init__(self, new_ctx: NewCtx, admit: Admit | None = None) -> None:
        self._new_ctx = new_ctx
        self._admit = admit
        self._live = None if admit is None else LiveStreams(admit)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        return self._wrapped(handler, method)

    def _wrapped(self, handler: Any, method: str) -> Any:
        serializers = {
            "request_deserializer": _reader(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        read = _read_each if handler.request_streaming else _read
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

            def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                try:
                    caller = self._check(method, context)
                    asked = read(request, method)
                    if caller is None or self._live is None:
                        yield from inner(asked, context)
                        return
                    with self._live.watched(caller, context):
                        yield from inner(asked, context)
                except Exception as error:  # noqa: BLE001 - mapped, never swallowed
                    self._abort(context, error, method)

            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(stream, **serializers)
            return grpc.unary_stream_rpc_method_handler(stream, **serializers)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        def single(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._check(method, context)
                return inner(read(request, method), context)
            except Exception as error:  # noqa: BLE001 - mapped, never swallowed
                self._abort(context, error, method)

        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(single, **serializers)
        return grpc.unary_unary_rpc_method_handler(single, **serializers)

    def _check(self, method: str, context: grpc.ServicerContext) -> Caller | None:
        if self._admit is None:
            return None
        caller = caller_of(context)
        check_role(method, caller)
        self._admit(caller)
        return caller

    def _abort(self, context: grpc.ServicerContext, error: Exception, method: str) -> NoReturn:
        abort_with(context, error, self._new_ctx(context.peer()), method)
