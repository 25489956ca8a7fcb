"""Open Inference Protocol messages to tensors and back: the only place that knows both.

Refuses to copy raw contents (a picture that is copied costs as much as all the rest around it). Raw
in gives raw out; typed contents in, typed contents out.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.domain.ports import InferResult, ModelCard
from agent.domain.tensor import DType, Tensor, parse_dtype, texts_of, wire_shape
from agent.errors import RequestError
from agent.serve.desk import Asked
from agent.serve.shared_memory import Place, SharedInput, place_of
from lighterman.oip import inference_pb2 as pb

# Field of InferTensorContents and array type code per element type. FP16 and BF16 have no field.
_TYPED: dict[DType, tuple[str, str]] = {
    DType.BOOL: ("bool_contents", "B"),
    DType.INT8: ("int_contents", "b"),
    DType.INT16: ("int_contents", "h"),
    DType.INT32: ("int_contents", "i"),
    DType.INT64: ("int64_contents", "q"),
    DType.UINT8: ("uint_contents", "B"),
    DType.UINT16: ("uint_contents", "H"),
    DType.UINT32: ("uint_contents", "I"),
    DType.UINT64: ("uint64_contents", "Q"),
    DType.FP32: ("fp32_contents", "f"),
    DType.FP64: ("fp64_contents", "d"),
}


_HAVE_FIELDS = frozenset({*_TYPED, DType.BYTES})

# On the wire: the kind "so many bytes follow", and the field that the pictures are in.
_BYTES_FOLLOW = 2
_VARINT_BITS = 64
_RAW_CONTENTS = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class Received:
    """A request without its raw contents, which stay where they were received."""

    request: pb.ModelInferRequest
    raw: tuple[memoryview, ...]


def receive(data: bytes) -> Received:
    """Read a request as it came; DecodeError of protobuf where it is none."""
    view = memoryview(data)
    raw: list[memoryview] = []
    rest: list[memoryview] = []
    at, kept_from = 0, 0
    try:
        while at < len(data):
            began = at
            key, at = _varint(data, at)
            length, at = _varint(data, at)
            if key & 7 != _BYTES_FOLLOW or at + length > len(data):
                break  # nothing that this message has, or cut off: protobuf says what it is
            if key >> 3 == _RAW_CONTENTS:
                raw.append(view[at : at + length])
                rest.append(view[kept_from:began])
                kept_from = at + length
            at += length
        else:
            rest.append(view[kept_from:])
            return Received(pb.ModelInferRequest.FromString(b"".join(rest)), tuple(raw))
    except IndexError:
        pass  # cut off within a number, or no number
    request = pb.ModelInferRequest.FromString(data)
    return Received(request, tuple(memoryview(one) for one in request.raw_input_contents))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _VARINT_BITS:  # or a request of such bytes alone would take hours to read
            raise IndexError


def to_tensors(received: Received) -> tuple[Tensor | SharedInput, ...]:
    """The inputs of a request; RequestError when contents and inputs do not belong together."""
    request, raw = received.request, received.raw
    if any("shared_memory_region" in entry.parameters for entry in request.inputs):
        return _some_shared(received)
    if not raw:
        return tuple(_from_contents(entry) for entry in request.inputs)
    return tuple(_from_raw(request.inputs, raw))


def _some_shared(received: Received) -> tuple[Tensor | SharedInput, ...]:
    """Inputs of which some lie in shared memory: those have no contents."""
    request = received.request
    here = [one for one in request.inputs if "shared_memory_region" not in one.parameters]
    tensors = iter(_from_raw(here, received.raw) if received.raw else map(_from_contents, here))
    found: list[Tensor | SharedInput] = []
    for entry in request.inputs:
        place = _place(entry.parameters, f"input {entry.name!r}")
        if place is None:
            found.append(next(tensors))
            continue
        if entry.HasField("contents"):
            raise RequestError(f"input {entry.name!r} is in shared memory and in the request")
        dtype = parse_dtype(entry.datatype)
        found.append(SharedInput(entry.name, dtype, tuple(entry.shape), place))
    return tuple(found)


def places(request: pb.ModelInferRequest) -> dict[str, Place]:
    """Outputs that go into shared memory."""
    found = {}
    for entry in request.outputs:
        place = _place(entry.parameters, f"output {entry.name!r}")
        if place is not None:
            found[entry.name] = place
    return found


def _place(parameters: Mapping[str, pb.InferParameter], what: str) -> Place | None:
    if "shared_memory_region" not in parameters:
        return None
    given = {}
    for name in ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"):
        if name in parameters:
            given[name] = getattr(
                parameters[name], parameters[name].WhichOneof("parameter_choice") or "", None
            )
    return place_of(given, what)


def _from_raw(
    inputs: Sequence[pb.ModelInferRequest.InferInputTensor], raw: Sequence[memoryview]
) -> list[Tensor]:
    if len(raw) != len(inputs):
        raise RequestError(
            f"{len(raw)} raw_input_contents for {len(inputs)} inputs",
            "give one for each input, in the same order",
        )
    tensors = []
    for entry, data in zip(inputs, raw, strict=True):
        if entry.HasField("contents"):
            raise RequestError(f"input {entry.name!r} has both contents and raw_input_contents")
        tensors.append(Tensor(entry.name, parse_dtype(entry.datatype), tuple(entry.shape), data))
    return tensors


def to_asked(received: Received, since_s: float) -> Asked:
    """The inference that a request wants; RequestError. `since_s`: when it came, monotonic."""
    request = received.request
    return Asked(
        request.model_name,
        request.model_version,
        to_tensors(received),
        wanted_outputs(request),
        since_s,
        places(request),
    )


def wanted_outputs(request: pb.ModelInferRequest) -> tuple[str, ...]:
    """Names of the outputs asked for; empty means all."""
    return tuple(entry.name for entry in request.outputs)


def to_response(received: Received, result: InferResult) -> pb.ModelInferResponse:
    """The answer; its parameters tell which version and rung made it."""
    request = received.request
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=result.version, id=request.id
    )
    response.parameters["lighterman_version"].string_param = result.version
    response.parameters["lighterman_rung"].string_param = result.rung
    taken = places(request)
    typed = any(entry.HasField("contents") for entry in request.inputs)
    typed = typed and all(tensor.dtype in _HAVE_FIELDS for tensor in result.outputs)
    for tensor in result.outputs:
        entry = response.outputs.add(
            name=tensor.name, datatype=tensor.dtype.value, shape=tensor.shape
        )
        place = taken.get(tensor.name)
        if place is not None:
            entry.parameters["shared_memory_region"].string_param = place.region
            entry.parameters["shared_memory_offset"].int64_param = place.offset
            entry.parameters["shared_memory_byte_size"].int64_param = tensor.nbytes
        elif typed:
            _to_contents(tensor, entry.contents)
        else:
            response.raw_output_contents.append(bytes(tensor.data))
    return response


def to_metadata(card: ModelCard) -> pb.ModelMetadataResponse:
    """What a model is; dynamic axes are -1."""
    response = pb.ModelMetadataResponse(
        name=card.model, versions=[card.version], platform=card.platform
    )
    for specs, entries in (
        (card.signature.inputs, response.inputs),
        (card.signature.outputs, response.outputs),
    ):
        for spec in specs:
            entries.add(name=spec.name, datatype=spec.dtype.value, shape=wire_shape(spec))
    response.properties["labels_count"] = str(len(card.labels))
    response.properties["lighterman_rung"] = card.rung
    return response


def _from_contents(entry: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    dtype = parse_dtype(entry.datatype)
    if dtype is DType.BYTES:
        parts = entry.contents.bytes_contents
        data_ = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        return Tensor(entry.name, dtype, tuple(entry.shape), data_)
    if dtype not in _TYPED:
        raise RequestError(
            f"input {entry.name!r}: {dtype} has no typed contents", "send it as raw_input_contents"
        )
    field, code = _TYPED[dtype]
    values: Sequence[int | float] = getattr(entry.contents, field)
    try:
        data = array(code, values)
    except (OverflowError, TypeError) as error:
        raise RequestError(f"input {entry.name!r} does not fit into {dtype}: {error}") from error
    return Tensor(entry.name, dtype, tuple(entry.shape), memoryview(data).cast("B"))


def _to_contents(tensor: Tensor, contents: pb.InferTensorContents) -> None:
    if tensor.dtype is DType.BYTES:
        contents.bytes_contents.extend(text.encode() for text in texts_of(tensor.data))
        return
    field, code = _TYPED[tensor.dtype]
    values = array(code)
    values.frombytes(tensor.data)
    target = getattr(contents, field)
    target.extend(map(bool, values) if tensor.dtype is DType.BOOL else values)
