"""The inference API on the wire: conversions, errors, readiness, sizes, the end of the server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.domain.probation import Trial, begin
from agent.errors import UnavailableError
from agent.serve.server import InferenceServer
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.serving import Bench, products_for, scaled, slow, tensor
from tests.support.wait import wait_for

RUNGS = {"heavy": scaled(2.0), "light": scaled(3.0)}


class Api:
    """A served bench and a stub that calls it."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.server = InferenceServer(self.bench.host, self.bench.clock, "1.2.3", "127.0.0.1:0")
        self.address = self.server.start()
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(self.address, options)
        self.stub = pb_grpc.GRPCInferenceServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(grace_s=0)
        self.bench.host.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    yield made
    made.close()


def raw_request(**changes: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="photo", id="r1")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(tensor().data))
    for key, value in changes.items():
        setattr(request, key, value)
    return request


def typed_request(datatype: str = "FP32", **contents: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="photo")
    request.inputs.add(
        name="x", datatype=datatype, shape=[1, 4], contents=pb.InferTensorContents(**contents)
    )
    return request


def refused(api: Api, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        api.stub.ModelInfer(request)
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code(), error.details() or ""


def test_raw_in_gives_raw_out_with_version_and_rung(api: Api) -> None:
    api.bench.serve("1.0.0", RUNGS)
    response = api.stub.ModelInfer(raw_request())
    assert memoryview(response.raw_output_contents[0]).cast("f").tolist() == [2.0, 4.0, 6.0, 8.0]
    assert (response.model_name, response.model_version, response.id) == ("photo", "1.0.0", "r1")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [1, 4])
    assert not output.HasField("contents")
    assert response.parameters["lighterman_version"].string_param == "1.0.0"
    assert response.parameters["lighterman_rung"].string_param == "heavy"


def test_typed_in_gives_typed_out(api: Api) -> None:
    api.bench.serve("1.0.0", RUNGS)
    response = api.stub.ModelInfer(typed_request(fp32_contents=[1.0, 2.0, 3.0, 4.0]))
    assert list(response.outputs[0].contents.fp32_contents) == [2.0, 4.0, 6.0, 8.0]
    assert not response.raw_output_contents


def _shape(request: pb.ModelInferRequest, *shape: int) -> pb.ModelInferRequest:
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)
    return request


def _named(request: pb.ModelInferRequest, name: str) -> pb.ModelInferRequest:
    request.inputs[0].name = name
    return request


