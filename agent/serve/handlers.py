"""Handlers of the inference service that say what is wrong with a request that cannot be read.

gRPC itself calls such bytes an internal error of ours. Refuses to know what a method does; looks at
a request once, and copies none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from lighterman.oip import inference_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
Parse = Callable[[bytes], Any]


def readable_handlers(
    servicer: object,
    unreadable: Callable[[str], None],
    special: Mapping[str, tuple[Behaviour, Parse]],
) -> grpc.GenericRpcHandler:
    """Handlers of every method of the protocol; `special` has another behaviour and reader.

    `unreadable` is told of each request that was none.
    """
    handlers = {}
    for method in _SERVICE.methods:
        request, answer = (GetMessageClass(m) for m in (method.input_type, method.output_type))
        behaviour, parse = special.get(
            method.name, (getattr(servicer, method.name), request.FromString)
        )
        if method.client_streaming:
            # What is unreadable in a stream is told in its place, by the behaviour.
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(
                behaviour,
                request_deserializer=_reader(parse),
                response_serializer=answer.SerializeToString,
            )
            continue
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            _guarded(method.name, behaviour, unreadable),
            request_deserializer=_reader(parse),
            response_serializer=answer.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)


def _reader(parse: Parse) -> Parse:
    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return error

    return read


def _guarded(name: str, behaviour: Behaviour, unreadable: Callable[[str], None]) -> Behaviour:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(request, DecodeError):
            unreadable(name)
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the request is no message that {name} takes: it is cut off or damaged\n"
                "this is the Open Inference Protocol v2 over gRPC; any client of it works",
            )
        return behaviour(request, context)

    return answer
