"""Classification: the best classes of each row, and what of them is right.

Post-processing `softmax` and `top_k` take classes away that an application would not be told: those
beyond the `k` best and those below the threshold. Refuses outputs that are no row of class scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.domain.interval import Interval, paired_difference_pts, share_pct
from controller.domain.quality import ClassChange
from controller.domain.task import CLASSIFY, PostName, Task
from controller.optimize.outputs import Mask
from controller.optimize.rows import Array, Rows
from controller.optimize.tasks.figures import Figures, careful_z, worst

NOT_A_CLASS = -1  # a result with NaN or infinity is wrong whatever the label
TOP = 5

Classes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassJudge:
    """Satisfies `judge.Judge`. An answer is the best classes of a row, the winner first.

    Five of them where there are more than five classes, else the winner alone. ``best`` is the
    place of the output that names the classes of the first one's scores, where the graph itself
    gives only the best of them.
    """

    task: Task = CLASSIFY
    best: int | None = None

    def read(self, found: Sequence[Array], inputs: Sequence[Array]) -> list[Classes] | None:
        """The answers of one call, one per row; None where the first output holds no scores."""
        scores = found[0]
        if self.best is not None:
            return _best_of(scores, found[self.best])
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            return None
        width = TOP if scores.shape[1] > TOP else 1
        # Sorted upside down and stable: of equal scores the first class wins, as argmax has it.
        values = scores.astype(np.float64)
        top: Classes = np.argsort(-values, axis=1, kind="stable")[:, :width]
        finite = np.isfinite(values).all(axis=1)
        top[~finite] = NOT_A_CLASS
        if self.task.post is not None:
            shares = _softmax(values) if self.task.post is PostName.SOFTMAX else values
            told = np.take_along_axis(shares, np.maximum(top, 0), axis=1)
            top[~(told >= self.task.numbers["threshold"])] = NOT_A_CLASS
            top[:, self.task.whole("k") :] = NOT_A_CLASS
        return list(top)

    def figures(self, built: Sequence[Classes], source: Sequence[Classes], rows: Rows) -> Figures:
        """What the build answers beside its source, over the rows that both answered."""
        n = min(len(built), len(source))
        mine, theirs = np.stack(built[:n]), np.stack(source[:n])
        return compare(mine, theirs, rows.y)


def _best_of(scores: Array, classes: Array) -> list[Classes] | None:
    """The answers of a graph that gives them itself, the winner first."""
    if scores.ndim != 2:
        return None
    top: Classes = np.array(classes[:, : TOP if classes.shape[1] >= TOP else 1], np.int64)
    top[~np.isfinite(scores).all(axis=1)] = NOT_A_CLASS
    return list(top)


def compare(built: Classes, source: Classes, labels: Classes | None) -> Figures:
    """Figures over the rows that both sides classified; see `ClassJudge` for the columns."""
    n = min(len(built), len(source))
    built, source = built[:n], source[:n]
    first, of_source = built[:, 0], source[:, 0]
    agreement = share_pct(int(((first == of_source) & (first != NOT_A_CLASS)).sum()), n)
    if labels is None:
        return Figures(agreement=agreement)
    wanted = labels[:n]
    right, source_right = first == wanted, of_source == wanted
    accuracy, source_accuracy, delta = _paired(right, source_right)
    top5 = top5_delta = None
    if min(built.shape[1], source.shape[1]) == TOP:
        hits = ((one == wanted[:, None]).any(axis=1) for one in (built, source))
        top5, _, top5_delta = _paired(*hits)
    changes = _by_class(right, source_right, wanted)
    return Figures(
        accuracy,
        source_accuracy,
        delta,
        agreement,
        top5,
        top5_delta,
        classes=worst(changes),
        classes_judged=len(changes),
    )


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # rows with infinity are no numbers anyway
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return shares


def _paired(right: Mask, source_right: Mask) -> tuple[Interval, Interval, Interval]:
    """Share of the build, share of the source, and the difference row by row."""
    n = len(right)
    return (
        share_pct(int(right.sum()), n),
        share_pct(int(source_right.sum()), n),
        paired_difference_pts(*_moved(right, source_right), n),
    )


def _moved(right: Mask, source_right: Mask) -> tuple[int, int]:
    return int((right & ~source_right).sum()), int((source_right & ~right).sum())


def _by_class(right: Mask, source_right: Mask, labels: Classes) -> list[ClassChange]:
    found = []
    names = np.unique(labels)
    z = careful_z(len(names))
    for label in names:
        own = labels == label
        mine, theirs, n = right[own], source_right[own], int(own.sum())
        moved = _moved(mine, theirs)
        found.append(
            ClassChange(
                int(label),
                100 * float(mine.mean()),
                100 * float(theirs.mean()),
                paired_difference_pts(*moved, n),
                paired_difference_pts(*moved, n, z).high < 0,
            )
        )
    return found
