"""When quantising lost too much: whether a try with more layers in float is worth its time."""

from dataclasses import replace

from controller.domain.build import DYNAMIC, Evidence, Recipe
from controller.domain.gate_quality import is_accurate
from controller.domain.interval import metric_change_pts, paired_difference_pts, share_pct
from controller.domain.task import CLASSIFY, Task
from controller.optimize.tasks.figures import Figures


def cautions(recipe: Recipe, most: int, *, judged: bool) -> range:
    """The tries, the boldest first; ``judged``: rows will tell what each one loses."""
    if recipe.quantization.get("kind") == DYNAMIC:
        return range(1)
    if recipe.runtime == "openvino" and recipe.quantization.get("by", "nncf") == "nncf":
        most = min(most, 1)  # see `quantize_nncf`
    first = 0 if judged or not recipe.fallback_steps else 1
    return range(min(first, most), min(recipe.fallback_steps, most) + 1)


def is_worth_more(figures: Figures, recipe: Recipe, task: Task = CLASSIFY) -> bool:
    """Whether the bounds are not met, and so many rows could prove a build that loses nothing."""
    agreement, delta = figures.agreement, figures.accuracy_delta_pts
    perfect = replace(
        figures,
        accuracy_delta_pts=delta and paired_difference_pts(0, 0, delta.n),
        top5_delta_pts=figures.top5_delta_pts
        and paired_difference_pts(0, 0, figures.top5_delta_pts.n),
        agreement=agreement and share_pct(agreement.n, agreement.n),
        metrics=tuple(
            replace(one, delta_pts=metric_change_pts(0.0, 0.0, one.delta_pts.n))
            for one in figures.metrics
        ),
    )
    return not _holds(figures, task, recipe) and _holds(perfect, task, recipe)


def _holds(figures: Figures, task: Task, recipe: Recipe) -> bool:
    evidence = Evidence(
        size_bytes=0,
        p50_ms=0.0,
        p95_ms=0.0,
        latency_n=0,
        measured_on="",
        accuracy_delta_pts=figures.accuracy_delta_pts,
        top5_delta_pts=figures.top5_delta_pts,
        agreement=figures.agreement,
        task=task.kind,
        metric=task.metric,
        metrics=figures.metrics,
    )
    return is_accurate(evidence, recipe)
