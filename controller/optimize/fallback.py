"""When quantising lost too much: whether a try with more layers in float is worth its time."""

from controller.domain.build import DYNAMIC, Evidence, Recipe
from controller.domain.gate import is_accurate
from controller.domain.interval import paired_difference_pts, share_pct
from controller.optimize.evaluate import Figures


def cautions(recipe: Recipe, most: int, *, judged: bool) -> range:
    """The tries, the boldest first; ``judged``: rows will tell what each one loses."""
    if recipe.quantization.get("kind") == DYNAMIC:
        return range(1)
    if recipe.runtime == "openvino" and recipe.quantization.get("by", "nncf") == "nncf":
        most = min(most, 1)  # see `quantize_nncf`
    first = 0 if judged or not recipe.fallback_steps else 1
    return range(min(first, most), min(recipe.fallback_steps, most) + 1)


def is_worth_more(figures: Figures, recipe: Recipe) -> bool:
    """Whether the bounds are not met, and so many rows could prove a build that loses nothing."""
    n = figures.agreement.n
    perfect = Figures(
        figures.accuracy,
        figures.source_accuracy,
        figures.accuracy_delta_pts and paired_difference_pts(0, 0, n),
        share_pct(n, n),
        figures.top5_accuracy,
        figures.top5_delta_pts and paired_difference_pts(0, 0, n),
    )
    return not _holds(figures, recipe) and _holds(perfect, recipe)


def _holds(figures: Figures, recipe: Recipe) -> bool:
    evidence = Evidence(
        size_bytes=0,
        p50_ms=0.0,
        p95_ms=0.0,
        latency_n=0,
        measured_on="",
        accuracy_delta_pts=figures.accuracy_delta_pts,
        top5_delta_pts=figures.top5_delta_pts,
        agreement=figures.agreement,
    )
    return is_accurate(evidence, recipe)
