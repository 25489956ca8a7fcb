"""The gate's bounds on what a build answers: accuracy, F1, mAP, a metric of one's own, agreement.

A bound is met only by the end of the 95 % interval, never by the figure alone. Which bounds speak
depends on the version's task; a recipe whose bounds say nothing of it refuses the build.
"""

from controller.domain.build import Evidence, Recipe
from controller.domain.finding import Finding
from controller.domain.interval import Interval, rows_to_prove, rows_to_reach
from controller.domain.quality import F1, MAP, NAMES
from controller.domain.task import TaskKind

_BOUND_OF = {
    TaskKind.CLASSIFICATION: "max_accuracy_drop_pts",
    TaskKind.DETECTION: "max_f1_drop_pts or max_map_drop_pts",
    TaskKind.OTHER: "max_metric_drop_pts",
}


def judge_quality(evidence: Evidence, recipe: Recipe) -> tuple[Finding, ...]:
    """What the build answers, held against its source's answers to the same rows."""
    return (
        *_spoken(evidence, recipe),
        *_accuracy(evidence, recipe),
        *_metrics(evidence, recipe),
        *_agreement(evidence, recipe),
    )


def is_accurate(evidence: Evidence, recipe: Recipe) -> bool:
    """Whether the recipe's bounds on what is answered are met, whatever the rest says."""
    return all(one.ok for one in judge_quality(evidence, recipe))


def _spoken(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    """A recipe that asks for quality has to ask for something that the task has."""
    rule = recipe.gate
    of_kind = {
        TaskKind.CLASSIFICATION: (rule.max_accuracy_drop_pts, rule.max_top5_drop_pts),
        TaskKind.DETECTION: (rule.max_f1_drop_pts, rule.max_map_drop_pts),
        TaskKind.OTHER: (),
    }
    asked = [bound for those in of_kind.values() for bound in those if bound is not None]
    heard = [bound for bound in of_kind[evidence.task] if bound is not None]
    if evidence.metric and rule.max_metric_drop_pts is not None:
        heard.append(rule.max_metric_drop_pts)
    asks = bool(asked) or rule.max_metric_drop_pts is not None or rule.min_agreement_pct is not None
    if heard or not asks:
        return []
    agrees = rule.min_agreement_pct is not None and evidence.task is not TaskKind.OTHER
    if agrees and not asked and rule.max_metric_drop_pts is None:
        return []  # asked for agreement alone, and the task has it
    text = f"recipe {recipe.name} bounds nothing that {evidence.task} is judged by"
    return [Finding(False, f"{text}: give its gate {_BOUND_OF[evidence.task]}")]


def _accuracy(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    if evidence.task is not TaskKind.CLASSIFICATION:
        return []
    rule, found = recipe.gate, []
    for name, bound, delta in (
        ("accuracy", rule.max_accuracy_drop_pts, evidence.accuracy_delta_pts),
        ("top-5 accuracy", rule.max_top5_drop_pts, evidence.top5_delta_pts),
    ):
        if bound is None:
            continue
        if delta is not None:
            found.append(_drop(name, delta, bound))
        elif evidence.agreement is None:
            found.append(Finding(False, f"no dataset to measure {name} on"))
        elif evidence.accuracy_delta_pts is None:
            found.append(Finding(True, f"{name} not measured: the dataset has no labels"))
        else:
            found.append(Finding(True, f"{name} not measured: there are five classes or fewer"))
    return found


def _metrics(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    rule = recipe.gate
    measured = {one.name: one.delta_pts for one in evidence.metrics}
    bounds = {evidence.metric: rule.max_metric_drop_pts} if evidence.metric else {}
    if evidence.task is TaskKind.DETECTION:
        bounds = {F1: rule.max_f1_drop_pts, MAP: rule.max_map_drop_pts, **bounds}
    found = []
    for key, bound in bounds.items():
        if bound is None:
            continue
        name, delta = NAMES.get(key, key), measured.get(key)
        if delta is not None:
            found.append(_drop(name, delta, bound))
        elif evidence.agreement is None:
            found.append(Finding(False, f"no dataset with truth to measure {name} on"))
        elif evidence.metrics:
            found.append(Finding(False, f"{name} was not measured beside the others"))
        else:
            found.append(Finding(True, f"{name} not measured: the dataset has no truth"))
    return found


def _drop(name: str, delta: Interval, bound: float) -> Finding:
    text = f"{name} {_signed(delta)} against the source's, n={delta.n}"
    if delta.low >= -bound:
        return Finding(True, text)
    wanted = f"{text}, the lower end has to reach −{bound:g} points"
    return Finding(False, f"{wanted}: {_needed(delta.n, rows_to_prove(delta, bound))}")


def _agreement(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    bound, found = recipe.gate.min_agreement_pct, evidence.agreement
    if bound is None or (evidence.task is TaskKind.OTHER and found is None):
        return []  # what nobody knows the meaning of cannot agree; its metric was asked for above
    if found is None:
        return [Finding(False, "no dataset to measure agreement on")]
    text = (
        f"agreement {found.value:.1f} % with the source"
        f" (95 % interval {found.low:.1f}–{found.high:.1f}, n={found.n})"
    )
    if found.low >= bound:
        return [Finding(True, text)]
    wanted = f"{text}, the lower end has to reach {bound:g} %"
    return [Finding(False, f"{wanted}: {_needed(found.n, rows_to_reach(found, bound))}")]


def _needed(n: int, wanted: int | None) -> str:
    """What would prove the bound; the number is about right if further rows are like these."""
    if wanted is None:
        return "more rows would not help, the figure itself is beyond it"
    return f"that takes about {_rounded(max(wanted, n + 1)):,} rows like these"


def _rounded(rows: int) -> int:
    """Two digits, upwards: more would promise what nobody knows."""
    step = int(10 ** max(0, len(str(rows)) - 2))
    return -(-rows // step) * step


def _signed(delta: Interval) -> str:
    def one(number: float) -> str:
        text = f"{number:+.1f}".replace("-", "−")
        return "±0.0" if text in ("+0.0", "−0.0") else text

    return f"{one(delta.value)} points (95 % interval {one(delta.low)} to {one(delta.high)})"
