"""Boxes of a text detector's probability map (DB), upright ones.

By Liao, Wan, Yao, Chen and Bai, "Real-time Scene Text Detection with Differentiable Binarization"
(AAAI 2020), section 3.4: the map is cut at a threshold, each connected region is a shrunken text,
and it is widened again by area x unclip / perimeter. Boxes stay upright: that is exact for text in
rows, and too wide for text that is turned. Refuses nothing: what is no number is no text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controller.domain.task import Task
from controller.optimize.rows import Array
from controller.optimize.tasks.boxes import Found


def read_db(found: Sequence[Array], size: tuple[int, int], task: Task) -> list[Found]:
    """Of the output map [batch,1,height,width], of 0 to 1; a smaller map is scaled up."""
    return [_of_map(np.asarray(one[0], np.float64), size, task) for one in found[0]]


def regions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Connected regions of a mask [height,width], corners connect: 0 outside, 1, 2 … inside.

    Runs of each line are joined with those of the line above that they touch.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lines, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    first = np.searchsorted(lines, np.arange(len(mask) + 1))
    parents = list(range(len(lines)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for line in range(1, len(mask)):
        above, run = int(first[line - 1]), int(first[line])
        while above < first[line] and run < first[line + 1]:
            if starts[above] <= ends[run] and starts[run] <= ends[above]:
                parents[root(run)] = root(above)
            above, run = (above + 1, run) if ends[above] < ends[run] else (above, run + 1)
    labels = np.zeros(mask.shape, np.int64)
    numbers = np.unique([root(run) for run in range(len(lines))], return_inverse=True)[1]
    for number, at, start, end in zip(numbers, lines, starts, ends, strict=True):
        labels[at, start:end] = number + 1
    return labels


def _of_map(text: NDArray[np.float64], size: tuple[int, int], task: Task) -> Found:
    likely = np.nan_to_num(text, nan=0.0, posinf=0.0, neginf=0.0)
    labels = regions(likely > task.numbers["threshold"])
    count = int(labels.max(initial=0))
    y, x = np.nonzero(labels)
    of = labels[y, x] - 1
    scores = np.bincount(of, likely[y, x], count) / np.maximum(1, np.bincount(of, minlength=count))
    low = np.full((count, 2), np.inf)
    high = np.zeros((count, 2))
    for axis, place in enumerate((x, y)):
        np.minimum.at(low[:, axis], of, place)
        np.maximum.at(high[:, axis], of, place + 1.0)
    sides = high - low
    distance = task.numbers["unclip"] * sides.prod(axis=1) / (2 * sides.sum(axis=1))
    scale = np.array([size[1] / text.shape[1], size[0] / text.shape[0]])
    limit = np.array([size[1], size[0]], np.float64)
    corners = np.concatenate(
        [
            np.clip((low - distance[:, None]) * scale, 0, limit),
            np.clip((high + distance[:, None]) * scale, 0, limit),
        ],
        axis=1,
    )
    good = (scores >= task.numbers["box_threshold"]) & (
        sides.min(axis=1, initial=np.inf) >= task.numbers["least_side"]
    )
    order = np.argsort(-scores, kind="stable")
    chosen = order[good[order]][: task.whole("most")]
    return Found(corners[chosen], scores[chosen], np.zeros(len(chosen), np.int64))
