"""Every datatype of the protocol through a real model, over both roads and back."""

from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from onnx import TensorProto, helper

from agent.domain.probation import Trial, begin
from agent.domain.tensor import DType
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.http_api import HttpApi, Reply, binary_request, json_body, request
from tests.support.releases import local_rung, release
from tests.unit.test_http_convert import BODIES

ONNX = {
    DType.BOOL: TensorProto.BOOL,
    DType.UINT8: TensorProto.UINT8,
    DType.UINT16: TensorProto.UINT16,
    DType.UINT32: TensorProto.UINT32,
    DType.UINT64: TensorProto.UINT64,
    DType.INT8: TensorProto.INT8,
    DType.INT16: TensorProto.INT16,
    DType.INT32: TensorProto.INT32,
    DType.INT64: TensorProto.INT64,
    DType.FP16: TensorProto.FLOAT16,
    DType.FP32: TensorProto.FLOAT,
    DType.FP64: TensorProto.DOUBLE,
    DType.BF16: TensorProto.BFLOAT16,
    DType.BYTES: TensorProto.STRING,
}


def identity(dtype: DType) -> bytes:
    """y = x."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", ONNX[dtype], ["n"])],
        [helper.make_tensor_value_info("y", ONNX[dtype], ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def serve(api: HttpApi, dtype: DType) -> None:
    data = identity(dtype)
    spec = {"name": "x", "dtype": dtype.value, "shape": ["n"]}
    signature = {"inputs": [spec], "outputs": [{**spec, "name": "y"}]}
    rung = {**local_rung("heavy", data), "memory_bytes": 1_000_000, "runtime": "onnxruntime"}
    made = release("1.0.0", model="photo", signature=signature, ladder=[rung])
    host = api.bench.host
    host.load(made, api.bench.paths({"heavy": data}))
    host.warm("photo", made.slot_id)
    host.swap("photo", made.slot_id, Trial.COMMITTED, begin(api.bench.clock.monotonic()), None)
    host.rest()


def ask(api: HttpApi, data: bytes) -> Reply:
    with api.wire() as wire:
        wire.send(data)
        return wire.reply()


@pytest.mark.parametrize("dtype", list(DType))
def test_a_tensor_of_every_datatype_comes_back(tmp_path: Path, dtype: DType) -> None:
    values, data = BODIES[dtype]
    api = HttpApi(tmp_path)
    try:
        serve(api, dtype)
        fields: dict[str, Any] = {"datatype": dtype.value, "shape": [2]}
        path = "/v2/models/photo/infer"
        reply = ask(api, request("POST", path, json_body(**fields, data=values)))
        assert (reply.status, reply.json["outputs"][0]["data"]) == (200, values)
        assert ask(api, binary_request(data=data, **fields)).raw == data
        asked = pb.ModelInferRequest(model_name="photo")
        asked.inputs.add(name="x", datatype=dtype.value, shape=[2])
        asked.raw_input_contents.append(data)
        with grpc.insecure_channel(api.grpc_address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            assert list(stub.ModelInfer(asked).raw_output_contents) == [data]
            if dtype is DType.BYTES:
                del asked.raw_input_contents[:]
                asked.inputs[0].contents.bytes_contents.extend(text.encode() for text in values)
                (output,) = stub.ModelInfer(asked).outputs
                assert [text.decode() for text in output.contents.bytes_contents] == values
    finally:
        api.close()


@pytest.mark.parametrize(
    ("data", "story"),
    [
        (b"\1\0\0\0a\1\0\0", "cut off"),
        (b"\xff\xff\xff\xffa", "cut off"),
        (b"\1\0\0\0a", "has 1 texts, BYTES [2] needs 2"),
        (b"\1\0\0\0a\1\0\0\0\xff", "no UTF-8"),
    ],
)
def test_texts_that_are_none_are_the_client_s_fault(
    tmp_path: Path, data: bytes, story: str
) -> None:
    api = HttpApi(tmp_path)
    try:
        serve(api, DType.BYTES)
        reply = ask(api, binary_request(data=data, datatype="BYTES", shape=[2]))
        assert (reply.status, story in reply.error) == (400, True)
        assert api.bench.decisions == []
    finally:
        api.close()
