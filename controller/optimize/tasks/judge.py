"""Which functions read and compare the answers of a version, by its task. Compares nothing."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

from controller.domain.build import Recipe
from controller.domain.model import Signature
from controller.domain.preparation import class_places
from controller.domain.task import Task, TaskKind
from controller.optimize.builder import LackingError
from controller.optimize.rows import Array, Rows
from controller.optimize.tasks import coco
from controller.optimize.tasks.classes import ClassJudge
from controller.optimize.tasks.detection import DetectionJudge
from controller.optimize.tasks.figures import Figures
from controller.optimize.tasks.metric import MetricJudge, find_metric


class Judge(Protocol):
    """What a task has."""

    def read(self, found: Sequence[Array], inputs: Sequence[Array]) -> list[Any] | None:
        """The answer to each row of one call; None where the outputs hold no such answers."""
        ...

    def figures(self, built: Sequence[Any], source: Sequence[Any], rows: Rows) -> Figures:
        """What the answers of a build are worth beside those of its source to the same rows."""
        ...


def judge_of(task: Task, signature: Signature | None = None) -> Judge:
    """The judge of a task over outputs of this signature.

    LackingError where its metric is not installed.
    """
    base: Judge | None = None
    match task.kind:
        case TaskKind.CLASSIFICATION:
            best = class_places(signature).get(0) if signature is not None else None
            base = ClassJudge(task, best)
        case TaskKind.DETECTION:
            base = DetectionJudge(task)
        case TaskKind.OTHER:
            base = None
    if task.metric:
        raw = task.post is None
        return MetricJudge(task.metric, find_metric(task.metric), base, raw)
    return cast("Judge", base)


def require_figures(task: Task, recipe: Recipe) -> None:
    """LackingError where a bound of the recipe asks for what nothing here can measure."""
    asked = task.kind is TaskKind.DETECTION and recipe.gate.max_map_drop_pts is not None
    if asked and not coco.is_here():
        raise LackingError(
            f"recipe {recipe.name} bounds mAP, and this worker has not {coco.MODULE}",
            "pip install 'lighterman[optimize]' there, then build again",
        )
