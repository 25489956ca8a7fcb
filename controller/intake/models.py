"""What is pushed as a model: finds the format by its first bytes and has it parsed whole.

Decides nothing by file names and opens nothing with a library that could run it.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from controller.domain.model import ModelFormat, Signature, TensorSpec
from controller.domain.preparation import class_places
from controller.errors import InvalidError
from controller.intake.archive import ZIP_MAGIC
from controller.intake.onnx_model import parse_onnx
from controller.intake.safetensors import looks_like_safetensors, parse_safetensors
from controller.intake.torch_export import parse_torch_export
from controller.intake.torchscript import parse_torchscript

MAX_AXES = 8
MAX_NAME = 200
MAX_ROW_BYTES = 256 * 1024**2  # a picture of 3 x 4096 x 4096 FP32 is 192 MiB
MAX_TENSOR_BYTES = 1024**3
_BYTES = {
    **dict.fromkeys(("BOOL", "UINT8", "INT8"), 1),
    **dict.fromkeys(("FP16", "BF16", "UINT16", "INT16"), 2),
    **dict.fromkeys(("FP32", "UINT32", "INT32"), 4),
}

# An entry of the zip's directory, which is at the end: torch.save and torch.jit.save write it.
_PICKLED = re.compile(rb"PK\x01\x02.{42}[^/]{1,200}/data\.pkl", re.DOTALL)
TAIL_BYTES = 64 * 1024

# What other formats begin with, to say what it is instead of "unknown".
_OTHERS = (
    (b"\x80\x02", "a pickle (torch.save)"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
)


class ModelLimits(Protocol):
    """What the caller bounds."""

    @property
    def artifact_bytes(self) -> int:
        """The largest model file that is taken, in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class ParsedModel:
    """A model file that was understood whole."""

    format: ModelFormat
    signature: Signature
    length: int  # bytes of the file as pushed


def parse_model(
    path: Path, limits: ModelLimits, what: str = "", declared: Signature | None = None
) -> ParsedModel:
    """Read a pushed file. ``what`` names it in errors (default: the file's name).

    ``declared`` is what the version's spec says of it: for files that do not say it themselves.
    Raises InvalidError that says what is wrong with the file.
    """
    name = what or path.name
    length = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(16)
        stream.seek(-min(length, TAIL_BYTES), os.SEEK_END)
        tail = stream.read(TAIL_BYTES)
    if not head:
        raise InvalidError(f"{name} is empty")
    kind, stated = _understood(path, limits.artifact_bytes, name, head, tail, length, declared)
    signature = stated or declared
    if signature is None:
        raise InvalidError(
            f"{name} does not say what goes in and what comes out",
            "declare it in the file of --spec: signature: {inputs: [{name: image, dtype: FP32,"
            " shape: [batch, 3, 224, 224]}], outputs: [{name: scores, dtype: FP32, shape:"
            " [batch, 1000]}]}",
        )
    if stated and declared and _shapes_of(stated) != _shapes_of(declared):
        raise InvalidError(
            f"{name} states another signature than the spec declares",
            f"file      {stated.text()}",
            f"declared  {declared.text()}",
        )
    check_size(signature, name)
    return ParsedModel(kind, signature, length)


def _understood(
    path: Path,
    cap_bytes: int,
    name: str,
    head: bytes,
    tail: bytes,
    length: int,
    declared: Signature | None,
) -> tuple[ModelFormat, Signature | None]:
    """What it is, and the signature that it states; None where it states none."""
    if head.startswith(ZIP_MAGIC):
        if _PICKLED.search(tail) and b"/models/" not in tail:
            return _torchscript(path, cap_bytes, name, tail, declared)
        return ModelFormat.TORCH_EXPORT, parse_torch_export(path, cap_bytes, name).signature
    if looks_like_safetensors(head, length):
        parse_safetensors(path, cap_bytes, name)
        return ModelFormat.PYTHON, None
    for magic, meaning in _OTHERS:
        if head.startswith(magic):
            raise InvalidError(
                f"{name} is {meaning}, which is no model format that is taken",
                "push a .pt2 of torch.export.save, an .onnx file, or a .pt of torch.jit.save",
            )
    return ModelFormat.ONNX, parse_onnx(path, cap_bytes, name)


