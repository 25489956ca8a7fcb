"""Requests against signatures: what fits, and what is said when it does not."""

import pytest

from agent.domain.tensor import (
    AxisRange,
    Buffer,
    DType,
    Signature,
    Tensor,
    TensorSpec,
    check_request,
    parse_dtype,
    typical_shape,
    wire_shape,
)
from agent.errors import RequestError

IMAGE = TensorSpec("image", DType.FP32, ("batch", 3, None))
MASK = TensorSpec("mask", DType.UINT8, ("batch",))
SIGNATURE = Signature((IMAGE, MASK), (TensorSpec("scores", DType.FP32, ("batch", 10)),))


def image(batch: int = 2, data: Buffer | None = None) -> Tensor:
    return Tensor("image", DType.FP32, (batch, 3, 4), bytes(batch * 48) if data is None else data)


def mask(batch: int = 2) -> Tensor:
    return Tensor("mask", DType.UINT8, (batch,), bytearray(batch))


def test_a_fitting_request_passes_with_every_kind_of_buffer() -> None:
    check_request(SIGNATURE, [image(), mask()], ["scores"])
    wide = memoryview(bytes(96)).cast("f")
    check_request(SIGNATURE, [mask(), image(data=wide)])  # type: ignore[arg-type]
    check_request(SIGNATURE, [image(0), mask(0)])


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([image()], [], "missing input: mask"),
        ([image(), image(), mask()], [], "'image' is given twice"),
        ([image(), mask(), Tensor("x", DType.BOOL, (1,), b"1")], [], "'x' is unknown"),
        ([image(), mask(3)], [], "axis 'batch' is 2 in input 'image' but 3 in 'mask'"),
        ([image(data=b"123"), mask()], [], "has 3 bytes, FP32 [2,3,4] needs 96"),
        ([Tensor("image", DType.FP64, (2, 3, 4), b""), mask()], [], "is FP64, expected FP32"),
        ([Tensor("image", DType.FP32, (2, 4, 4), b""), mask()], [], "expected [batch,3,-1]"),
        ([Tensor("image", DType.FP32, (2, 3), b""), mask()], [], "has shape [2,3]"),
        ([Tensor("image", DType.FP32, (-2, 3, -4), bytes(96)), mask()], [], "[-2,3,-4]"),
        ([image(), mask()], ["boxes"], "output 'boxes' is unknown"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    inputs: list[Tensor], outputs: list[str], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(SIGNATURE, inputs, outputs)
    assert message in str(caught.value)


def test_types_have_sizes_and_unknown_ones_are_named() -> None:
    assert {d: d.item_bytes for d in DType}[DType.FP16] == 2
    assert parse_dtype("INT64") is DType.INT64
    with pytest.raises(RequestError, match="'FP8' is not supported"):
        parse_dtype("FP8")


def test_dynamic_axes_are_minus_one_on_the_wire() -> None:
    assert wire_shape(IMAGE) == (-1, 3, -1)


def test_bounds_of_dynamic_axes_hold_requests_and_give_sizes_to_try() -> None:
    frame = TensorSpec("frame", DType.UINT8, ("batch", "height", "width", 3))
    axes = (AxisRange("height", 16, 64, 32), AxisRange("width", 16, 64, 48))
    signature = Signature((frame,), (TensorSpec("out", DType.FP32, ("batch", 2)),), axes)
    assert typical_shape(signature, frame) == (1, 32, 48, 3)

    def sent(*size: int) -> Tensor:
        return Tensor("frame", DType.UINT8, (2, *size, 3), bytes(2 * size[0] * size[1] * 3))

    check_request(signature, [sent(16, 64)])
    for size, says in (((15, 64), "has 15 as height, expected 16 to 64"),
                       ((16, 65), "has 65 as width, expected 16 to 64")):  # fmt: skip
        with pytest.raises(RequestError, match=says):
            check_request(signature, [sent(*size)])