def _both(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    request.inputs[0].contents.fp32_contents.append(1.0)
    return request


def _more_raw(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    request.raw_input_contents.append(b"")
    return request


def _output(request: pb.ModelInferRequest, name: str) -> pb.ModelInferRequest:
    request.outputs.add(name=name)
    return request


@pytest.mark.parametrize(
    ("request_", "story"),
    [
        (_named(raw_request(), "image"), "input 'image' is unknown\n  inputs: x"),
        (_shape(raw_request(), 1, 5), "input 'x' has shape [1,5], expected [batch,4]"),
        (_shape(raw_request(), 4), "input 'x' has shape [4], expected [batch,4]"),
        (_shape(raw_request(), -1, 4), "input 'x' has shape [-1,4], expected [batch,4]"),
        (_shape(raw_request(), 2, 4), "input 'x' has 16 bytes, FP32 [2,4] needs 32"),
        (_output(raw_request(), "z"), "output 'z' is unknown\n  outputs: y"),
        (_both(raw_request()), "input 'x' has both contents and raw_input_contents"),
        (_more_raw(raw_request()), "2 raw_input_contents for 1 inputs"),
        (pb.ModelInferRequest(model_name="photo"), "missing input: x"),
        (typed_request("FP64", fp64_contents=[1, 2, 3, 4]), "input 'x' is FP64, expected FP32"),
        (typed_request("BYTES", bytes_contents=[b"a"]), "input 'x' is BYTES, expected FP32"),
        (typed_request("FP8"), "datatype 'FP8' is not supported"),
        (typed_request("FP16"), "input 'x': FP16 has no typed contents"),
        (typed_request("INT8", int_contents=[300]), "input 'x' does not fit into INT8"),
        (typed_request(int_contents=[1]), "input 'x' has 0 bytes, FP32 [1,4] needs 16"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    api: Api, request_: pb.ModelInferRequest, story: str
) -> None:
    api.bench.serve("1.0.0", RUNGS)
    code, details = refused(api, request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(story)


def test_unknown_and_not_ready_are_told_apart(api: Api) -> None:
    assert not api.stub.ServerReady(pb.ServerReadyRequest()).ready
    code, details = refused(api, raw_request())
    assert code is grpc.StatusCode.NOT_FOUND
    assert details == "model 'photo' is not served here\n  served: –"

    made = api.bench.load("1.0.0", RUNGS, off=True)
    assert not api.stub.ModelReady(pb.ModelReadyRequest(name="photo")).ready
    code, details = refused(api, raw_request())
    assert (code, details) == (
        grpc.StatusCode.UNAVAILABLE,
        "model photo has no version loaded yet",
    )

    api.bench.host.swap("photo", made.slot_id, Trial.COMMITTED, begin(0.0), None)
    assert api.stub.ServerReady(pb.ServerReadyRequest()).ready
    assert api.stub.ModelReady(pb.ModelReadyRequest(name="photo", version="1.0.0")).ready
    assert not api.stub.ModelReady(pb.ModelReadyRequest(name="photo", version="2.0.0")).ready
    assert not api.stub.ModelReady(pb.ModelReadyRequest(name="other")).ready
    code, details = refused(api, raw_request(model_version="2.0.0"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert details.startswith("model 'photo' is served in version 1.0.0, not 2.0.0")

    api.bench.host.set_rung("photo", "off")
    assert api.stub.ServerLive(pb.ServerLiveRequest()).live
    assert not api.stub.ServerReady(pb.ServerReadyRequest()).ready
    code, details = refused(api, raw_request())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details.startswith("model photo:1.0.0 is switched off by its ladder")


def test_metadata(api: Api) -> None:
    api.bench.serve("1.0.0", RUNGS)
    server = api.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, server.version) == ("lighterman-agent", "1.2.3")
    model = api.stub.ModelMetadata(pb.ModelMetadataRequest(name="photo"))
    assert (model.platform, list(model.versions)) == ("onnxruntime_onnx", ["1.0.0"])
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 4])]
    assert dict(model.properties) == {"labels_count": "2", "lighterman_rung": "heavy"}
    with pytest.raises(grpc.RpcError) as caught:
        api.stub.ModelMetadata(pb.ModelMetadataRequest(name="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("megabytes", [0.6, 16])
def test_large_inputs_pass(api: Api, megabytes: float) -> None:
    api.bench.serve("1.0.0", RUNGS)
    rows = int(megabytes * 1e6 / 16)
    request = pb.ModelInferRequest(model_name="photo")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(bytes(rows * 16))
    response = api.stub.ModelInfer(request)
    assert len(response.raw_output_contents[0]) == rows * 16


def test_stop_answers_what_is_in_flight_and_turns_new_ones_away(api: Api) -> None:
    api.bench.serve("1.0.0", {"heavy": slow(5.0, products_for(0.4))})
    answers: list[pb.ModelInferResponse] = []
    client = threading.Thread(target=lambda: answers.append(api.stub.ModelInfer(raw_request())))
    client.start()
    served = api.bench.host._served("photo")
    wait_for(lambda: served.active and served.active.current.in_flight, 5, "the request to run")
    api.server.stop(grace_s=10)
    client.join()
    assert len(answers) == 1
    code, _ = refused(api, raw_request())
    assert code is grpc.StatusCode.UNAVAILABLE


def test_the_wait_for_a_thread_of_the_server_is_part_of_the_queue(api: Api) -> None:
    api.bench.serve("1.0.0", {"heavy": slow(5.0, products_for(0.01))})
    calls = [api.stub.ModelInfer.future(raw_request()) for _ in range(100)]
    for call in calls:
        call.result(timeout=60)
    (window,) = api.bench.host.take_windows()
    assert window.service.count == 100
    # The last one waited for nearly all others, most of the time without a thread.
    assert window.queue_age_max_s > 0.6 * window.service.sum_s


def test_a_taken_address_is_a_clear_error(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    second = InferenceServer(api.bench.host, api.bench.clock, "x", api.address)
    with pytest.raises(UnavailableError) as caught:
        second.start()
    assert str(caught.value) == (
        f"cannot listen on {api.address}: address already in use\n"
        "  another process may have it; choose another with serve.grpc (LIGHTERMAN_SERVE_GRPC)"
    )
    # gRPC's own line is no help, and comes before ours.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("listen", "why"),
    [("192.0.2.1:0", "cannot assign requested address"), ("nowhere.invalid:0", "")],
)
def test_an_address_of_others_is_a_clear_error(api: Api, listen: str, why: str) -> None:
    server = InferenceServer(api.bench.host, api.bench.clock, "x", listen)
    with pytest.raises(UnavailableError, match=f"cannot listen on {listen}: {why}"):
        server.start()
