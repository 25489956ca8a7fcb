"""Datasets: `.npz` with `x`, what is true of each row, optional `source` per row. Without pickle.

True is a label `y`, or boxes, or a `target` of any shape (see `dataset_truth`).

Checks headers before any array is allocated. Refuses object arrays, lengths that do not agree,
labels that are no classes, and a split that would put one source on both sides.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from controller.errors import InvalidError
from controller.intake.archive import ZIP_MAGIC, open_archive
from controller.intake.dataset_truth import BOX_ARRAYS, MAX_CLASS, Boxes, check_boxes, check_target

DTYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "uint16": "UINT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
MAX_BYTES = 2 * 1024**3
MAX_ROWS = 1_000_000  # a megabyte of zeros unpacks to a thousand megabytes of rows
CHUNK_BYTES = 64 * 1024**2
MAX_HEADER = 10_000
CALIBRATION_SHARE = 4  # one source in four, at least one
_ARRAYS = {f"{name}.npy": name for name in ("x", "y", "source", "target", *BOX_ARRAYS)}
_HOW = "make it with numpy.savez(FILE, x=…, y=…)"
_PACKINGS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})

Array = NDArray[np.generic]


class DatasetLimits(Protocol):
    """What the caller bounds."""

    @property
    def dataset_bytes(self) -> int:
        """The most bytes a dataset may take, packed and unpacked."""
        ...


@dataclass(frozen=True, slots=True)
class ParsedDataset:
    """What a dataset holds."""

    rows: int
    dtype: str  # Open Inference Protocol name of x
    shape: tuple[int, ...]  # of one row
    labelled: bool
    classes: int  # highest label + 1, 0 without labels
    sources: int  # distinct sources; rows where none are named
    boxes: int = 0
    box_classes: int = 0  # highest class of a box + 1
    boxed: bool = False  # boxes say what is true, be they none at all
    targeted: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """The arrays of a dataset, checked; each has one entry per row, and so have the boxes."""

    x: Array
    y: NDArray[np.int64] | None = None
    source: Array | None = None
    boxes: Boxes | None = None
    target: Array | None = None


@dataclass(frozen=True, slots=True)
class DatasetSplit:
    """What went where."""

    calibration_rows: int
    calibration_sources: int
    evaluation_rows: int
    evaluation_sources: int


def parse_dataset(path: Path, limits: DatasetLimits | None = None, what: str = "") -> ParsedDataset:
    """Read and check a dataset; ``what`` names it in errors (default: the file's name).

    Raises InvalidError that says what is wrong with it.
    """
    found = load_dataset(path, limits.dataset_bytes if limits else MAX_BYTES, what)
    x, y, source, boxes = found.x, found.y, found.source, found.boxes
    return ParsedDataset(
        rows=len(x),
        dtype=DTYPES[x.dtype.name],
        shape=tuple(int(size) for size in x.shape[1:]),
        labelled=y is not None,
        classes=int(y.max()) + 1 if y is not None else 0,
        sources=len(np.unique(source)) if source is not None else len(x),
        boxes=len(boxes.corners) if boxes is not None else 0,
        box_classes=int(boxes.classes.max(initial=-1)) + 1 if boxes is not None else 0,
        boxed=boxes is not None,
        targeted=found.target is not None,
    )


def load_dataset(path: Path, cap_bytes: int = MAX_BYTES, what: str = "") -> Dataset:
    """The arrays, checked. Raises InvalidError."""
    name = what or path.name
    arrays: dict[str, Array] = {}
    with path.open("rb") as stream:
        if stream.read(4) != ZIP_MAGIC:
            raise InvalidError(f"{name} is no .npz file", _HOW)
    with open_archive(path, name, cap_bytes, _PACKINGS) as archive:
        unknown = sorted(set(archive.entries) - set(_ARRAYS))
        if unknown:
            raise InvalidError(
                f"{name} holds {unknown[0][:80]!r}",
                f"a dataset has the arrays {', '.join(_ARRAYS.values())}",
            )
        if "x.npy" not in archive.entries:
            raise InvalidError(f"{name} has no array x", _HOW)
        for entry, key in _ARRAYS.items():
            if entry in archive.entries:
                with archive.open(entry) as stream:
                    size = archive.entries[entry].file_size
                    arrays[key] = _read_array(stream, size, f"{name}: {key}")
    return _check_arrays(arrays, name)


def split_dataset(
    path: Path, calibration_out: Path, evaluation_out: Path, seed: int = 0, what: str = ""
) -> DatasetSplit:
    """Write the calibration and the evaluation part. Every source is on one side only.

    ``what`` names the file in errors. The same file and seed always give the same parts. Raises
    InvalidError for a single source.
    """
    name = what or path.name
    found = load_dataset(path, what=name)
    x = found.x
    keys = found.source if found.source is not None else np.arange(len(x))
    ids, of_row = np.unique(keys, return_inverse=True)
    if len(ids) < 2:
        raise InvalidError(
            f"{name} has one source only",
            "calibration and evaluation may not share a source: add rows of another",
        )
    order = sorted(range(len(ids)), key=lambda place: _spread(ids[place], seed))
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[order[: max(1, len(ids) // CALIBRATION_SHARE)]] = True
    calibration = chosen[of_row]
    for target, chosen_rows in ((calibration_out, calibration), (evaluation_out, ~calibration)):
        rows = np.flatnonzero(chosen_rows)
        parts: dict[str, Array | None] = {
            **{"x": x, "source": keys, "y": found.y, "target": found.target}
        }
        boxes = found.boxes.of_rows(rows).arrays() if found.boxes is not None else {}
        _write(target, {key: one for key, one in parts.items() if one is not None}, rows, boxes)
    in_calibration = int(calibration.sum())
    return DatasetSplit(
        calibration_rows=in_calibration,
        calibration_sources=int(chosen.sum()),
        evaluation_rows=len(x) - in_calibration,
        evaluation_sources=len(ids) - int(chosen.sum()),
    )


def _spread(source: object, seed: int) -> bytes:
    """An order that has nothing to do with how the rows were listed."""
    return hashlib.sha256(f"{seed}:{source}".encode()).digest()


def _write(
    target: Path, parts: dict[str, Array], rows: NDArray[np.intp], whole: dict[str, Array]
) -> None:
    """An npz without the time of day inside, so that its digest depends on the content only.

    A part of the rows at a time: a large dataset is in memory once, not twice. ``whole`` are arrays
    that were chosen already.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for key, array in sorted((parts | whole).items()):
            chosen = np.arange(len(array)) if key in whole else rows
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w") as stream:
                header = {
                    "descr": np.lib.format.dtype_to_descr(array.dtype),
                    "fortran_order": False,
                    "shape": (len(chosen), *array.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(stream, header)
                for some in _chunks(chosen, array):
                    stream.write(np.ascontiguousarray(array[some]).tobytes())


def _chunks(rows: NDArray[np.intp], array: Array) -> Iterator[NDArray[np.intp]]:
    step = max(1, CHUNK_BYTES // max(1, array.nbytes // max(1, len(array))))
    for at in range(0, len(rows), step):
        yield rows[at : at + step]


def _read_array(stream: IO[bytes], length: int, where: str) -> Array:
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream, max_header_size=MAX_HEADER)
    except (ValueError, KeyError, EOFError, SyntaxError) as error:
        raise InvalidError(f"{where} is no plain NumPy array: {error}") from error
    if dtype.hasobject or dtype.names is not None or fortran:
        raise InvalidError(
            f"{where} holds {'objects' if dtype.hasobject else 'records or columns first'}",
            "only plain arrays in row order are read; objects would need pickle",
        )
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize > length:
        raise InvalidError(f"{where} claims the shape {shape} and carries fewer bytes")
    if shape and shape[0] > MAX_ROWS:
        raise InvalidError(f"{where} has {shape[0]:,} rows", f"at most {MAX_ROWS:,} are taken")
    data = stream.read(math.prod(shape) * dtype.itemsize)
    if len(data) != math.prod(shape) * dtype.itemsize or stream.read(1):
        raise InvalidError(f"{where} claims the shape {shape} and carries other bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _check_arrays(arrays: dict[str, Array], what: str) -> Dataset:
    x, source = arrays["x"], arrays.get("source")
    if x.dtype.name not in DTYPES or not x.dtype.isnative:
        raise InvalidError(f"{what}: x has the type {x.dtype}", f"known are {', '.join(DTYPES)}")
    if x.ndim < 2 or 0 in x.shape:
        raise InvalidError(
            f"{what}: x has the shape {x.shape}", "rows first, then the shape of one input"
        )
    if x.dtype.kind == "f" and not all(
        np.isfinite(x[some]).all() for some in _chunks(np.arange(len(x)), x)
    ):
        raise InvalidError(f"{what}: x holds values that are no numbers (NaN or infinite)")
    if source is not None and (source.dtype.kind not in "iuUS" or source.shape != (len(x),)):
        raise InvalidError(
            f"{what}: source has the shape {source.shape} and type {source.dtype}",
            f"one number or text per row is needed, {len(x)} in all",
        )
    labels, boxes = _check_labels(arrays, what), check_boxes(arrays, x, what)
    if labels is not None and boxes is not None:
        raise InvalidError(
            f"{what} has labels y and boxes", "rows have one label each, or boxes: leave one out"
        )
    return Dataset(x, labels, source, boxes, check_target(arrays.get("target"), len(x), what))


def _check_labels(arrays: dict[str, Array], what: str) -> NDArray[np.int64] | None:
    x, y = arrays["x"], arrays.get("y")
    if y is None:
        return None
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise InvalidError(
            f"{what}: y has the shape {y.shape} and type {y.dtype}",
            f"one whole number per row is needed, {len(x)} in all",
        )
    if int(y.min()) < 0 or int(y.max()) > MAX_CLASS:
        raise InvalidError(
            f"{what}: y holds labels from {y.min()} to {y.max()}",
            "a label is the place of its class in the model's scores, from 0 on",
        )
    return y.astype(np.int64)
