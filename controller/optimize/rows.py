"""Rows of a dataset as a model takes them. Refuses rows of another shape than the model's input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.domain.model import AxisRange, Signature, TensorSpec
from controller.errors import InvalidError
from controller.intake.dataset import load_dataset
from controller.intake.dataset_truth import Boxes

NUMPY_TYPES = {
    "FP32": "float32",
    "FP16": "float16",
    "FP64": "float64",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "BOOL": "bool",
}

BATCH = 4  # more is no faster for vision models and takes memory that slow ones need

# Sizes of dynamic axes that nobody declared: of pictures, and of anything else.
PICTURE, FEW = 224, 8
CHANNELS = (1, 3, 4)

Array = NDArray[np.generic]
Feed = tuple[list[Array], int]  # the inputs of one call, and how many of its rows are real


@dataclass(frozen=True, slots=True)
class Rows:
    """A dataset for a model with one input; converted to the input's type batch by batch."""

    x: Array
    y: NDArray[np.int64] | None
    dtype: str
    batch: int  # rows per call
    fixed: bool = False  # the model takes exactly so many
    boxes: Boxes | None = None
    target: Array | None = None

    def __len__(self) -> int:
        return len(self.x)

    def feeds(self, size: int = 0) -> Iterator[Feed]:
        """Calls over all rows in order; of ``size`` rows each where the model takes any number."""
        return (([batch], real) for batch, real in self.batches(size))

    def batches(self, size: int = 0) -> Iterator[tuple[Array, int]]:
        """Consecutive batches in order, and how many rows of each are real.

        The last one is padded where the model takes a fixed number of rows.
        """
        step = self.batch if self.fixed or not size else size
        for start in range(0, len(self.x), step):
            part = self.x[start : start + step].astype(self.dtype)
            real = len(part)
            if self.fixed and real < step:
                part = np.concatenate([part, np.repeat(part[-1:], step - real, axis=0)])
            yield part, real


def load_rows(path: Path, signature: Signature, seed: int) -> Rows:
    """Read a dataset for a model, in an order that mixes its sources, the same for the same seed.

    Raises InvalidError when the rows do not fit the model.
    """
    if len(signature.inputs) != 1:
        raise InvalidError(
            f"the model has {len(signature.inputs)} inputs, a dataset has one",
            "build it without a dataset, or give the model one input",
        )
    spec = signature.inputs[0]
    found = load_dataset(path, what="the dataset")
    x, y = found.x, found.y
    if not _fits(x.shape[1:], spec):
        raise InvalidError(
            f"the dataset's rows are {list(x.shape[1:])}, the model wants {spec.text()}",
            "prepare the rows as the model takes them, or put the resizing into the model",
        )
    kind = numpy_type(spec)
    if x.dtype.kind == "f" and np.dtype(kind).kind in "iu":
        raise InvalidError(
            f"the dataset's rows are {x.dtype}, the model wants {spec.text()}",
            "rounded to whole numbers they would be other pictures: push them as applications send"
            " them",
        )
    order = np.random.default_rng(seed).permutation(len(x))
    first = spec.shape[0]
    batch, fixed = (first, True) if isinstance(first, int) else (BATCH, False)
    return Rows(
        x[order],
        y[order] if y is not None else None,
        kind,
        batch,
        fixed,
        found.boxes.of_rows(order) if found.boxes is not None else None,
        found.target[order] if found.target is not None else None,
    )


def numpy_type(spec: TensorSpec) -> str:
    """NumPy's name of a tensor's type; InvalidError where it has none."""
    if spec.dtype not in NUMPY_TYPES:
        raise InvalidError(f"{spec.name} has the type {spec.dtype}, which cannot be evaluated")
    return NUMPY_TYPES[spec.dtype]


def sample_inputs(signature: Signature, batch: int, seed: int) -> list[Array]:
    """Inputs of the right shape and type, for timing and for tracing."""
    random = np.random.default_rng(seed)
    samples: list[Array] = []
    for spec in signature.inputs:
        kind = numpy_type(spec)
        shape = sizes_of(spec, batch, signature.axes)
        values = random.random(shape) if kind.startswith("float") else np.zeros(shape)
        samples.append(np.asarray(values, kind))  # without axes NumPy gives a number
    return samples


def sample_feeds(signature: Signature, count: int, seed: int) -> Iterator[Feed]:
    """Generated rows, where there is no dataset: pictures of 0–1 and of 0–255 in turn.

    Whole numbers stay 0 (they may be places in a table), but for pictures of bytes.
    """
    batch = next((a for s in signature.inputs for a in s.shape[:1] if isinstance(a, int)), BATCH)
    random = np.random.default_rng(seed)
    for number in range(-(-count // batch)):
        scale = (1.0, 255.0)[number % 2]
        feed: list[Array] = []
        for spec in signature.inputs:
            kind, shape = numpy_type(spec), sizes_of(spec, batch, signature.axes)
            picture = kind == "uint8" and len(shape) > 2
            if kind.startswith("float"):
                feed.append(np.asarray(random.random(shape) * scale, kind))
            else:
                feed.append(np.asarray(random.integers(0, 256 if picture else 1, shape), kind))
        yield feed, batch


def rows_of(inputs: list[Array]) -> int:
    """Rows of one call."""
    return len(inputs[0]) if inputs[0].ndim else 1


def sizes_of(spec: TensorSpec, batch: int, axes: Sequence[AxisRange] = ()) -> list[int]:
    """A shape with numbers; the batch is the first axis and whatever has its name.

    Other dynamic axes have their typical size; where none is declared, that of a usual picture.
    """
    typical = {one.name: one.typical for one in axes}
    picture = len(spec.shape) == 4 and any(axis in CHANNELS for axis in spec.shape[1:])
    usual = PICTURE if picture else FEW
    return [
        axis
        if isinstance(axis, int)
        else batch
        if place == 0 or axis == "batch"
        else typical.get(axis, usual)
        for place, axis in enumerate(spec.shape)
    ]


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    wanted = spec.shape[1:]
    return len(shape) == len(wanted) and all(
        not isinstance(axis, int) or axis == size for axis, size in zip(wanted, shape, strict=True)
    )
