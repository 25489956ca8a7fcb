"""ONNX files: a full parse of the protobuf, and the signature. Runs no model, follows no reference.

Refuses operators and functions of unknown domains, external data, operators that load code or
other files, tensors that claim other bytes than they carry, and graphs of absurd size.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from controller.domain.model import Signature, TensorSpec
from controller.errors import InvalidError

MIN_OPSET = 11
# What the pinned ONNX Runtime reads; a test asks it. Newer ones would fail in every build.
RUNTIME = "1.32"
MAX_OPSET = 28
MAX_IR = 14
MAX_NODES = 200_000
MAX_DEPTH = 16
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
# Operators of ONNX Runtime that reach outside the file.
REACHING_OUT = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "ATen", "ExternalFile"})
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.FLOAT16: "FP16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.BFLOAT16: "BF16",
}
_PACKED_BITS: dict[int, int] = {
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
}
_WIDTHS = {"8": 8, "16": 16, "32": 32, "64": 64}


def parse_onnx(path: Path, cap_bytes: int, what: str) -> Signature:
    """Read and check an ONNX file. Raises InvalidError that begins with ``what``."""
    length = path.stat().st_size
    if length > cap_bytes:
        raise InvalidError(f"{what} is {length} bytes long", f"at most {cap_bytes} are allowed")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, RecursionError, ValueError) as error:
        raise InvalidError(
            f"{what} is no ONNX model: {error}",
            "push a .pt2 of torch.export.save or an .onnx file, whole",
        ) from error
    if not model.HasField("graph") or not model.opset_import or model.ir_version < 3:
        raise InvalidError(
            f"{what} is neither a torch.export archive nor an ONNX model",
            "push a .pt2 of torch.export.save or an .onnx file",
        )
    functions = _check_domains(model, what)
    _check_graphs(model, functions, what)
    if model.training_info:
        raise InvalidError(f"{what} carries training information", "export it for inference")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise InvalidError(f"{what} breaks the rules of ONNX: {first}") from error
    return _signature(model.graph, what)


def _check_domains(model: ModelProto, what: str) -> frozenset[tuple[str, str]]:
    imports = [*model.opset_import, *(one for f in model.functions for one in f.opset_import)]
    opsets = [entry.version for entry in imports if entry.domain in ("", "ai.onnx")]
    if not opsets or min(opsets) < MIN_OPSET or max(opsets) > MAX_OPSET:
        newest, oldest = max(opsets, default=0), min(opsets, default=0)
        if newest > MAX_OPSET:
            advice = (
                "export it with another one, for example torch.onnx.export(…, opset_version=18)"
            )
        else:
            advice = (
                "older ones cannot be checked against a runtime; raise it first: onnx.save("
                "onnx.version_converter.convert_version(onnx.load(FILE), 18), NEW)"
            )
        raise InvalidError(
            f"{what} uses ONNX opset {newest if newest > MAX_OPSET else oldest}, ONNX Runtime"
            f" {RUNTIME} reads {MIN_OPSET} to {MAX_OPSET}",
            advice,
        )
    if model.ir_version > MAX_IR:
        raise InvalidError(
            f"{what} has ONNX IR version {model.ir_version}, ONNX Runtime {RUNTIME} reads {MAX_IR}",
            "save it with an older release of onnx",
        )
    # An imported domain is only a name (ONNX Runtime's tools import all they know); what counts is
    # what operators and functions use.
    local = {function.domain for function in model.functions}
    foreign = sorted(domain for domain in local - DOMAINS if not domain.startswith("pkg."))
    if foreign:
        raise InvalidError(
            f"{what} defines functions of the domain {foreign[0][:80]!r}",
            f"known are {', '.join(sorted(DOMAINS - {''}))}: custom operators are not taken",
        )
    return frozenset((function.domain, function.name) for function in model.functions)


def _check_graphs(model: ModelProto, functions: frozenset[tuple[str, str]], what: str) -> None:
    for tensor in _graph_tensors(model.graph):
        _check_tensor(tensor, what)
    # Runtimes put a function's nodes in the place of each call: fifteen that call each other four
    # times are a billion nodes in a kilobyte.
    bodies = {(one.domain, one.name): one.node for one in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: Iterable[NodeProto], inside: tuple[tuple[str, str], ...]) -> int:
        count = 0
        for node in _walk_nodes(nodes, MAX_DEPTH, what):
            key = (node.domain, node.op_type)
            if key in bodies and key not in sizes:
                _check_calls(key, inside, what)
                sizes[key] = size_of(bodies[key], (*inside, key))
            count += 1 + sizes.get(key, 0)
            if count > MAX_NODES:
                raise InvalidError(f"{what} has more than {MAX_NODES} operators")
            _check_node(node, functions, what)
        return count

    size_of(model.graph.node, ())
    for key, body in bodies.items():
        if key not in sizes:  # nothing calls it
            sizes[key] = size_of(body, (key,))


def _check_calls(key: tuple[str, str], inside: tuple[tuple[str, str], ...], what: str) -> None:
    if key in inside:
        raise InvalidError(f"{what}: the function {key[1][:80]} calls itself")
    if len(inside) >= MAX_DEPTH:
        raise InvalidError(f"{what} nests functions too deep", f"at most {MAX_DEPTH} are read")


def _check_node(node: NodeProto, functions: frozenset[tuple[str, str]], what: str) -> None:
    if node.domain not in DOMAINS and (node.domain, node.op_type) not in functions:
        raise InvalidError(
            f"{what} uses the operator {node.domain[:60]}.{node.op_type[:60]}",
            f"known domains are {', '.join(sorted(DOMAINS - {''}))}",
        )
    if node.op_type in REACHING_OUT:
        raise InvalidError(
            f"{what} uses the operator {node.op_type}", "it reaches outside the model file"
        )
    for attribute in node.attribute:
        for tensor in (attribute.t, *attribute.tensors):
            _check_tensor(tensor, what)
        sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
        for item in sparse:
            _check_tensor(item.values, what)
            _check_tensor(item.indices, what)
        for graph in (attribute.g, *attribute.graphs):
            for tensor in _graph_tensors(graph):
                _check_tensor(tensor, what)


def _walk_nodes(nodes: Iterable[NodeProto], depth: int, what: str) -> Iterator[NodeProto]:
    """Every node, those of subgraphs too."""
    if depth == 0:
        raise InvalidError(f"{what} nests graphs too deep", f"at most {MAX_DEPTH} are read")
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _walk_nodes(attribute.g.node, depth - 1, what)
            for graph in attribute.graphs:
                yield from _walk_nodes(graph.node, depth - 1, what)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices


def _check_tensor(tensor: TensorProto, what: str) -> None:
    name = tensor.name[:80] or "a constant"
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        raise InvalidError(
            f"{what}: {name} keeps its data in another file",
            "save the model with external_data=False",
        )
    if any(size < 0 for size in tensor.dims):
        raise InvalidError(f"{what}: {name} has a negative size")
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return
    numel = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) * 8
        bits = _PACKED_BITS.get(tensor.data_type) or _bits(tensor.data_type)
        complete = (numel * bits + 7) // 8 * 8 == held
    else:
        held_items = (
            len(tensor.float_data)
            + len(tensor.int32_data)
            + len(tensor.int64_data)
            + len(tensor.double_data)
            + len(tensor.uint64_data)
        )
        complete = held_items in (numel, (numel + 1) // 2, numel * 2)
    if not complete:
        raise InvalidError(
            f"{what}: {name} claims {numel} elements and carries other data",
            "the file is damaged or was tampered with",
        )


def _bits(data_type: int) -> int:
    name = DTYPES.get(data_type, "")
    if name == "BOOL":
        return 8
    digits = "".join(letter for letter in name if letter.isdigit())
    return _WIDTHS.get(digits, 64 if data_type == TensorProto.COMPLEX64 else 128)


def _signature(graph: GraphProto, what: str) -> Signature:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    names: dict[str, str] = {}
    signature = Signature(
        tuple(_spec(value, names, what) for value in inputs),
        tuple(_spec(value, names, what) for value in graph.output),
    )
    if not signature.inputs or not signature.outputs:
        raise InvalidError(f"{what} has no inputs or no outputs")
    return signature


def _spec(value: ValueInfoProto, names: dict[str, str], what: str) -> TensorSpec:
    """One tensor. The first dynamic axis in front is the batch, whatever the exporter called it."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        raise InvalidError(f"{what}: {value.name[:80]} is no tensor of a known type")
    if not kind.HasField("shape"):
        raise InvalidError(
            f"{what}: {value.name[:80]} has no shape", "export the model with shapes"
        )
    shape: list[int | str] = []
    for place, axis in enumerate(kind.shape.dim):
        if axis.HasField("dim_value") and axis.dim_value == 0:
            raise InvalidError(
                f"{what}: axis {place} of {value.name[:80]} has the size 0",
                "a dynamic axis has a name instead, for example batch",
            )
        if axis.HasField("dim_value") and axis.dim_value > 0:
            shape.append(axis.dim_value)
            continue
        label = axis.dim_param or f"{value.name}.{place}"
        first = "batch" if place == 0 and (not names or not axis.dim_param) else ""
        shape.append(names.setdefault(label, first or f"dim_{len(names)}"))
    return TensorSpec(value.name, DTYPES[kind.elem_type], tuple(shape))
