"""Models, versions and signatures as values.

Refuses names and shapes that could not travel as files or topics.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from controller.errors import InvalidError

# Names become parts of file names, topics and URLs: no separators, no leading dot.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class ModelFormat(StrEnum):
    """What may be pushed."""

    TORCH_EXPORT = "torch_export"
    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    PYTHON = "python"  # weights, and the function that makes the network they belong to


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model and one of its versions."""

    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; a dimension is a positive number or, where dynamic, a name."""

    name: str
    dtype: str  # Open Inference Protocol v2: FP32, UINT8, INT64 ...
    shape: tuple[int | str, ...]

    def text(self) -> str:
        """As people read it: ``image[batch,3,224,224] FP32``."""
        return f"{self.name}[{','.join(str(axis) for axis in self.shape)}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class AxisRange:
    """How large a dynamic axis of an input may be; figures are measured at ``typical``."""

    name: str
    least: int
    most: int
    typical: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes in and what comes out, in order; ``axes`` bounds those that are dynamic."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[AxisRange, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The form stored and signed: lists of ``{"name", "dtype", "shape"}`` per side.

        ``axes`` stands in it only where there are any.
        """
        sides: dict[str, object] = {
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
        }
        bounds = [
            {"name": one.name, "least": one.least, "most": one.most, "typical": one.typical}
            for one in self.axes
        ]
        return {**sides, "axes": bounds} if bounds else sides

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Signature":
        """Read :meth:`to_json`; InvalidError names what is wrong."""
        return cls(_specs(value, "inputs"), _specs(value, "outputs"), _axes(value.get("axes", ())))

    def text(self) -> str:
        """As people read it: inputs, arrow, outputs."""
        return " → ".join(", ".join(s.text() for s in side) for side in (self.inputs, self.outputs))


def parse_name(text: str, what: str = "model") -> str:
    """The name itself, or InvalidError: lower case letters, digits, ``._-``, at most 64."""
    if not NAME.fullmatch(text):
        raise InvalidError(
            f"{text!r} is not a {what} name",
            "lower case letters, digits and ._- , at most 64, letter or digit first",
        )
    return text


def parse_version(text: str) -> str:
    """The version itself, or InvalidError."""
    if not VERSION.fullmatch(text):
        raise InvalidError(
            f"{text!r} is not a version",
            "letters, digits and ._+- , at most 64, for example 1.0.0",
        )
    return text


def parse_ref(text: str) -> ModelRef:
    """``photo:1.0.0`` as a reference; InvalidError says which half is missing or wrong."""
    model, colon, version = text.partition(":")
    if not colon or not version:
        raise InvalidError(
            f"{text!r} names no version", "write NAME:VERSION, for example photo:1.0.0"
        )
    return ModelRef(parse_name(model), parse_version(version))


def _spec_to_json(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _specs(value: Mapping[str, object], side: str) -> tuple[TensorSpec, ...]:
    items = value.get(side)
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise InvalidError(f"signature has no {side}")
    specs = tuple(_spec(item, side) for item in items)
    if len({spec.name for spec in specs}) != len(specs):
        raise InvalidError(f"signature names one of its {side} twice")
    return specs


def _spec(item: object, side: str) -> TensorSpec:
    if not isinstance(item, Mapping):
        raise InvalidError(f"signature.{side} holds something that is no tensor")
    name, dtype, shape = item.get("name"), item.get("dtype"), item.get("shape")
    if not isinstance(name, str) or not name or not isinstance(dtype, str) or not dtype:
        raise InvalidError(f"signature.{side} has a tensor without name or dtype")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise InvalidError(f"signature.{side}: {name} has no shape")
    axes: list[int | str] = []
    for axis in shape:
        dynamic = isinstance(axis, str) and axis != ""
        fixed = isinstance(axis, int) and not isinstance(axis, bool) and axis > 0
        if not dynamic and not fixed:
            raise InvalidError(f"signature.{side}: {name} has the dimension {axis!r}")
        axes.append(axis)
    return TensorSpec(name, dtype, tuple(axes))


def _axes(items: object) -> tuple[AxisRange, ...]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise InvalidError("signature.axes is no list")
    return tuple(_axis_range(item) for item in items)


def _axis_range(item: object) -> AxisRange:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise InvalidError("signature.axes holds something that is no axis")
    sizes = [item.get(key) for key in ("least", "most", "typical")]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in sizes):
        raise InvalidError(f"signature.axes: {item['name']} has sizes that are none")
    least, most, typical = (int(str(one)) for one in sizes)
    return AxisRange(item["name"], least, most, typical)
