"""Bodies of the HTTP road as pure functions: every datatype both ways, and what is refused."""

import contextlib
import gzip
import json
import math
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.ports import InferResult
from agent.domain.tensor import DType, Tensor, is_whole
from agent.errors import RequestError
from agent.serve.desk import MAX_MESSAGE_BYTES
from agent.serve.errors import WireError
from agent.serve.http_convert import HttpRequest, read_request, write_result
from agent.serve.http_head import END, parse_head
from agent.serve.http_infer import inflate
from agent.serve.values import pack, unpack

BODIES: dict[DType, tuple[list[Any], bytes]] = {
    DType.BOOL: ([True, False], b"\x01\x00"),
    DType.UINT8: ([0, 255], b"\x00\xff"),
    DType.UINT16: ([1, 65535], struct.pack("<2H", 1, 65535)),
    DType.UINT32: ([1, 2**32 - 1], struct.pack("<2I", 1, 2**32 - 1)),
    DType.UINT64: ([1, 2**64 - 1], struct.pack("<2Q", 1, 2**64 - 1)),
    DType.INT8: ([-128, 127], b"\x80\x7f"),
    DType.INT16: ([-1, 2], struct.pack("<2h", -1, 2)),
    DType.INT32: ([-1, 2], struct.pack("<2i", -1, 2)),
    DType.INT64: ([-(2**63), 2], struct.pack("<2q", -(2**63), 2)),
    DType.FP16: ([0.5, -2.0], struct.pack("<2e", 0.5, -2.0)),
    DType.FP32: ([0.5, -2.0], struct.pack("<2f", 0.5, -2.0)),
    DType.FP64: ([0.1, -2.0], struct.pack("<2d", 0.1, -2.0)),
    DType.BF16: ([0.5, -2.0], b"\x00\x3f\x00\xc0"),
    DType.BYTES: (["", "né"], b"\0\0\0\0\3\0\0\0n\xc3\xa9"),
}


def test_every_datatype_has_a_case() -> None:
    assert set(BODIES) == set(DType)


@pytest.mark.parametrize("dtype", BODIES)
def test_values_and_bytes_are_each_other(dtype: DType) -> None:
    values, data = BODIES[dtype]
    assert bytes(pack("x", dtype, (2,), values)) == data
    assert bytes(pack("x", dtype, (1, 2), [values])) == data
    assert unpack(Tensor("x", dtype, (2,), data)) == values
    assert unpack(Tensor("x", dtype, (0,), b"")) == []


@given(st.floats(width=32))
def test_bf16_is_rounded_to_the_nearest(value: float) -> None:
    (bits,) = struct.unpack("<H", bytes(pack("x", DType.BF16, (1,), [value])))
    (near,) = struct.unpack("<f", struct.pack("<I", bits << 16))
    if math.isnan(value):
        assert math.isnan(near)
    elif math.isfinite(near):
        assert abs(near - value) <= abs(value) / 256 + 2**-133


def test_what_is_no_number_is_null_in_json_and_itself_in_bytes() -> None:
    tensor = Tensor("y", DType.FP32, (3,), struct.pack("<3f", 1.0, math.nan, math.inf))
    assert unpack(tensor) == [1.0, None, None]
    asked = read_request(b'{"inputs": [], "parameters": {"binary_data_output": true}}', None)
    written = write_result("m", asked, InferResult((tensor,), "1", "heavy", 0.0))
    assert written.parts[1] == tensor.data


def body(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4], **changes}


