"""TorchScript archives as devices take them: written in one form, and checked as bytes.

A TorchScript archive is a program. One that this module takes is straight-line code over operators
that only compute (the list of `controller.intake.aten`): it opens no file, loads nothing, loops
never. Refuses other members than these, packed ones, links, and code of any other shape. torch is
not imported: workers check with it what a job left.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.intake.archive import open_archive
from controller.intake.aten import ATEN_OPERATORS

MAX_BYTES = 2 * 1024**3
MAX_CODE_BYTES = 16 * 1024**2
MARK, CODE = "archive/extra/lighterman.json", "archive/code/__torch__/lighterman.py"
_NEEDED = frozenset({"archive/version", "archive/byteorder", "archive/data.pkl", MARK, CODE})
_CONSTANTS = re.compile(r"archive/(constants\.pkl|constants/[0-9]{1,6})")
# A class that is registered again gets a new name; a build has one name.
_COUNTED = re.compile(rb"\.___torch_mangle_\d+")
_NOTES = (".debug_pkl", "/.data/serialization_id")
# What tracing writes beside ATen's operators: numbers of shapes, and their arithmetic.
_PLAIN = frozenset({"annotate", "int", "float", "bool"})
_SCALAR = frozenset({"to", "size", "len", "floordiv", "remainder", "neg", "Int", "Float"})
_PRIM = frozenset({"NumToTensor"})
_NODES = (
    *(ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AnnAssign),
    *(ast.Return, ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Load),
    *(ast.Store, ast.Subscript, ast.UnaryOp, ast.USub, ast.keyword),
)


def write(saved: bytes, signature: Signature, target: Path) -> None:
    """Write what PyTorch saved as the archive that ships; equal programs become equal bytes."""
    with zipfile.ZipFile(io.BytesIO(saved)) as source, zipfile.ZipFile(target, "w") as made:
        members = {_plain(name): name for name in source.namelist() if not name.endswith(_NOTES)}
        mark = json.dumps({"schema": 1, **signature.to_json()}, sort_keys=True)
        for name in sorted({*members, MARK}):
            data = mark.encode() if name == MARK else source.read(members[name])
            if name.endswith((".py", "data.pkl")):
                data = _COUNTED.sub(b"", data)
            made.writestr(zipfile.ZipInfo(name), data)


def _plain(name: str) -> str:
    return re.sub(r"/___torch_mangle_\d+", "", name)


def check(path: Path, what: str) -> Signature:
    """The signature that the archive states. InvalidError that begins with ``what``."""
    with open_archive(path, what, MAX_BYTES, frozenset({zipfile.ZIP_STORED})) as archive:
        names = set(archive.entries)
        odd = sorted(name for name in names - _NEEDED if not _CONSTANTS.fullmatch(name))
        if odd or not names >= _NEEDED:
            wrong = [*odd, *sorted(_NEEDED - names)][0]
            raise InvalidError(f"{what} is no TorchScript of ours: {wrong[:80]}")
        code, mark = archive.read(CODE, MAX_CODE_BYTES), archive.read(MARK, 1024**2)
    for said in _wrong(code):
        raise InvalidError(f"{what} holds code that a build has not: {said}")
    try:
        stated = json.loads(mark)
        return Signature.from_json(stated)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidError(f"{what} has no readable mark: {error}") from error


def _wrong(code: bytes) -> Iterator[str]:
    """Whatever is no plain call of an operator that only computes."""
    try:
        # Both parsers, this one and PyTorch's, read printable ASCII without comments alike.
        text = code.decode("ascii")
        if "#" in text or "\\" in text or ";" in text or not text.replace("\n", "").isprintable():
            yield "characters that it needs not"
            return
        tree = ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        yield f"it cannot be read ({type(error).__name__})"
        return
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            yield f"{type(node).__name__} in line {getattr(node, 'lineno', 0)}"
        elif isinstance(node, ast.Call) and not _computes(node.func):
            yield ast.unparse(node.func)[:80]


def _computes(called: ast.expr) -> bool:
    match called:
        case ast.Name(id=name):
            return name in _PLAIN
        case ast.Attribute(value=ast.Name(id="torch"), attr=name):
            return name.removesuffix("_") in ATEN_OPERATORS or name in _SCALAR
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="ops"), attr=space), attr=name):
            plain = name.removesuffix("_") in ATEN_OPERATORS
            return (space == "prim" and name in _PRIM) or (space == "aten" and plain)
        case _:
            return False
