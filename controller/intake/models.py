"""What is pushed as a model: finds the format by its first bytes and has it parsed whole.

Decides nothing by file names and opens nothing with a library that could run it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from controller.domain.model import ModelFormat, Signature, TensorSpec
from controller.errors import InvalidError
from controller.intake.archive import ZIP_MAGIC
from controller.intake.onnx_model import parse_onnx
from controller.intake.torch_export import parse_torch_export

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


def parse_model(path: Path, limits: ModelLimits, what: str = "") -> ParsedModel:
    """Read a `.pt2` or ONNX file. ``what`` names it in errors (default: the file's name).

    Raises InvalidError that says what is wrong with it.
    """
    name = what or path.name
    length = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head:
        raise InvalidError(f"{name} is empty")
    if head.startswith(ZIP_MAGIC):
        signature = parse_torch_export(path, limits.artifact_bytes, name).signature
        return ParsedModel(ModelFormat.TORCH_EXPORT, signature, length)
    for magic, meaning in _OTHERS:
        if head.startswith(magic):
            raise InvalidError(
                f"{name} is {meaning}, which is no model format that is taken",
                "push a .pt2 of torch.export.save or an .onnx file",
            )
    return ParsedModel(ModelFormat.ONNX, parse_onnx(path, limits.artifact_bytes, name), length)


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
