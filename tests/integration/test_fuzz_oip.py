"""Whatever bytes reach the inference API: it says what is wrong, counts it, and serves the next.

The methods are those of the descriptor: a new one is fuzzed without a change here.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from agent.serve import handlers
from agent.serve.desk import MAX_MESSAGE_BYTES
from agent.serve.server import InferenceServer
from lighterman.oip import inference_pb2 as pb
from tests.support.fuzz import Known, Wild, no_message, wild_messages
from tests.support.serving import Bench, scaled, tensor

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS: list[MethodDescriptor] = list(SERVICE.methods)
BROKEN, WILD = 60, 150
KNOWN: Known = {
    "model_name": ("photo",), "name": ("photo", "x"), "model_version": ("1.0.0", ""),
    "version": ("1.0.0", ""), "datatype": ("FP32", "BYTES", "BF16", "INT64"),
    "shape": (1, 4, -1, 2**62), "raw_input_contents": (bytes(tensor().data), b"", b"abc"),
    "fp32_contents": (1.0,),
}  # fmt: skip


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


class Served:
    """A real model behind a real server."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.server = InferenceServer(bench.host, bench.clock, "1.2.3", "127.0.0.1:0")
        options = [("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(self.server.start(), options)

    def call(self, name: str, data: bytes) -> tuple[grpc.StatusCode, str]:
        if name == "ModelStreamInfer":
            return self.stream(data)
        try:
            call: Any = self.channel.unary_unary(f"/{SERVICE.full_name}/{name}")
            call(data, timeout=20)
        except grpc.RpcError as error:
            return code_of(error), getattr(error, "details", str)() or ""
        return grpc.StatusCode.OK, ""

    def stream(self, data: bytes) -> tuple[grpc.StatusCode, str]:
        """The bytes as one message of a stream; what is wrong with them is told in its place."""
        call: Any = self.channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        (answer,) = map(pb.ModelStreamInferResponse.FromString, call(iter([data]), timeout=20))
        if not answer.error_message:
            return grpc.StatusCode.OK, ""
        return grpc.StatusCode.INVALID_ARGUMENT, answer.error_message

    def good(self) -> grpc.StatusCode:
        request = pb.ModelInferRequest(model_name="photo")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        request.raw_input_contents.append(bytes(tensor().data))
        return self.call("ModelInfer", request.SerializeToString())[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bench = Bench(tmp_path_factory.mktemp("oip"))
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    made = Served(bench)
    yield made
    made.channel.close()
    made.server.stop(grace_s=0)
    bench.host.close()


def named(method: MethodDescriptor) -> str:
    return str(method.name)


def invalid(served: Served) -> int:
    return served.server.requests().get(("", "invalid"), 0)


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_bytes_that_are_no_message_are_named(served: Served, method: MethodDescriptor) -> None:
    random, before = Random(method.full_name), invalid(served)
    for _ in range(BROKEN):
        good = Wild(random, KNOWN, tame=10, longest=2_000).message(method.input_type)
        code, text = served.call(
            method.name, no_message(method.input_type, good, random, MAX_MESSAGE_BYTES)
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert text.startswith(f"the request is no message that {method.name} takes"), text
    counts = method.name in ("ModelInfer", "ModelStreamInfer")
    assert invalid(served) == before + (BROKEN if counts else 0)
    assert served.good() is grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_wild_messages_are_answered_or_refused_with_a_reason(
    served: Served, method: MethodDescriptor
) -> None:
    for message in wild_messages(method.input_type, KNOWN, method.full_name, WILD, longest=20_000):
        code, text = served.call(method.name, message.SerializeToString())
        assert code in (
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.PERMISSION_DENIED,
        ), f"{code} {text}: {str(message)[:2000]}"
        assert text.strip() or code is grpc.StatusCode.OK
    assert served.good() is grpc.StatusCode.OK
    assert served.bench.decisions == []


def test_an_endless_number_is_not_read_to_its_end(served: Served) -> None:
    code, _ = served.call("ModelInfer", b"\x80" * (MAX_MESSAGE_BYTES - 16))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_too_large_a_request_is_refused_and_the_next_one_is_answered(served: Served) -> None:
    code, text = served.call("ModelInfer", b"\x0a" * (MAX_MESSAGE_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger" in text
    assert served.good() is grpc.StatusCode.OK


def test_negative_control_without_the_reader_it_is_called_an_error_of_the_agent(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "_reader", lambda parse: parse)
    plain = Served(served.bench)
    try:
        assert plain.call("ModelInfer", b"\xff")[0] is grpc.StatusCode.INTERNAL
    finally:
        plain.channel.close()
        plain.server.stop(grace_s=0)
