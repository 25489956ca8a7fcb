"""Detection: boxes that were found beside those that are true, as F1 at IoU 0.5 and as mAP.

Agreement is F1 as well, with what the source found taken for the truth: it asks for no labels.
Refuses to compare rows that only one side answered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from controller.domain.interval import Interval, metric_change_pts
from controller.domain.quality import F1, MAP, ClassChange
from controller.domain.task import PostName, Task
from controller.intake.dataset_truth import picture_size
from controller.optimize.rows import Array, Rows
from controller.optimize.tasks import coco
from controller.optimize.tasks.boxes import Found, Wholes, overlaps, read_boxes, read_yolo
from controller.optimize.tasks.figures import (
    Figures,
    Keep,
    Metric,
    careful_z,
    figure,
    single_variance,
    worst,
)
from controller.optimize.tasks.text_map import read_db

LEAST_OVERLAP = 0.5
_READ: dict[PostName, Callable[[Sequence[Array], tuple[int, int], Task], list[Found]]] = {
    PostName.BOXES: read_boxes,
    PostName.YOLO: read_yolo,
    PostName.DB: read_db,
}

Truth = Found  # with scores of 1
# Per row: boxes found, boxes true, and how many of them are one another. [rows,3]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DetectionJudge:
    """Satisfies `judge.Judge`. An answer is the boxes of a row."""

    task: Task

    def read(self, found: Sequence[Array], inputs: Sequence[Array]) -> list[Found] | None:
        """The boxes of one call, one `Found` per row; None where the outputs hold none."""
        size = picture_size(tuple(int(side) for side in inputs[0].shape[1:]))
        if self.task.post is None or size is None or not _fit(self.task.post, found):
            return None
        found = [one[..., None] if one.ndim == 2 else one for one in found]
        return _READ[self.task.post](found, size, self.task)

    def figures(self, built: Sequence[Found], source: Sequence[Found], rows: Rows) -> Figures:
        """What the build found beside its source, over the rows that both answered."""
        n = min(len(built), len(source))
        mine, theirs = built[:n], source[:n]
        agreed = figure("", _f1(_counts(mine, theirs)), _f1(_counts(theirs, theirs)), n)
        if rows.boxes is None:
            return Figures(agreement=agreed.value)
        truth = [
            Found(corners, np.ones(len(corners)), classes)
            for corners, classes in rows.boxes.per_row()[:n]
        ]
        sides = _counts(mine, truth), _counts(theirs, truth)
        metrics = [figure(F1, _f1(sides[0]), _f1(sides[1]), n)]
        if coco.is_here():
            most = self.task.whole("most")
            scored = [coco.mean_precision(one, truth, most) for one in (mine, theirs)]
            metrics.append(figure(MAP, scored[0], scored[1], n))
        changes = _by_class(mine, theirs, truth)
        return Figures(
            agreement=agreed.value,
            metrics=tuple(metrics),
            classes=worst(changes),
            classes_judged=len(changes),
        )


def match(found: Found, truth: Found) -> int:
    """How many boxes of ``found`` are a true one of the same class, each true one taken once.

    The likeliest takes first, and of the true ones the one that it overlaps most.
    """
    shared = overlaps(found.corners, truth.corners)
    shared[found.classes[:, None] != truth.classes[None, :]] = 0
    hits = 0
    for place in np.argsort(-found.scores, kind="stable") if len(truth.corners) else ():
        best = int(shared[place].argmax())
        if shared[place, best] >= LEAST_OVERLAP:
            hits += 1
            shared[:, best] = 0
    return hits


def f1_change(built: Counts, source: Counts, z: float | None = None) -> Interval:
    """Points of F1 won by the build on the same rows, every row left out in its turn."""
    n = len(built)
    left = _f1_without(built) - _f1_without(source)
    change = _f1_of(built.sum(axis=0)) - _f1_of(source.sum(axis=0))
    variance = single_variance(left)
    return metric_change_pts(change, variance, n, *([] if z is None else [z]))


def _fit(post: PostName, found: Sequence[Array]) -> bool:
    match post:
        case PostName.BOXES:
            return len(found) > 1 and found[0].ndim == 3 and found[0].shape[2] == 4
        case PostName.YOLO:
            return found[0].ndim == 3 and found[0].shape[1] > 4
        case _:
            return found[0].ndim == 4


def _counts(found: Sequence[Found], truth: Sequence[Found]) -> Counts:
    rows = [
        (len(mine.corners), len(true.corners), match(mine, true))
        for mine, true in zip(found, truth, strict=True)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _f1(counts: Counts) -> Metric:
    return partial(_f1_of_kept, counts)


def _f1_of_kept(counts: Counts, keep: Keep) -> float:
    return _f1_of(counts[keep].sum(axis=0))


def _f1_of(total: NDArray[np.int64]) -> float:
    """2 x matched / (found + true); where there is nothing on either side all is right."""
    found, true, matched = (int(one) for one in total)
    return 2 * matched / (found + true) if found + true else 1.0


def _f1_without(counts: Counts) -> NDArray[np.float64]:
    """F1 with each row left out."""
    found, true, matched = (counts.sum(axis=0) - counts).T
    both = (found + true).astype(np.float64)
    every = np.ones(len(both))
    share: NDArray[np.float64] = np.divide(2 * matched, both, out=every, where=both > 0)
    return share


def _by_class(
    built: Sequence[Found], source: Sequence[Found], truth: Sequence[Found]
) -> list[ClassChange]:
    """F1 of each class over the rows where somebody sees it."""
    classes = np.unique(np.concatenate([one.classes for one in truth])) if truth else ()
    z = careful_z(len(classes))
    changes = []
    for label in classes:
        own = [_only(side, int(label)) for side in (built, source, truth)]
        mine, theirs = _counts(own[0], own[2]), _counts(own[1], own[2])
        seen = (mine[:, :2] + theirs[:, :2]).any(axis=1)
        mine, theirs = mine[seen], theirs[seen]
        changes.append(
            ClassChange(
                int(label),
                100 * _f1_of(mine.sum(axis=0)),
                100 * _f1_of(theirs.sum(axis=0)),
                f1_change(mine, theirs),
                f1_change(mine, theirs, z).high < 0,
            )
        )
    return changes


def _only(side: Sequence[Found], label: int) -> list[Found]:
    found = []
    for one in side:
        own: Wholes = np.flatnonzero(one.classes == label)
        found.append(Found(one.corners[own], one.scores[own], one.classes[own]))
    return found