def _torchscript(
    path: Path, cap_bytes: int, name: str, tail: bytes, declared: Signature | None
) -> tuple[ModelFormat, Signature | None]:
    if b"/code/__torch__" not in tail:
        raise InvalidError(
            f"{name} is of torch.save, which writes pickles",
            "make it with torch.export.save(torch.export.export(model, …), FILE)",
        )
    found = parse_torchscript(path, cap_bytes, name)
    told = found.signature or declared
    if told is not None and len(told.inputs) != found.inputs:
        raise InvalidError(
            f"{name} takes {found.inputs} input{'s' if found.inputs != 1 else ''}, the signature"
            f" declares {len(told.inputs)}",
            "inputs are declared in the order of forward's arguments",
        )
    return ModelFormat.TORCHSCRIPT, found.signature


def _shapes_of(signature: Signature) -> list[list[tuple[str, str, tuple[int | None, ...]]]]:
    return [[_shape_of(spec) for spec in side] for side in (signature.inputs, signature.outputs)]


def check_size(signature: Signature, what: str) -> None:
    """InvalidError for tensors that no device could hold; a dynamic axis counts as 1.

    And for names that are shown wherever the model is, and would steer a terminal there.
    """
    for spec in (*signature.inputs, *signature.outputs):
        if len(spec.name) > MAX_NAME or not spec.name.isprintable():
            raise InvalidError(
                f"{what}: {spec.name[:80]!r} cannot name an input or output",
                f"names are printable and at most {MAX_NAME} characters long",
            )
        if len(spec.shape) > MAX_AXES:
            raise InvalidError(
                f"{what}: {spec.name[:80]} has {len(spec.shape)} axes", f"at most {MAX_AXES}"
            )
        width = _BYTES.get(spec.dtype, 8)
        sizes = [axis if isinstance(axis, int) else 1 for axis in spec.shape]
        row = width * math.prod(sizes[1:])
        if row > MAX_ROW_BYTES:
            raise InvalidError(
                f"{what}: one row of {spec.text()} is {_mib(row)}",
                f"at most {_mib(MAX_ROW_BYTES)} are taken; a device has to hold it",
            )
        if row * (sizes[0] if sizes else 1) > MAX_TENSOR_BYTES:
            raise InvalidError(
                f"{what}: {spec.text()} is {_mib(row * sizes[0])} in every call",
                f"at most {_mib(MAX_TENSOR_BYTES)} are taken; export it with a smaller or a"
                " dynamic batch",
            )


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"


def check_labels(count: int, signature: Signature) -> None:
    """InvalidError where so many labels do not name the classes of any class-like output."""
    scores = class_outputs(signature)
    if count and scores and count not in [classes for _, classes in scores]:
        spec, classes = scores[0]
        raise InvalidError(
            f"{count:,} labels for {classes:,} classes: the model's output is {spec.text()}",
            "one label a line, in the order of the scores; empty lines do not count",
        )


def class_outputs(signature: Signature) -> list[tuple[TensorSpec, int]]:
    """Outputs that look like one score per class, with the number of classes."""
    found: list[tuple[TensorSpec, int]] = []
    best = class_places(signature)
    for place, spec in enumerate(signature.outputs):
        if place in best:  # the best of them only: how many there are is not said
            continue
        last = spec.shape[-1] if len(spec.shape) == 2 else None
        if isinstance(last, int) and last > 1 and spec.dtype.startswith(("FP", "BF")):
            found.append((spec, last))
    return found


def check_one_signature(variants: Mapping[str, Signature]) -> Signature:
    """The one signature of all variants; InvalidError shows where two of them differ.

    Dynamic axes count as equal wherever both are dynamic.
    """
    first, *others = variants
    for other in others:
        for side in ("inputs", "outputs"):
            mine: tuple[TensorSpec, ...] = getattr(variants[first], side)
            theirs: tuple[TensorSpec, ...] = getattr(variants[other], side)
            if [_shape_of(spec) for spec in mine] != [_shape_of(spec) for spec in theirs]:
                raise InvalidError(
                    f"variants {first} and {other} differ in their {side}",
                    f"{first}  {', '.join(spec.text() for spec in mine)}",
                    f"{other}  {', '.join(spec.text() for spec in theirs)}",
                    "a version has one signature: put resizing and normalisation into the model",
                )
    return variants[first]


def _shape_of(spec: TensorSpec) -> tuple[str, str, tuple[int | None, ...]]:
    fixed = tuple(axis if isinstance(axis, int) else None for axis in spec.shape)
    return spec.name, spec.dtype, fixed
