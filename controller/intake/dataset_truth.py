"""What a dataset says is true of each row beside `y`: boxes in a picture, or numbers of any shape.

`boxes` [K,4] are corners (left, top, right, bottom) in pixels of the row's picture, those of the
first row first; `box_class` [K] says what is in each (all 0 where it is absent), `box_count` [rows]
how many boxes each row has. `target` is an array with one entry per row, for a metric of one's own.
Refuses boxes outside of their picture, and counts that do not add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import InvalidError

MAX_CLASS = 10_000_000
BOX_ARRAYS = ("boxes", "box_class", "box_count")
_CHANNELS = (1, 3, 4)
_HOW = "boxes[K,4], box_class[K] and box_count[rows] go together"

Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Wholes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """All boxes of a dataset, those of the first row first."""

    corners: Floats  # [K,4] left, top, right, bottom in pixels
    classes: Wholes  # [K]
    counts: Wholes  # [rows]

    def of_rows(self, rows: NDArray[np.intp]) -> "Boxes":
        """The boxes of these rows, in their order."""
        ends = np.cumsum(self.counts)
        places = [np.arange(ends[row] - self.counts[row], ends[row]) for row in rows]
        chosen = np.concatenate([np.zeros(0, np.int64), *places])
        return Boxes(self.corners[chosen], self.classes[chosen], self.counts[rows])

    def per_row(self) -> list[tuple[Floats, Wholes]]:
        """Corners and classes of each row."""
        cuts = np.cumsum(self.counts)[:-1]
        return list(zip(np.split(self.corners, cuts), np.split(self.classes, cuts), strict=True))

    def arrays(self) -> dict[str, Array]:
        """The form in the file."""
        return {
            "boxes": self.corners.astype(np.float32),
            "box_class": self.classes,
            "box_count": self.counts,
        }


def picture_size(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of a picture of that shape, channels first or last; None for no picture."""
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return shape[1], shape[2]
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return shape[0], shape[1]
    return (shape[0], shape[1]) if len(shape) == 2 else None


def check_boxes(arrays: Mapping[str, Array], x: Array, what: str) -> Boxes | None:
    """The boxes among the arrays, checked; None where there are none. Raises InvalidError."""
    there = [name for name in BOX_ARRAYS if name in arrays]
    if not there:
        return None
    if "boxes" not in arrays or "box_count" not in arrays:
        raise InvalidError(f"{what} has {' and '.join(there)} alone", _HOW)
    corners = _corners(arrays["boxes"], what)
    counts = _wholes(arrays["box_count"], len(x), f"{what}: box_count", "row")
    # Counts that no box stands for are told before they are added up, where they might overflow.
    if int(counts.max()) > len(corners) or int(counts.sum()) != len(corners):
        raise InvalidError(
            f"{what}: box_count does not add up to the {len(corners):,} boxes there are",
            "it says how many of the boxes each row has, in the order of the rows",
        )
    found = arrays.get("box_class")
    classes = np.zeros(len(corners), np.int64)
    if found is not None:
        classes = _wholes(found, len(corners), f"{what}: box_class", "box")
        if len(classes) and int(classes.max()) > MAX_CLASS:
            raise InvalidError(f"{what}: box_class holds {classes.max()}", f"at most {MAX_CLASS}")
    _check_inside(corners, counts, x, what)
    return Boxes(corners, classes, counts)


def check_target(target: Array | None, rows: int, what: str) -> Array | None:
    """One entry of numbers per row. Raises InvalidError."""
    if target is None:
        return None
    if target.dtype.kind not in "iufb" or target.ndim < 1 or len(target) != rows:
        raise InvalidError(
            f"{what}: target has the shape {target.shape} and type {target.dtype}",
            f"numbers are needed, {rows} entries in all",
        )
    if not np.isfinite(target.astype(np.float64)).all():
        raise InvalidError(f"{what}: target holds values that are no numbers (NaN or infinite)")
    return target


def _corners(found: Array, what: str) -> Floats:
    if found.dtype.kind not in "iuf" or found.ndim != 2 or found.shape[1] != 4:
        raise InvalidError(
            f"{what}: boxes has the shape {found.shape} and type {found.dtype}",
            "four numbers per box are needed: left, top, right, bottom in pixels",
        )
    corners = found.astype(np.float64)
    if not np.isfinite(corners).all():
        raise InvalidError(f"{what}: boxes holds values that are no numbers (NaN or infinite)")
    return corners


def _wholes(found: Array, count: int, where: str, each: str) -> Wholes:
    if found.dtype.kind not in "iu" or found.shape != (count,):
        raise InvalidError(
            f"{where} has the shape {found.shape} and type {found.dtype}",
            f"one whole number per {each} is needed, {count} in all",
        )
    if len(found) and int(found.min()) < 0:
        raise InvalidError(f"{where} holds {found.min()}", "it counts from 0 on")
    return found.astype(np.int64)


def _check_inside(corners: Floats, counts: Wholes, x: Array, what: str) -> None:
    size = picture_size(tuple(int(side) for side in x.shape[1:]))
    if size is None:
        raise InvalidError(
            f"{what}: its rows are {list(x.shape[1:])}, which are no pictures",
            "boxes need [channels,height,width] or [height,width,channels]",
        )
    height, width = size
    left, top, right, bottom = corners.T
    for wrong, why in (
        ((right <= left) | (bottom <= top), "has no area: left < right and top < bottom"),
        (
            (left < 0) | (top < 0) | (right > width) | (bottom > height),
            f"is outside of its picture, which is {width} wide and {height} high",
        ),
    ):
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            row = int(np.searchsorted(np.cumsum(counts), place, side="right"))
            sides = ", ".join(f"{side:g}" for side in corners[place])
            raise InvalidError(f"{what}: box {place} of row {row} ({sides}) {why}")
