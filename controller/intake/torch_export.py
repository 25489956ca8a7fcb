"""`.pt2` files of `torch.export.save`: read as a zip and JSON, never by torch.

A `.pt2` is code (every one holds a pickle of sample inputs). What is stored is a new archive,
written from what was understood: without sample inputs, guards and traces. Refuses pickles
anywhere else, native libraries, extra files and custom objects.
"""

import json
import re
import shutil
import zipfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.intake.archive import READ_BYTES, Archive, open_archive
from controller.intake.torch_graph import parse_graph
from controller.intake.torch_values import (
    Json,
    MalformedError,
    as_object,
    as_text,
    load_json,
    measure_tensor,
)

MAX_JSON_BYTES = 64 * 1024**2
# Stride 0 lets a few stored bytes stand for many; a constant may be broadcast, a bomb may not.
MAX_BROADCAST_BYTES = 64 * 1024**2

_GRAPH = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_CONFIGS = {
    "data/weights/": ("data/weights/model_weights_config.json", re.compile(r"weight_\d{1,9}")),
    "data/constants/": (
        "data/constants/model_constants_config.json",
        re.compile(r"tensor_\d{1,9}"),
    ),
}
_FIXED = {
    "archive_format": b"pt2",
    "archive_version": b"0",
    "byteorder": b"little",
}
_DROPPED = (".data/serialization_id", _SAMPLE_INPUTS)
_VERSION = ".data/version"


@dataclass(frozen=True, slots=True)
class TorchExport:
    """A `.pt2` that was understood whole."""

    signature: Signature
    documents: dict[str, Json]  # the clean JSON files by their name inside
    tensors: tuple[str, ...]  # stored as they are
    root: str


def parse_torch_export(path: Path, cap_bytes: int, what: str) -> TorchExport:
    """Read and check a `.pt2`. Raises InvalidError that begins with ``what``."""
    with _open(path, cap_bytes, what) as archive:
        return _parse(archive, what)


def sanitize_pt2(src: Path, dst: Path, cap_bytes: int = 2 * 1024**3, what: str = "") -> None:
    """Write the `.pt2` that is stored: same graph and weights, no sample, guards or traces.

    The same content always gives the same bytes. Raises InvalidError as ``parse_torch_export``.
    """
    what = what or src.name
    with _open(src, cap_bytes, what) as archive:
        parsed = _parse(archive, what)
        # PyTorch names the inner folder after the file; a fixed name keeps the digest free of it.
        with zipfile.ZipFile(dst, "w", zipfile.ZIP_STORED) as out:
            for name, content in sorted(_FIXED.items()):
                out.writestr(_entry(name), content)
            out.writestr(_entry(_VERSION), b"6\n")
            # Empty means "no sample" to the loader, which then has nothing to unpickle.
            out.writestr(_entry(_SAMPLE_INPUTS), b"")
            for name, document in sorted(parsed.documents.items()):
                out.writestr(_entry(name), json.dumps(document, separators=(",", ":")).encode())
            for name in parsed.tensors:
                with (
                    archive.open(f"{parsed.root}/{name}") as source,
                    out.open(_entry(name), "w", force_zip64=False) as target,
                ):
                    shutil.copyfileobj(source, target, READ_BYTES)


def _open(path: Path, cap_bytes: int, what: str) -> AbstractContextManager[Archive]:
    return open_archive(path, what, cap_bytes, frozenset({zipfile.ZIP_STORED}))


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"model/{name}")


def _parse(archive: Archive, what: str) -> TorchExport:
    root = next(iter(archive.entries)).split("/")[0]
    inside = {name.removeprefix(f"{root}/") for name in archive.entries}
    if f"{root}/archive_format" not in archive.entries:
        raise InvalidError(
            f"{what} is a zip file, but no torch.export archive",
            "make it with torch.export.save(torch.export.export(model, …), FILE)",
        )
    for name, expected in _FIXED.items():
        found = archive.read(f"{root}/{name}", 64).strip() if name in inside else b""
        if found != expected:
            raise InvalidError(f"{what}: {name} is {found!r}, it must be {expected!r}")
    if _GRAPH not in inside:
        raise InvalidError(f"{what} holds no {_GRAPH}")
    graph = parse_graph(archive.read(f"{root}/{_GRAPH}", MAX_JSON_BYTES), what)
    documents = {_GRAPH: graph.document}
    tensors: list[str] = []
    for folder, (config, names) in _CONFIGS.items():
        documents[config], used = _payload(archive, f"{root}/{folder}", f"{root}/{config}", names)
        tensors.extend(f"{folder}{name}" for name in used)
    expected_names = {*_FIXED, *_DROPPED, _VERSION, *documents, *tensors}
    extra = sorted(name for name in inside if name not in expected_names)
    if extra:
        raise InvalidError(
            f"{what} holds more than a graph and its weights: {', '.join(extra)[:120]}",
            "save it without extra files, with one program, from torch.export.save",
        )
    return TorchExport(graph.signature, documents, tuple(tensors), root)


def _payload(
    archive: Archive, folder: str, config: str, names: re.Pattern[str]
) -> tuple[Json, list[str]]:
    """Check a list of stored tensors: each names a plain file that holds what it says."""
    what = archive.what
    if config not in archive.entries:
        raise InvalidError(f"{what} holds no {config.partition('/')[2]}")
    listed = load_json(archive.read(config, MAX_JSON_BYTES), f"{what}: {config}")
    used: dict[str, None] = {}
    clean: Json = {}
    try:
        for key, value in as_object(listed.get("config")).items():
            item = as_object(value)
            file = as_text(item.get("path_name"))
            if item.get("use_pickle") is not False or not names.fullmatch(file):
                raise InvalidError(
                    f"{what}: {key[:80]} is stored as a pickled object ({file[:60]})",
                    "a pickle is a program; only plain tensors are taken",
                )
            info = archive.entries.get(f"{folder}{file}")
            if info is None:
                raise InvalidError(f"{what}: {key[:80]} has no file {file}")
            size = measure_tensor(item.get("tensor_meta"))
            broadcast_cap = max(info.file_size, MAX_BROADCAST_BYTES)
            if size.span_bytes > info.file_size or size.numel_bytes > broadcast_cap:
                raise InvalidError(
                    f"{what}: {key[:80]} claims {size.numel_bytes} bytes, "
                    f"its file {file} holds {info.file_size}"
                )
            used[file] = None
            clean[key] = {
                "path_name": file,
                "is_param": item.get("is_param") is True,
                "use_pickle": False,
                "tensor_meta": item["tensor_meta"],
            }
    except MalformedError as error:
        raise InvalidError(f"{what}: {config} holds {error}") from error
    return {"config": clean}, list(used)
