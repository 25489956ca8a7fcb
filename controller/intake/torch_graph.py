"""The graph of a `.pt2`: the JSON beside the weights, read without torch.

Builds a clean copy out of what an inference graph needs and refuses the rest: what PyTorch would
evaluate (symbolic expressions, guards), resolve by name (operators) or construct (custom objects,
submodules, pytrees).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller.domain.model import Signature, TensorSpec
from controller.errors import InvalidError
from controller.intake.aten import ATEN_OPERATORS
from controller.intake.torch_values import (
    DTYPES,
    SYMBOL,
    Json,
    MalformedError,
    as_array,
    as_object,
    as_text,
    as_whole,
    check_guard,
    check_symbolic,
    check_tensor_meta,
    load_json,
)

SCHEMA_MAJOR = 8
MAX_DEPTH = 32

_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
_PYTHON = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(max|min|not|int|float|ite|sum)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_PLAIN_ARGUMENTS = frozenset(
    {
        "as_none",
        "as_tensor",
        "as_tensors",
        "as_int",
        "as_ints",
        "as_float",
        "as_floats",
        "as_string",
        "as_strings",
        "as_sym_int",
        "as_sym_ints",
        "as_scalar_type",
        "as_memory_format",
        "as_layout",
        "as_device",
        "as_bool",
        "as_bools",
        "as_sym_bool",
        "as_sym_bools",
        "as_optional_tensor",
        "as_optional_tensors",
        "as_sym_float",
        "as_sym_floats",
        "as_complex",
        "as_nested_tensors",
        "as_int_lists",
        "as_float_lists",
    }
)
_PYTREE_NODES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", None})


@dataclass(frozen=True, slots=True)
class TorchGraph:
    """The clean JSON (no trace of the author's machine, no guards) and the model's signature."""

    document: Json
    signature: Signature


def parse_graph(data: bytes, what: str) -> TorchGraph:
    """Read ``models/model.json``. Raises InvalidError that begins with ``what``."""
    try:
        return _GraphParser(what).parse(load_json(data, f"{what}: models/model.json"))
    except MalformedError as error:
        raise InvalidError(f"{what} holds {error}") from error
    except (KeyError, ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is malformed: {error}") from error


class _GraphParser:
    def __init__(self, what: str) -> None:
        self._what = what
        self._tensors: dict[str, Mapping[str, object]] = {}
        self._axis_names: dict[str, str] = {}

    def parse(self, top: Json) -> TorchGraph:
        version = as_object(top.get("schema_version"))
        if version.get("major") != SCHEMA_MAJOR:
            raise self._error(
                f"written in format {version.get('major')}, this controller reads {SCHEMA_MAJOR}",
                "save it again with PyTorch 2.9 or newer",
            )
        self._only(
            top,
            "the program",
            "graph_module opset_version range_constraints "
            "schema_version verifiers torch_version guards_code",
        )
        module = as_object(top.get("graph_module"))
        self._only(
            module,
            "the graph module",
            "graph signature module_call_graph metadata treespec_namedtuple_fields",
        )
        if module.get("treespec_namedtuple_fields"):
            raise self._error("takes or returns named tuples", "use plain tuples or dictionaries")
        for guard in as_array(top.get("guards_code", [])):
            check_guard(guard)
        graph = self._graph(as_object(module.get("graph")))
        call = self._call(module)
        specs, inputs, outputs = self._bindings(as_object(module.get("signature")))
        signature = Signature(
            tuple(self._spec(name, name) for name in inputs),
            self._outputs(outputs, call),
        )
        document: Json = {
            "graph_module": {
                "graph": graph,
                "signature": specs,
                "module_call_graph": [{"fqn": "", "signature": call}],
                "metadata": {},
                "treespec_namedtuple_fields": {},
            },
            "opset_version": self._numbers(top.get("opset_version")),
            "range_constraints": self._ranges(top.get("range_constraints")),
            "schema_version": {key: as_whole(version.get(key)) for key in ("major", "minor")},
            "verifiers": ["TRAINING"],
            "torch_version": as_text(top.get("torch_version")),
            "guards_code": [],
        }
        return TorchGraph(document, signature)

    # ---- the graph ----------------------------------------------------------------------------

    def _graph(self, graph: Json) -> Json:
        self._only(
            graph,
            "the graph",
            "inputs outputs nodes tensor_values sym_int_values "
            "sym_bool_values is_single_tensor_return custom_obj_values sym_float_values",
        )
        if graph.get("custom_obj_values"):
            raise self._error("carries custom objects", "only tensors and numbers are taken")
        for name, meta in as_object(graph.get("tensor_values")).items():
            check_tensor_meta(meta)
            self._tensors[name] = as_object(meta)
        for kind in ("sym_int_values", "sym_bool_values", "sym_float_values"):
            for value in as_object(graph.get(kind, {})).values():
                check_symbolic(value)
        clean = {key: graph[key] for key in graph if key != "nodes"}
        clean["inputs"] = [self._argument(arg) for arg in as_array(graph.get("inputs"))]
        clean["outputs"] = [self._argument(arg) for arg in as_array(graph.get("outputs"))]
        clean["nodes"] = [self._node(node) for node in as_array(graph.get("nodes"))]
        return clean

    def _node(self, value: object) -> Json:
        node = as_object(value)
        self._only(
            node, "a node", "target inputs outputs metadata is_hop_single_tensor_return name"
        )
        target = as_text(node.get("target"))
        aten = _ATEN.fullmatch(target)
        known = aten is not None and (
            aten[1] in ATEN_OPERATORS or aten[1].removesuffix("_") in ATEN_OPERATORS
        )
        if not known and not _PYTHON.fullmatch(target):
            raise self._error(
                f"uses the operator {target[:80]!r}",
                "only PyTorch's own inference operators (torch.ops.aten) are taken",
                "custom operators, control flow and nested contexts have to go before the export",
            )
        inputs: list[object] = []
        for item in as_array(node.get("inputs")):
            named = as_object(item)
            self._only(named, "an argument", "name arg kind")
            if named.get("name") in ("training", "train") and named.get("arg") == {"as_bool": True}:
                raise self._error(
                    f"was exported in training mode ({target})",
                    "call .eval() on the model before the export",
                )
            inputs.append({**named, "arg": self._argument(named.get("arg"))})
        return {
            "target": target,
            "inputs": inputs,
            "outputs": [self._argument(item) for item in as_array(node.get("outputs"))],
            # Stack traces of the author's machine, module paths, names to be resolved: not needed.
            "metadata": {},
            "is_hop_single_tensor_return": node.get("is_hop_single_tensor_return"),
            "name": node.get("name"),
        }

    def _argument(self, value: object) -> Json:
        argument = as_object(value)
        if len(argument) != 1:
            raise self._error("holds an argument of no known kind")
        ((kind, content),) = argument.items()
        if kind not in _PLAIN_ARGUMENTS:
            raise self._error(
                f"holds an argument of kind {kind[:40]!r}", "only tensors and numbers are taken"
            )
        if kind == "as_device" and as_object(content).get("type") not in ("cpu", "meta"):
            raise self._error(
                f"is bound to the device {as_object(content).get('type')!r}",
                "move the model and its inputs to the CPU before the export",
            )
        self._plain(content, MAX_DEPTH)
        return argument

    def _plain(self, value: object, depth: int) -> None:
        """Arguments are shallow data; a symbolic expression may not hide in them."""
        if depth == 0:
            raise self._error("holds arguments nested too deep")
        if isinstance(value, dict):
            if "expr_str" in value:
                check_symbolic({"as_expr": value})
            for item in value.values():
                self._plain(item, depth - 1)
        elif isinstance(value, list):
            for item in value:
                self._plain(item, depth - 1)

    # ---- what goes in and comes out -----------------------------------------------------------

    def _bindings(self, signature: Json) -> tuple[Json, list[str], list[str]]:
        self._only(signature, "the signature", "input_specs output_specs")
        inputs: list[str] = []
        for item in as_array(signature.get("input_specs")):
            ((kind, content),) = self._single(item)
            if kind == "user_input":
                inputs.append(self._tensor_name(as_object(content).get("arg"), "an input"))
            elif kind not in ("parameter", "buffer", "tensor_constant"):
                raise self._error(f"has an input of kind {kind[:40]!r}", "inputs must be tensors")
        outputs: list[str] = []
        for item in as_array(signature.get("output_specs")):
            ((kind, content),) = self._single(item)
            if kind != "user_output":
                raise self._error(
                    f"returns {kind[:40]!r} beside its results",
                    "it changes its own state: call .eval() on the model before the export",
                )
            outputs.append(self._tensor_name(as_object(content).get("arg"), "an output"))
        if not inputs or not outputs:
            raise self._error("has no inputs or no outputs")
        return signature, inputs, outputs

    def _single(self, item: object) -> tuple[tuple[str, object]]:
        spec = as_object(item)
        if len(spec) != 1:
            raise self._error("holds an input or output of no known kind")
        return (next(iter(spec.items())),)

    def _tensor_name(self, argument: object, which: str) -> str:
        name = as_object(as_object(argument).get("as_tensor")).get("name")
        if not isinstance(name, str) or name not in self._tensors:
            raise self._error(f"has {which} that is no tensor", "only tensors go in and out")
        return name

    def _spec(self, tensor: str, name: str) -> TensorSpec:
        meta = self._tensors[tensor]
        shape: list[int | str] = []
        for axis, size in enumerate(as_array(meta["sizes"])):
            fixed = as_object(size).get("as_int")
            if isinstance(fixed, int):
                shape.append(fixed)
                continue
            text = as_text(as_object(as_object(size).get("as_expr")).get("expr_str"))
            first = "batch" if axis == 0 and not self._axis_names else ""
            known = self._axis_names.setdefault(text, first or f"dim_{len(self._axis_names)}")
            shape.append(known)
        return TensorSpec(name, DTYPES[as_whole(meta["dtype"])][0], tuple(shape))

    def _call(self, module: Json) -> Json:
        for item in as_array(module.get("module_call_graph")):
            entry = as_object(item)
            if entry.get("fqn") == "":
                call = as_object(entry.get("signature"))
                break
        else:
            raise self._error("does not say how it is called")
        for side in ("in_spec", "out_spec"):
            self._pytree(self._spec_tree(call, side), MAX_DEPTH)
        names = as_array(call.get("forward_arg_names") or [])
        return {
            "inputs": [],
            "outputs": [],
            "in_spec": as_text(call.get("in_spec")),
            "out_spec": as_text(call.get("out_spec")),
            "forward_arg_names": [as_text(name) for name in names],
        }

    def _spec_tree(self, call: Json, side: str) -> object:
        try:
            tree = json.loads(as_text(call.get(side)))
        except (ValueError, RecursionError) as error:
            raise self._error(f"has an unreadable {side}: {error}") from error
        if not isinstance(tree, list) or len(tree) != 2 or tree[0] != 1:
            raise self._error(f"has an {side} of an unknown version")
        return tree[1]

    def _pytree(self, value: object, depth: int) -> None:
        node = as_object(value)
        if depth == 0 or node.get("type") not in _PYTREE_NODES:
            raise self._error(
                f"takes or returns a {str(node.get('type'))[:60]}",
                "tensors in plain tuples, lists and dictionaries are taken",
            )
        for child in as_array(node.get("children_spec")):
            self._pytree(child, depth - 1)

    def _outputs(self, tensors: list[str], call: Json) -> tuple[TensorSpec, ...]:
        """Names by what the author wrote: dictionary keys, else ``output`` or ``output_0`` …

        The graph's own names come from operators and differ between variants.
        """
        node = as_object(self._spec_tree(call, "out_spec"))
        children = as_array(node.get("children_spec"))
        if any(as_object(child).get("type") is not None for child in children):
            raise self._error("returns nested results", "return a tensor, a tuple or a dictionary")
        if node.get("type") is None:
            names = ["output"]
        elif node.get("type") == "builtins.dict":
            names = [as_text(key) for key in as_array(json.loads(as_text(node.get("context"))))]
        else:
            names = [f"output_{place}" for place in range(len(children))]
        if len(names) != len(tensors) or len(set(names)) != len(names):
            raise self._error("does not say which result is which")
        return tuple(self._spec(tensor, name) for tensor, name in zip(tensors, names, strict=True))

    # ---- small things -------------------------------------------------------------------------

    def _ranges(self, value: object) -> Json:
        ranges: Json = {}
        for symbol, item in as_object(value or {}).items():
            limits = as_object(item)
            bounds = [limits.get("min_val"), limits.get("max_val")]
            if not SYMBOL.fullmatch(symbol) or any(
                bound is not None and not isinstance(bound, int) for bound in bounds
            ):
                raise self._error(f"has a strange range for {symbol[:40]!r}")
            ranges[symbol] = {"min_val": bounds[0], "max_val": bounds[1]}
        return ranges

    def _numbers(self, value: object) -> Json:
        numbers = as_object(value or {})
        if set(numbers) - {"aten"}:
            raise self._error(f"needs operators of {sorted(set(numbers) - {'aten'})}")
        return {key: as_whole(number) for key, number in numbers.items()}

    def _only(self, value: Json, where: str, known: str) -> None:
        unknown = sorted(set(value) - set(known.split()))
        if unknown:
            raise self._error(f"holds unknown parts in {where}: {', '.join(unknown)[:80]}")

    def _error(self, problem: str, *lines: str) -> InvalidError:
        return InvalidError(f"{self._what} {problem}", *lines)
