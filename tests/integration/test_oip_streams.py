"""`ModelStreamInfer`: answers in order, errors in their place, and never a thread too many."""

import queue
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.errors import UnavailableError
from agent.serve import extensions
from agent.serve.server import InferenceServer
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.http_api import HttpApi
from tests.support.serving import scaled, tensor
from tests.support.wait import wait_for

CALL_S = 30.0


@pytest.fixture
def api(tmp_path: Path) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path)
    made.bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    yield made
    made.close()


def asked(number: int, **changes: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="photo", id=str(number))
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(tensor(float(number), 0, 0, 0).data))
    for key, value in changes.items():
        setattr(request, key, value)
    return request


class Sender:
    """Requests of a stream, put in one by one; None ends them."""

    def __init__(self) -> None:
        self.put: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        while (request := self.put.get()) is not None:
            yield request


def test_answers_come_in_order_and_errors_in_their_place(api: HttpApi) -> None:
    requests = [asked(i) for i in range(200)]
    requests[50] = asked(50, model_name="other")
    requests[60] = asked(60, model_version="9")
    requests[70].inputs[0].shape[:] = [2, 4]
    with grpc.insecure_channel(api.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter(requests), timeout=CALL_S))
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(200)]
    wrong = {i: answer.error_message for i, answer in enumerate(answers) if answer.error_message}
    assert sorted(wrong) == [50, 60, 70]
    assert wrong[50].startswith("model 'other' is not served here")
    assert "not 9" in wrong[60]
    assert "needs 32" in wrong[70]
    for i, answer in enumerate(answers):
        if i not in wrong:
            (data,) = answer.infer_response.raw_output_contents
            assert memoryview(data).cast("f")[0] == 2.0 * i
    assert api.grpc.requests()["photo", "ok"] == 197


def test_a_unix_socket_has_its_permissions_and_the_same_answers(api: HttpApi) -> None:
    path = Path(api.grpc_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(asked(2), timeout=CALL_S).model_version == "1.0.0"
    second = InferenceServer(api.bench.host, api.bench.clock, "x", "127.0.0.1:0", socket_path=path)
    with pytest.raises(UnavailableError, match="LIGHTERMAN_SERVE_GRPC_SOCKET"):
        second.start()
    api.grpc.stop(grace_s=0)
    assert not path.exists()


def test_streams_have_a_most_and_leave_threads_for_others(api: HttpApi) -> None:
    senders = [Sender() for _ in range(extensions.MOST_STREAMS)]
    with grpc.insecure_channel(api.grpc_address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        streams = [stub.ModelStreamInfer(iter(sender), timeout=CALL_S) for sender in senders]
        for sender, stream in zip(senders, streams, strict=True):
            sender.put.put(asked(1))
            assert not next(stream).error_message
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.ModelStreamInfer(iter([asked(1)]), timeout=CALL_S))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # All of them idle, and everything else is answered.
        assert stub.ModelInfer(asked(2), timeout=CALL_S).model_version == "1.0.0"
        streams[0].cancel()
        for sender in senders[1:]:
            sender.put.put(None)
        senders[0].put.put(None)
        for stream in streams[1:]:
            assert list(stream) == []

        def open_again() -> bool:
            try:
                return bool(list(stub.ModelStreamInfer(iter([asked(1)]), timeout=CALL_S)))
            except grpc.RpcError:
                return False

        wait_for(open_again, 20, "a place for a stream")
