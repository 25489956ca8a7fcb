"""Boxes of a detector's raw outputs: threshold, and of boxes that overlap the best one (NMS).

`boxes` reads corners and scores, `yolo` one tensor of centres, sizes and scores. Corners are left,
top, right, bottom in pixels of the input. Refuses nothing: what is no number is no box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.domain.task import Task
from controller.optimize.rows import Array

Floats = NDArray[np.float64]
Wholes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """The boxes of one row, the likeliest first."""

    corners: Floats  # [k,4]
    scores: Floats  # [k]
    classes: Wholes  # [k]


def read_boxes(found: Sequence[Array], size: tuple[int, int], task: Task) -> list[Found]:
    """Of the outputs boxes [batch,places,4] and scores [batch,places,classes]."""
    corners, scores = (np.asarray(one, np.float64) for one in found[:2])
    return [_chosen(one, two, size, task) for one, two in zip(corners, scores, strict=True)]


def read_yolo(found: Sequence[Array], size: tuple[int, int], task: Task) -> list[Found]:
    """Of the output [batch,4 + classes,places], whose first four are centre, width and height."""
    made = []
    for one in np.asarray(found[0], np.float64):
        centre, extent, scores = one[:2].T, one[2:4].T, one[4:].T
        corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
        made.append(_chosen(corners, scores, size, task))
    return made


def overlaps(one: Floats, others: Floats) -> Floats:
    """Intersection over union of each of ``one`` [a,4] with each of ``others`` [b,4]: [a,b]."""
    low = np.maximum(one[:, None, :2], others[None, :, :2])
    high = np.minimum(one[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(part[:, 2:] - part[:, :2]).prod(axis=1) for part in (one, others)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    found: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def kept_of(corners: Floats, scores: Floats, most_overlap: float) -> Wholes:
    """Places of the boxes that no likelier one overlaps by more, the likeliest first."""
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[overlaps(corners[best : best + 1], corners[left])[0] <= most_overlap]
    return np.array(kept, np.int64)


def _chosen(corners: Floats, scores: Floats, size: tuple[int, int], task: Task) -> Found:
    """Threshold, then class by class the best of those that overlap, then the best of all."""
    if task.numbers["relative"]:
        corners = corners * np.array([size[1], size[0], size[1], size[0]])
    ordered = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(scores).all(axis=1)
    sound = np.asarray(finite & ordered, bool)
    places, classes = np.nonzero((scores >= task.numbers["threshold"]) & sound[:, None])
    likely = scores[places, classes]
    kept = [np.zeros(0, np.int64)]
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        kept.append(own[kept_of(corners[places[own]], likely[own], task.numbers["overlap"])])
    chosen = np.concatenate(kept)
    chosen = chosen[np.argsort(-likely[chosen], kind="stable")][: task.whole("most")]
    limit = np.array([size[1], size[0], size[1], size[0]], np.float64)
    inside = np.clip(corners[places[chosen]], 0, limit)
    return Found(inside, likely[chosen], classes[chosen].astype(np.int64))
