"""JSON and the binary tensor extension to tensors and back: the only place that knows both.

A request is JSON, followed by raw tensors where `Inference-Header-Content-Length` says how long the
JSON is. Refuses to copy raw tensors, and to guess: lengths, types and shapes are what they are said
to be, or it is the client's fault. Pure functions of bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.domain.ports import InferResult
from agent.domain.tensor import Buffer, Tensor, parse_dtype
from agent.errors import RequestError
from agent.serve.shared_memory import Place, SharedInput, place_of
from agent.serve.values import pack, unpack

# A shape of more axes is no shape; no runtime here takes them.
_MOST_AXES = 32
_LARGEST = 2**63 - 1
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An inference over HTTP. `binary` are outputs wanted as bytes, `binary_rest` all others.

    `places` are of those that go into shared memory.
    """

    id: str
    inputs: tuple[Tensor | SharedInput, ...]
    outputs: tuple[str, ...]
    binary: Mapping[str, bool]
    binary_rest: bool
    places: Mapping[str, Place]


def read_request(body: Buffer, json_bytes: int | None) -> HttpRequest:
    """Read a body whose first `json_bytes` are JSON (None: all). RequestError says why not."""
    view = memoryview(body)
    if json_bytes is not None and json_bytes > len(view):
        raise RequestError(
            f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(view)} bytes"
        )
    head = view if json_bytes is None else view[:json_bytes]
    asked = _object(load_json(head), "the request")
    parameters = _object(asked.get("parameters", {}), "parameters")
    raw = _Raw(view[len(head) :])
    inputs = tuple(_input(entry, raw) for entry in _list(asked.get("inputs"), "inputs"))
    raw.end()
    rest = _flag(parameters, "binary_data_output", False)
    names, binary, places = [], {}, {}
    for entry in _list(asked.get("outputs", []), "outputs"):
        name, is_binary, place = _output(entry, rest)
        names.append(name)
        binary[name] = is_binary
        if place is not None:
            places[name] = place
    id_ = asked.get("id", "")
    if not isinstance(id_, str):
        raise RequestError("id is no text")
    return HttpRequest(id_, inputs, tuple(names), binary, rest, places)


def load_json(text: Buffer) -> Any:
    """The value of a JSON text; RequestError where it is none."""
    try:
        return json.loads(bytes(text))
    except RecursionError:
        raise RequestError("the JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, no JSON, a number of thousands of digits
        raise RequestError(f"the request is no JSON: {error}") from None


class _Raw:
    """What follows the JSON, taken piece by piece."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def take(self, size: int, name: str) -> memoryview:
        left = len(self._view) - self._at
        if size > left:
            raise RequestError(
                f"input {name!r}: binary_data_size is {size}, but {left} bytes are left of the body"
            )
        self._at += size
        return self._view[self._at - size : self._at]

    def end(self) -> None:
        left = len(self._view) - self._at
        if left:
            raise RequestError(f"{left} bytes of the body belong to no input")


def _output(entry: Any, rest: bool) -> tuple[str, bool, Place | None]:
    """Name, whether it is wanted as bytes, and its place in shared memory."""
    output = _object(entry, "an output")
    name = _text(output, "name", "an output")
    wanted = _object(output.get("parameters", {}), f"parameters of output {name!r}")
    if "classification" in wanted:
        raise RequestError(
            f"output {name!r}: classification is not offered", "leave it out and rank here"
        )
    place = place_of(wanted, f"output {name!r}")
    return name, _flag(wanted, "binary_data", rest), place


def _input(entry: Any, raw: _Raw) -> Tensor | SharedInput:
    given = _object(entry, "an input")
    name = _text(given, "name", "an input")
    dtype = parse_dtype(_text(given, "datatype", f"input {name!r}"))
    shape = _shape(given.get("shape"), name)
    parameters = _object(given.get("parameters", {}), f"parameters of input {name!r}")
    size = parameters.get("binary_data_size")
    place = place_of(parameters, f"input {name!r}")
    if place is not None:
        if "data" in given or size is not None:
            raise RequestError(f"input {name!r} is in shared memory and in the request")
        return SharedInput(name, dtype, shape, place)
    if size is None:
        if "data" not in given:
            raise RequestError(f"input {name!r} has neither data nor binary_data_size")
        return Tensor(name, dtype, shape, pack(name, dtype, shape, given["data"]))
    if "data" in given:
        raise RequestError(f"input {name!r} has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise RequestError(f"input {name!r}: binary_data_size is no number of bytes")
    return Tensor(name, dtype, shape, raw.take(size, name))


def _shape(given: Any, name: str) -> tuple[int, ...]:
    if not isinstance(given, list) or len(given) > _MOST_AXES:
        raise RequestError(f"input {name!r}: shape is no list of at most {_MOST_AXES} sizes")
    for size in given:
        # A bool is an int in Python, and no size.
        if type(size) is not int or not 0 <= size <= _LARGEST:
            raise RequestError(f"input {name!r}: shape has a size that is none: {size!r:.40}")
    return tuple(given)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{what} must be a list", "see the Open Inference Protocol v2")
    return value


def _text(value: Mapping[str, Any], key: str, what: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise RequestError(f"{what} has no {key}")
    return found


def _flag(value: Mapping[str, Any], key: str, default: bool) -> bool:
    found = value.get(key, default)
    if not isinstance(found, bool):
        raise RequestError(f"{key} must be true or false")
    return found


@dataclass(frozen=True, slots=True)
class HttpResult:
    """The body of an answer in pieces; `json_bytes` is set when raw tensors follow the JSON."""

    parts: Sequence[Buffer]
    json_bytes: int | None


def write_result(model: str, request: HttpRequest, result: InferResult) -> HttpResult:
    """The answer to a request; outputs are raw or JSON as each was asked for."""
    outputs: list[dict[str, Any]] = []
    raw: list[Buffer] = []
    for tensor in result.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.dtype.value,
            "shape": tensor.shape,
        }
        place = request.places.get(tensor.name)
        if place is not None:
            entry["parameters"] = {
                "shared_memory_region": place.region,
                "shared_memory_offset": place.offset,
                "shared_memory_byte_size": tensor.nbytes,
            }
        elif request.binary.get(tensor.name, request.binary_rest):
            entry["parameters"] = {"binary_data_size": tensor.nbytes}
            raw.append(tensor.data)
        else:
            entry["data"] = unpack(tensor)
        outputs.append(entry)
    body: dict[str, Any] = {
        "model_name": model,
        "model_version": result.version,
        "parameters": {"lighterman_version": result.version, "lighterman_rung": result.rung},
        "outputs": outputs,
    }
    if request.id:
        body["id"] = request.id
    head = dump_json(body)
    return HttpResult([head, *raw], len(head) if raw else None)


def dump_json(value: Any) -> bytes:
    """Compact UTF-8. What is no number in JSON was taken out before."""
    return _to_json(value).encode("utf-8", "replace")