REFUSED = [
    (b"", "the request is no JSON"),
    (b"\xff", "the request is no JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "the request is no JSON"),
    (b"[]", "the request must be a JSON object"),
    (b"{}", "inputs must be a list"),
    ({"inputs": {}}, "inputs must be a list"),
    ({"inputs": [1]}, "an input must be a JSON object"),
    ({"inputs": [], "id": 3}, "id is no text"),
    ({"inputs": [], "outputs": [{}]}, "an output has no name"),
    ({"inputs": [], "parameters": {"binary_data_output": 1}}, "must be true or false"),
    ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classif"),
    ({"inputs": [body(name=1)]}, "an input has no name"),
    ({"inputs": [body(datatype="FP8")]}, "datatype 'FP8' is not supported"),
    ({"inputs": [body(shape=4)]}, "shape is no list"),
    ({"inputs": [body(shape=[1] * 33)]}, "shape is no list of at most 32"),
    ({"inputs": [body(shape=[-1, 4])]}, "size that is none: -1"),
    ({"inputs": [body(shape=[True, 4])]}, "size that is none: True"),
    ({"inputs": [body(shape=[2**63])]}, "size that is none"),
    ({"inputs": [body(shape=[2**62, 2**62])]}, "has 4 values"),
    ({"inputs": [body(data=3)]}, "data is no list"),
    ({"inputs": [body(data=[1, 2, 3])]}, "has 3 values, [2,2] needs 4"),
    ({"inputs": [body(data=[[1, 2], [3]])]}, "rows of data differ in length"),
    ({"inputs": [body(data=[[1, 2], 3])]}, "nested unlike"),
    ({"inputs": [body(data=[[1, 2, 3, 4]])]}, "nested as [1,4]"),
    ({"inputs": [body(data=[1, 2, 3, "4"])]}, "does not fit into FP32"),
    ({"inputs": [body(datatype="INT8", data=[1, 2, 3, 400])]}, "does not fit into INT8"),
    ({"inputs": [body(datatype="INT8", data=[1, 2, 3, 1.5])]}, "does not fit into INT8"),
    ({"inputs": [body(datatype="BOOL", data=[1, 0, 1, 0])]}, "neither true nor false"),
    ({"inputs": [body(datatype="BYTES", data=["a", "b", "c", 4])]}, "a value is no text"),
    ({"inputs": [body(datatype="FP16", data=[1, 2, 3, 1e9])]}, "does not fit into FP16"),
    ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}, "neither data nor binary"),
    ({"inputs": [body(parameters={"binary_data_size": 4})]}, "both data and binary_data_size"),
    ({"inputs": [body(parameters=[])]}, "parameters of input 'x' must be"),
]


@pytest.mark.parametrize(("given_", "story"), REFUSED, ids=[story for _, story in REFUSED])
def test_a_wrong_body_is_told_what_is_wrong(given_: Any, story: str) -> None:
    data = given_ if isinstance(given_, bytes) else json.dumps(given_).encode()
    with pytest.raises(RequestError) as caught:
        read_request(data, None)
    assert story in str(caught.value)


def binary(*sizes: Any) -> bytes:
    entries = [
        {"name": f"x{i}", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": s}}
        for i, s in enumerate(sizes)
    ]
    return json.dumps({"inputs": entries}).encode()


@pytest.mark.parametrize(
    ("sizes", "raw", "lie", "story"),
    [
        ((4,), b"abc", 0, "binary_data_size is 4, but 3 bytes are left"),
        ((3, 1), b"abc", 0, "binary_data_size is 1, but 0 bytes are left"),
        ((2,), b"abc", 0, "1 bytes of the body belong to no input"),
        ((-1,), b"abc", 0, "binary_data_size is no number of bytes"),
        ((True,), b"abc", 0, "binary_data_size is no number of bytes"),
        ((3.0,), b"abc", 0, "binary_data_size is no number of bytes"),
        ((2**70,), b"abc", 0, "binary_data_size is"),
        ((3,), b"abc", -1, "the request is no JSON"),
        ((3,), b"abc", 1, "the request is no JSON"),
        ((3,), b"abc", 4, "but the body has"),
    ],
)
def test_lengths_that_lie_are_refused(
    sizes: tuple[Any, ...], raw: bytes, lie: int, story: str
) -> None:
    head = binary(*sizes)
    with pytest.raises(RequestError) as caught:
        read_request(head + raw, len(head) + lie)
    assert story in str(caught.value)


def test_raw_inputs_are_views_of_the_body_in_order() -> None:
    head = binary(1, 0, 2)
    whole = bytearray(head + b"abc")
    inputs = sent(read_request(whole, len(head)))
    assert [bytes(one.data) for one in inputs] == [b"a", b"", b"bc"]
    whole[len(head)] = ord("z")
    assert bytes(inputs[0].data) == b"z"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["FP32", "BOOL", "x", "y"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "id",
             "binary_data_size", "binary_data", "binary_data_output"]
        ),
        inner, max_size=6,
    ),
    max_leaves=20,
)  # fmt: skip


