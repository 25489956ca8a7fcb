"""The small values inside a `.pt2`'s JSON: numbers, symbols, guards, tensor descriptions.

Checks and evaluates nothing. PyTorch gives symbolic expressions to sympy and compiles guards; both
are therefore held to the few forms that its exporter prints.
"""

import ast
import json
import re
from dataclasses import dataclass

from controller.errors import InvalidError

Json = dict[str, object]

# PyTorch's serialised type number: Open Inference Protocol name, bytes per element.
DTYPES = {
    1: ("UINT8", 1),
    2: ("INT8", 1),
    3: ("INT16", 2),
    4: ("INT32", 4),
    5: ("INT64", 8),
    6: ("FP16", 2),
    7: ("FP32", 4),
    8: ("FP64", 8),
    12: ("BOOL", 1),
    13: ("BF16", 2),
    28: ("UINT16", 2),
    34: ("UINT32", 4),
    35: ("UINT64", 8),
}
STRIDED = 7
MAX_EXPRESSION = 2000
SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

_FUNCTIONS = frozenset(
    {
        "Symbol",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "PythonMod",
        "FloorDiv",
        "CleanDiv",
        "CeilDiv",
        "IntTrueDiv",
        "ModularIndexing",
        "Max",
        "Min",
        "Eq",
        "Ne",
        "Equality",
        "Unequality",
        "GreaterThan",
        "LessThan",
        "StrictGreaterThan",
        "StrictLessThan",
        "And",
        "Or",
        "Not",
        "TruncToInt",
        "FloorToInt",
        "CeilToInt",
        "RoundToInt",
        "ToFloat",
        "Identity",
        "Where",
    }
)
_FLAGS = frozenset(("positive", "integer", "nonnegative", "real", "precision"))
_SHAPES = (
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load),
    *(ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub, ast.Not, ast.And, ast.Or),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)


class MalformedError(Exception):
    """A JSON value of the wrong kind; the parser that meets it says where."""


def as_object(value: object) -> Json:
    """The value as an object with text keys."""
    if not isinstance(value, dict):
        raise MalformedError(f"an object was expected, not {_short(value)}")
    return value


def as_array(value: object) -> list[object]:
    """The value as a list."""
    if not isinstance(value, list):
        raise MalformedError(f"a list was expected, not {_short(value)}")
    return value


def as_text(value: object) -> str:
    """The value as text."""
    if not isinstance(value, str):
        raise MalformedError(f"text was expected, not {_short(value)}")
    return value


def as_whole(value: object) -> int:
    """The value as a whole number that is not negative."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedError(f"a whole number was expected, not {_short(value)}")
    return value


def load_json(data: bytes, where: str) -> Json:
    """A JSON object, or InvalidError naming ``where``."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidError(f"{where} is no JSON object")
    return value


def check_guard(value: object) -> None:
    """A guard may compare sizes of inputs with each other and with numbers, nothing else."""
    tree = _parse(as_text(value), "a guard")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            plain_size = (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in ("size", "stride", "storage_offset")
                and not node.args
            )
            named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
            allowed = (plain_size or named) and not node.keywords
        elif isinstance(node, ast.Attribute):
            allowed = node.attr in ("size", "stride", "storage_offset")
        elif isinstance(node, ast.Name):
            allowed = node.id == "L" or node.id in _FUNCTIONS
        elif isinstance(node, ast.Constant):
            allowed = isinstance(node.value, int) or (
                isinstance(node.value, str) and SYMBOL.fullmatch(node.value) is not None
            )
        else:
            allowed = _is_arithmetic(node) or isinstance(node, ast.Subscript)
        if not allowed:
            raise MalformedError(
                f"a guard that is more than a comparison of sizes: {_short(value)}"
            )


def check_symbolic(value: object) -> None:
    """A size, a number or a truth value: given, or as an expression of symbols."""
    content = as_object(value)
    if len(content) != 1:
        raise MalformedError(f"a size of no known kind: {_short(value)}")
    ((kind, inner),) = content.items()
    if kind in ("as_int", "as_bool", "as_float", "as_name"):
        if not isinstance(inner, int | float | str):
            raise MalformedError(f"a size of no known kind: {_short(value)}")
        return
    if kind != "as_expr":
        raise MalformedError(f"a size of no known kind: {_short(value)}")
    expression = as_text(as_object(inner).get("expr_str"))
    for node in ast.walk(_parse(expression, "a size")):
        if isinstance(node, ast.Call):
            allowed = (
                isinstance(node.func, ast.Name)
                and node.func.id in _FUNCTIONS
                and all(keyword.arg in _FLAGS for keyword in node.keywords)
            )
        elif isinstance(node, ast.Name):
            allowed = SYMBOL.fullmatch(node.id) is not None and (
                node.id in _FUNCTIONS or re.fullmatch(r"[a-z]+\d+|true|false", node.id) is not None
            )
        elif isinstance(node, ast.Constant):
            allowed = isinstance(node.value, int | float) or (
                isinstance(node.value, str) and SYMBOL.fullmatch(node.value) is not None
            )
        else:
            allowed = _is_arithmetic(node) or isinstance(node, ast.keyword)
        if not allowed:
            raise MalformedError(f"a size that is no plain expression: {_short(expression)}")


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What a tensor takes: its elements, and the span of its storage that they reach."""

    numel_bytes: int
    span_bytes: int


def check_tensor_meta(value: object) -> None:
    """A description of a tensor on the CPU, possibly with symbolic sizes."""
    meta = as_object(value)
    if as_whole(meta.get("dtype")) not in DTYPES:
        raise MalformedError(f"a tensor of a type that is not taken: {meta.get('dtype')}")
    if meta.get("layout") != STRIDED:
        raise MalformedError("a sparse tensor")
    device = as_object(meta.get("device")).get("type")
    if device != "cpu":
        raise MalformedError(
            f"a tensor on {_short(device)}: move the model to the CPU before the export"
        )
    for size in (*as_array(meta.get("sizes")), *as_array(meta.get("strides"))):
        check_symbolic(size)
    check_symbolic(meta.get("storage_offset"))


def measure_tensor(value: object) -> TensorMeta:
    """Bytes of a stored tensor; all its sizes must be numbers."""
    check_tensor_meta(value)
    meta = as_object(value)
    sizes = [as_whole(as_object(size).get("as_int")) for size in as_array(meta["sizes"])]
    strides = [as_whole(as_object(stride).get("as_int")) for stride in as_array(meta["strides"])]
    if len(sizes) != len(strides):
        raise MalformedError("a tensor with more sizes than strides")
    numel, last = 1, as_whole(as_object(meta["storage_offset"]).get("as_int"))
    for size, stride in zip(sizes, strides, strict=True):
        numel *= size
        last += (size - 1) * stride
    width = DTYPES[as_whole(meta["dtype"])][1]
    return TensorMeta(numel * width, (last + 1) * width if numel else 0)


def _parse(text: str, what: str) -> ast.expr:
    if len(text) > MAX_EXPRESSION:
        raise MalformedError(f"{what} of {len(text)} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MalformedError(f"{what} that cannot be read: {_short(text)}") from error


def _is_arithmetic(node: ast.AST) -> bool:
    return isinstance(node, _SHAPES)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
