"""A metric of one's own: a function of rows that the build worker has installed, found by name.

It is an entry point of the group `lighterman.metrics` and returns percent, 0 to 100, the more the
better. It runs in the job process, without network. Refuses names that are not installed, and
results that are no percent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, cast

import numpy as np

from controller.errors import InvalidError
from controller.optimize.builder import LackingError
from controller.optimize.raw import keep_raw
from controller.optimize.rows import Array, Rows
from controller.optimize.tasks.boxes import Found
from controller.optimize.tasks.figures import Figures, Keep, figure

GROUP = "lighterman.metrics"


@dataclass(frozen=True, slots=True)
class Row:
    """What was answered to one row, and what is true of it; None where nobody said.

    ``answer`` is what the version's post-processing made: the best classes of a row, or its boxes
    (`corners` [k,4] in pixels, `scores`, `classes`). Where it declares none, ``outputs`` are the
    model's own, in the order of its signature, without the axis of rows.
    """

    answer: Any
    outputs: tuple[Array, ...]
    label: int | None = None
    boxes: Found | None = None
    target: Any = None


MetricFunction = Callable[[Sequence[Row]], float]


def find_metric(name: str) -> MetricFunction:
    """The function of that name. LackingError where nothing installed brings it."""
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in found:
        known = f"it has {', '.join(sorted(found))}" if found else "it has none"
        raise LackingError(
            f"this worker has no metric {name}",
            f"{known}; install what brings it as an entry point of {GROUP}, then build again",
        )
    try:
        return cast("MetricFunction", found[name].load())
    except Exception as error:
        keep_raw(error)
        raise LackingError(f"the metric {name} of this worker cannot be loaded") from error


@dataclass(frozen=True, slots=True)
class MetricJudge:
    """Satisfies `judge.Judge`: what ``base`` says, where the task has answers, and the metric."""

    name: str
    metric: MetricFunction
    base: Any = None  # a judge.Judge
    raw: bool = True  # rows are kept as the model gave them

    def read(self, found: Sequence[Array], inputs: Sequence[Array]) -> list[Row] | None:
        """The answers of one call, one per row; None where they are not what the task has."""
        count = len(inputs[0])
        answers = self.base.read(found, inputs) if self.base is not None else [None] * count
        if answers is None:
            return None
        outputs = [
            tuple(np.array(one[row] if one.ndim and len(one) == count else one) for one in found)
            for row in range(count if self.raw else 0)
        ]
        return [Row(answer, outputs[row] if self.raw else ()) for row, answer in enumerate(answers)]

    def figures(self, built: Sequence[Row], source: Sequence[Row], rows: Rows) -> Figures:
        """The metric of both sides beside what the task's own judge says."""
        n = min(len(built), len(source))
        base = Figures()
        if self.base is not None:
            sides = ([one.answer for one in side[:n]] for side in (built, source))
            base = self.base.figures(*sides, rows)
        if rows.y is None and rows.boxes is None and rows.target is None:
            return base
        mine, theirs = (_with_truth(side[:n], rows) for side in (built, source))
        found = figure(self.name, self._asked(mine), self._asked(theirs), n)
        return replace(base, metrics=(*base.metrics, found))

    def _asked(self, rows: Sequence[Row]) -> Callable[[Keep], float]:
        def ask(keep: Keep) -> float:
            chosen = [one for one, stays in zip(rows, keep, strict=True) if stays]
            try:
                value = float(self.metric(chosen))
            except Exception as error:
                keep_raw(error)
                raise InvalidError(
                    f"the metric {self.name} fails on {len(chosen)} rows:"
                    f" {type(error).__name__}; its own words are in the job's last lines"
                ) from error
            if not 0 <= value <= 100:
                raise InvalidError(
                    f"the metric {self.name} gave {value:g}",
                    "it has to give percent, 0 to 100, the more the better",
                )
            return value / 100

        return ask


def _with_truth(side: Sequence[Row], rows: Rows) -> list[Row]:
    boxes = rows.boxes.per_row() if rows.boxes is not None else None
    made = []
    for place, one in enumerate(side):
        true = None
        if boxes is not None:
            corners, classes = boxes[place]
            true = Found(corners, np.ones(len(corners)), classes)
        made.append(
            replace(
                one,
                label=int(rows.y[place]) if rows.y is not None else None,
                boxes=true,
                target=rows.target[place] if rows.target is not None else None,
            )
        )
    return made
