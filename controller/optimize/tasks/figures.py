"""What a judge says of a build beside its source, and the jackknife that every metric is held by.

Refuses to draw: leaving rows out in turn gives the same figures every time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from controller.domain.interval import Interval, metric_change_pts, metric_pct
from controller.domain.quality import CLASSES_MOST, ClassChange, MetricFigure

GROUPS_MOST = 100
_ERROR = 0.05

Keep = NDArray[np.bool_]  # which rows are counted
Metric = Callable[[Keep], float]  # a share of 0 to 1 over the kept rows


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares in percent. None and empty: there was nothing to measure them by."""

    accuracy: Interval | None = None
    source_accuracy: Interval | None = None
    accuracy_delta_pts: Interval | None = None
    agreement: Interval | None = None
    top5_accuracy: Interval | None = None
    top5_delta_pts: Interval | None = None
    metrics: tuple[MetricFigure, ...] = ()
    classes: tuple[ClassChange, ...] = ()
    classes_judged: int = 0


def figure(name: str, built: Metric, source: Metric, n: int) -> MetricFigure:
    """A metric of both sides over the same ``n`` rows, each with its interval.

    Rows are left out on both sides at once, one by one, or in at most `GROUPS_MOST` groups where
    there are more (the delete-a-group jackknife; Kott, "The delete-a-group jackknife", Journal of
    Official Statistics 17, 2001). Sound where the metric is a smooth function of sums over rows, as
    F1 is; of a metric that hangs on few rows alone, such as a worst case, it says too little.
    """
    groups = min(n, GROUPS_MOST)
    all_rows = np.ones(n, dtype=bool)
    whole = np.array([built(all_rows), source(all_rows)])
    parts = []
    for group in range(groups):
        keep = all_rows.copy()
        keep[group::groups] = False
        parts.append([built(keep), source(keep)] if keep.any() else whole)
    left = np.array(parts)
    mine, theirs = (_variance(left[:, side]) for side in (0, 1))
    change = metric_change_pts(float(whole[0] - whole[1]), _variance(left[:, 0] - left[:, 1]), n)
    return MetricFigure(
        name,
        metric_pct(float(whole[0]), mine, n),
        metric_pct(float(whole[1]), theirs, n),
        change,
    )


def _variance(left: NDArray[np.float64]) -> float:
    count = len(left)
    return float((count - 1) / count * ((left - left.mean()) ** 2).sum())


def single_variance(left: NDArray[np.float64]) -> float:
    """The jackknife's variance of a figure, by its values with each row left out."""
    return _variance(left)


def careful_z(classes: int) -> float:
    """The quantile by which one class of so many is said to lose.

    Bonferroni's: among classes that lose nothing any is named in at most 5 of 100 reports.
    """
    return NormalDist().inv_cdf(1 - _ERROR / max(1, classes))


def worst(changes: list[ClassChange]) -> tuple[ClassChange, ...]:
    """Those that lose most, the worst first; who loses beyond chance stands before the others."""
    ordered = sorted(
        changes, key=lambda one: (not one.loses, one.delta_pts.value, -one.delta_pts.n, one.label)
    )
    return tuple(ordered[:CLASSES_MOST])
