"""Protocol messages to tensors and back: every element type, and whatever a client may send."""

import struct
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.ports import InferResult
from agent.domain.tensor import DType, Tensor
from agent.errors import RequestError
from agent.serve.convert import Received, receive, to_response, to_tensors, wanted_outputs
from lighterman.oip import inference_pb2 as pb

# What the protocol says: the field of each type, values at its edges, and struct's letter.
TYPED: dict[DType, tuple[str, list[Any], str]] = {
    DType.BOOL: ("bool_contents", [True, False], "?"),
    DType.INT8: ("int_contents", [-128, 127], "b"),
    DType.INT16: ("int_contents", [-32768, 32767], "h"),
    DType.INT32: ("int_contents", [-(2**31), 2**31 - 1], "i"),
    DType.INT64: ("int64_contents", [-(2**63), 2**63 - 1], "q"),
    DType.UINT8: ("uint_contents", [0, 255], "B"),
    DType.UINT16: ("uint_contents", [0, 65535], "H"),
    DType.UINT32: ("uint_contents", [0, 2**32 - 1], "I"),
    DType.UINT64: ("uint64_contents", [0, 2**64 - 1], "Q"),
    DType.FP32: ("fp32_contents", [1.5, -0.0], "f"),
    DType.FP64: ("fp64_contents", [1e300, -2.5], "d"),
}


def sent(request: pb.ModelInferRequest) -> Received:
    return receive(request.SerializeToString())


def answer(tensor: Tensor) -> InferResult:
    return InferResult((tensor,), "1.0.0", "heavy", 0.01)


@pytest.mark.parametrize("dtype", list(TYPED), ids=str)
def test_typed_contents_go_both_ways(dtype: DType) -> None:
    field, values, letter = TYPED[dtype]
    request = pb.ModelInferRequest()
    entry = request.inputs.add(name="x", datatype=dtype.value, shape=[2])
    getattr(entry.contents, field).extend(values)
    (tensor,) = to_tensors(sent(request))
    assert isinstance(tensor, Tensor)
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x", dtype, (2,))
    assert bytes(tensor.data) == struct.pack(f"<2{letter}", *values)
    response = to_response(sent(request), answer(tensor))
    assert list(getattr(response.outputs[0].contents, field)) == values
    assert not response.raw_output_contents


def test_what_has_no_typed_field_goes_raw() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="x", datatype="FP32", shape=[0], contents=pb.InferTensorContents())
    half = Tensor("y", DType.FP16, (2,), memoryview(b"\x00\x3c\x00\x40"))
    response = to_response(sent(request), answer(half))
    assert response.raw_output_contents == [b"\x00\x3c\x00\x40"]
    assert not response.outputs[0].HasField("contents")


def test_raw_contents_are_taken_as_they_are() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="a", datatype="FP16", shape=[1])
    request.inputs.add(name="b", datatype="BF16", shape=[2])
    request.raw_input_contents.extend([b"\x00\x3c", b"1234"])
    request.outputs.add(name="y")
    tensors = [one for one in to_tensors(sent(request)) if isinstance(one, Tensor)]
    assert [bytes(one.data) for one in tensors] == [b"\x00\x3c", b"1234"]
    assert wanted_outputs(request) == ("y",)


contents = st.builds(
    pb.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=3),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=3), max_size=3),
)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.text(max_size=3),
    datatype=st.one_of(st.sampled_from([*DType, "BYTES", ""]), st.text(max_size=5)),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    contents=st.one_of(st.none(), contents),
)
requests = st.builds(
    pb.ModelInferRequest,
    inputs=st.lists(inputs, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=8), max_size=3),
)


@given(requests)
def test_any_request_becomes_tensors_or_a_request_error(request: pb.ModelInferRequest) -> None:
    try:
        tensors = to_tensors(sent(request))
    except RequestError:
        return
    assert len(tensors) == len(request.inputs)


@given(requests)
def test_what_is_received_is_what_was_sent(request: pb.ModelInferRequest) -> None:
    received = sent(request)
    assert [bytes(one) for one in received.raw] == list(request.raw_input_contents)
    rest = pb.ModelInferRequest()
    rest.CopyFrom(request)
    rest.ClearField("raw_input_contents")
    assert received.request in (rest, request)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_as_protobuf_reads_them(data: bytes) -> None:
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            receive(data)
        return
    received = receive(data)
    assert [bytes(one) for one in received.raw] == list(expected.raw_input_contents)
    assert received.request.inputs == expected.inputs


def test_a_picture_is_not_copied() -> None:
    request = pb.ModelInferRequest(raw_input_contents=[b"picture" * 1000], id="r")
    data = request.SerializeToString()
    received = receive(data)
    assert received.raw[0].obj is data
    assert received.request == pb.ModelInferRequest(id="r")
    cut = data[:-1]
    with pytest.raises(DecodeError):
        receive(cut)