def sent(request: HttpRequest) -> list[Tensor]:
    """The inputs that came with the request itself."""
    return [one for one in request.inputs if isinstance(one, Tensor)]


def read(data: bytes, size: int | None) -> HttpRequest | str:
    """The request, or why it is none."""
    try:
        return read_request(data, size)
    except RequestError as error:
        return str(error)


@given(values, st.binary(max_size=64), st.integers(-3, 3))
def test_any_json_is_read_or_refused(value: Any, raw: bytes, lie: int) -> None:
    head = json.dumps(value).encode()
    found = read(head + raw, max(0, len(head) + lie))
    # Nothing is left over and nothing invented: all that followed the JSON is in the inputs.
    if not isinstance(found, str) and not any("data" in one for one in value["inputs"]):
        assert b"".join(bytes(one.data) for one in sent(found)) == raw
    assert found


INPUTS = st.fixed_dictionaries(
    {"name": st.just("x"), "datatype": st.sampled_from(list(DType)),
     "shape": st.lists(st.integers(-1, 3) | st.just(2**62), max_size=3)},
    optional={"data": st.lists(st.integers(-300, 300) | st.floats() | st.booleans(), max_size=4),
              "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)})},
)  # fmt: skip


@given(st.lists(INPUTS, max_size=2), st.binary(max_size=9))
def test_inputs_that_nearly_fit_are_read_or_refused(inputs: list[Any], raw: bytes) -> None:
    head = json.dumps({"inputs": inputs}).encode()
    found = read(head + raw, len(head))
    if isinstance(found, str):
        return
    for one, asked in zip(sent(found), inputs, strict=True):
        if "data" in asked:
            assert is_whole(one)
        else:
            assert one.nbytes == asked["parameters"]["binary_data_size"]


@given(st.binary(max_size=400), st.integers(0, 400) | st.none())
def test_any_bytes_are_read_or_refused(data: bytes, size: int | None) -> None:
    assert isinstance(read(data, size), str)


HEADS = st.lists(
    st.sampled_from(
        [b"POST /v2 HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"Content-Length: 5\r\n",
         b"Content-Length: -1\r\n", b"Content-Length: 99999999999\r\n", b"Connection: close\r\n",
         b"Transfer-Encoding: chunked\r\n", b"Inference-Header-Content-Length: 7\r\n",
         b"Inference-Header-Content-Length: +7\r\n", b"Expect: 100-continue\r\n",
         b"Upgrade: h2\r\n",
         b"Connection: upgrade\r\n", b"\r\n", b"\x00", b" x: y\r\n", b"Host: \xff\r\n"]
    )
    | st.binary(max_size=20),
    max_size=8,
).map(b"".join)  # fmt: skip


@given(HEADS)
def test_any_head_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        head = parse_head(data[: data.find(END) + 4] if END in data else data + END)
        assert 0 <= head.length <= MAX_MESSAGE_BYTES
        assert head.json_bytes is None or head.json_bytes >= 0


def test_what_is_packed_is_bounded_when_unpacked() -> None:
    assert inflate(gzip.compress(b"abc"), "gzip") == b"abc"
    assert inflate(zlib.compress(b"abc"), "deflate") == b"abc"
    bomb = zlib.compressobj(9)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(65)) + bomb.flush()
    for encoding, packed, status in (
        ("deflate", data, 413),
        ("gzip", b"nothing", 400),
        ("gzip", gzip.compress(b"abc")[:-3], 400),
        ("gzip", gzip.compress(b"abc") * 2, 400),
        ("br", b"abc", 415),
    ):
        with pytest.raises(WireError) as caught:
            inflate(packed, encoding)
        assert caught.value.status == status
