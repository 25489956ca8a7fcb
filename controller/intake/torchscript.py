"""TorchScript archives (traced, scripted) as sources: read as a zip and as text, never by torch.

An archive is a program. Its code is parsed here, and every operator that it names must be one that
only computes (`aten`); it is loaded in the job process alone. What is stored is a new archive
without debugging notes and extra files. Refuses other classes in its pickles than the archive's
own, custom classes and operators, and archives for phones.
"""

import ast
import io
import json
import pickletools
import re
import shutil
import tokenize
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.intake.archive import READ_BYTES, Archive, open_archive
from controller.intake.aten import ATEN_OPERATORS

MARK = "extra/lighterman.json"
MAX_CODE_BYTES = 16 * 1024**2
MAX_PICKLE_BYTES = 64 * 1024**2
_NEEDED = ("data.pkl", "version")
_KEPT = re.compile(
    r"data\.pkl|constants\.pkl|version|byteorder|(data|constants)/[0-9]{1,6}|code/__torch__.*\.py"
)
_DROPPED = re.compile(
    r"\.data/serialization_id|code/.*\.debug_pkl|extra/.*|traced_inputs(\.pkl|/[0-9]{1,6})"
)
_PHONE = ("bytecode.pkl", "mobile_debug_handles.pkl")
# What pickles of tensors and of plain lists name; all else has to be a class of the archive.
_PICKLED = frozenset({"torch._utils", "torch.jit._pickle", "collections", "torch"})
# What compiled code writes beside ATen's operators: sizes, lists, texts, and their arithmetic.
_SCALAR = frozenset(
    """
    append bool ceil clear copy count delete dict extend float floordiv format get get_device
    hash index insert int is_autocast_cpu_enabled is_autocast_enabled is_contiguous
    is_grad_enabled items keys len list lower max min mul_ ndim neg ord pop popitem range
    remainder replace reverse round setdefault size slice sorted split str startswith strip
    tensor to upper update values warn device dtype __contains__ __getitem__ __is__ __isnot__
    __not__ __range_length __derive_index _set_item __interpolate isinstance Int Float Bool
    FloatImplicit IntImplicit ScalarImplicit _nested_tensor_from_mask_left_aligned
    _transformer_encoder_layer_fwd _native_multi_head_attention
    """.split()  # noqa: SIM905
)
_PRIM = frozenset(
    """
    NumToTensor RaiseException TupleIndex abs data device dtype grad is_cpu is_cuda is_ipu is_maia
    is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr is_vulkan is_xla
    is_xpu itemsize layout max min name requires_grad type unchecked_cast unchecked_unwrap_optional
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class TorchScript:
    """An archive that was understood whole; ``signature`` None: it states none."""

    signature: Signature | None
    inputs: int  # of its `forward`, without those that have a default
    members: tuple[str, ...]  # what is stored
    root: str


def parse_torchscript(path: Path, cap_bytes: int, what: str) -> TorchScript:
    """Read and check an archive. Raises InvalidError that begins with ``what``."""
    with _open(path, cap_bytes, what) as archive:
        return _parse(archive, what)


def sanitize_torchscript(src: Path, dst: Path, cap_bytes: int, what: str) -> None:
    """Write the archive that is stored; the same content always gives the same bytes."""
    with _open(src, cap_bytes, what) as archive:
        parsed = _parse(archive, what)
        with zipfile.ZipFile(dst, "w", zipfile.ZIP_STORED) as out:
            for name in parsed.members:
                with (
                    archive.open(f"{parsed.root}/{name}") as source,
                    out.open(zipfile.ZipInfo(f"archive/{name}"), "w") as target,
                ):
                    shutil.copyfileobj(source, target, READ_BYTES)


def _open(path: Path, cap_bytes: int, what: str) -> AbstractContextManager[Archive]:
    packings = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
    return open_archive(path, what, cap_bytes, packings)


def _parse(archive: Archive, what: str) -> TorchScript:
    root = next(iter(archive.entries)).split("/")[0]
    inside = sorted(name.removeprefix(f"{root}/") for name in archive.entries)
    for name in _PHONE:
        if name in inside:
            raise InvalidError(f"{what} is an archive for phones ({name})", "use torch.jit.save")
    kept = tuple(name for name in inside if _KEPT.fullmatch(name) or name == MARK)
    odd = [name for name in inside if name not in kept and not _DROPPED.fullmatch(name)]
    missing = [name for name in _NEEDED if name not in inside]
    codes = [name for name in kept if name.endswith(".py")]
    if odd or missing or not codes:
        wrong = f"holds {odd[0][:80]!r}" if odd else f"holds no {(missing or ['code/'])[0]}"
        raise InvalidError(f"{what} is no TorchScript of torch.jit.save: it {wrong}")
    trees = {name: _tree(archive, f"{root}/{name}", f"{what}: {name}") for name in codes}
    for name in ("data.pkl", "constants.pkl"):
        if name in kept:
            data = archive.read(f"{root}/{name}", MAX_PICKLE_BYTES)
            _check_pickle(data, f"{what}: {name}")
    main = _main_class(archive.read(f"{root}/data.pkl", MAX_PICKLE_BYTES))
    inputs = _forward_inputs(trees, main, what)
    signature = None
    if MARK in kept:
        signature = _mark(archive.read(f"{root}/{MARK}", 1024**2), what)
    return TorchScript(signature, inputs, kept, root)


def _mark(data: bytes, what: str) -> Signature:
    try:
        return Signature.from_json(json.loads(data))
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidError(f"{what}: {MARK} is no signature: {error}") from error


# ---- pickles ------------------------------------------------------------------------------------


def _globals(data: bytes) -> Iterator[str]:
    """``module name`` of every class that a pickle names; ValueError where it is none."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"{opcode.name}, which the format does not use")


def _check_pickle(data: bytes, where: str) -> None:
    """A pickle in TorchScript is read by a reader of its own; it names what the archive has."""
    try:
        for named in _globals(data):
            module, _, _name = named.partition(" ")
            own = module == "__torch__" or module.startswith("__torch__.")
            if (not own and module not in _PICKLED) or module.startswith("__torch__.torch.classes"):
                raise InvalidError(f"{where} names {named[:80]!r}, which is no part of a model")
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise InvalidError(f"{where} is no pickle of TorchScript: {error}") from error


def _main_class(data: bytes) -> str:
    return next((n.replace(" ", ".") for n in _globals(data) if n.startswith("__torch__")), "")


# ---- code ---------------------------------------------------------------------------------------


def _tree(archive: Archive, entry: str, where: str) -> ast.Module:
    code = archive.read(entry, MAX_CODE_BYTES)
    try:
        text = code.decode("ascii")
        _check_plain(text)
        tree = ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise InvalidError(f"{where} cannot be read as code ({type(error).__name__})") from error
    for line, said in _wrong(tree):
        raise InvalidError(
            f"{where}, line {line}: uses {said[:100]}",
            "only PyTorch's own operators that compute are taken; custom operators and classes,"
            " files, and other processes have to go before it is traced or scripted",
        )
    return tree


def _check_plain(text: str) -> None:
    """Both parsers, this one and PyTorch's, read such text alike; ValueError for any other."""
    if "\\\n" in text or not text.replace("\n", "").isprintable():
        raise ValueError("signs that it needs not")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or token.string == ";":
            raise ValueError("comments, or two statements in a line")


def _wrong(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of whatever is no operator that only computes.

    A bare name that is called is a word of TorchScript or a function of the archive itself: its
    operators all stand behind ``torch`` or ``ops``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = _chain(node)
            if chain and not _computes(chain):
                yield node.lineno, ".".join(chain)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node.lineno, "import"


def _chain(node: ast.expr) -> list[str]:
    """``[torch, add]`` of ``torch.add``; empty where it is an attribute of a value."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _computes(chain: list[str]) -> bool:
    match chain:
        case ["ops", "prim"] | ["ops", "aten"]:
            return True  # a part of a longer chain
        case ["ops", "prim", name]:
            return name in _PRIM
        case ["torch", name] | ["ops", "aten", name]:
            base = name.removesuffix("_")
            return base in ATEN_OPERATORS or base in _SCALAR or name in _SCALAR
        case ["torch", *_] | ["ops", *_]:
            return False
        case ["__torch__", "torch", "classes", *_]:
            return False
        case _:
            return True


def _forward_inputs(trees: dict[str, ast.Module], main: str, what: str) -> int:
    """How many inputs the outermost module's `forward` needs."""
    module, _, name = main.rpartition(".")
    tree = trees.get(f"code/{module.replace('.', '/')}.py")
    for node in tree.body if tree else ():
        if not isinstance(node, ast.ClassDef) or node.name != name:
            continue
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "forward":
                return len(item.args.args) - 1 - len(item.args.defaults)
    raise InvalidError(f"{what} has no forward in {main or 'any class'}", "save the whole module")
