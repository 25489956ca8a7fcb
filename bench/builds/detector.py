"""PP-OCR's text detector on drawn pages: what its builds lose in F1, and what they gain in speed.

The gate's own figures, of the shipped recipes with tighter bounds. The best build is the fastest
one that the gate lets out. Where the package of the weights is missing the part is left out and
says so.
"""

import json
from pathlib import Path
from typing import Any

from bench.builds.jobs import Built, Ran, run_job, shipped_recipe
from bench.builds.models import SHIPPED, in_turn
from controller.domain.build import GateVerdict
from controller.domain.quality import F1, MetricFigure
from controller.intake.dataset import split_dataset

# Half a point is what is wished for; what so many pages can prove of a build that loses nothing.
BOUND_PTS = 1.0
CACHE = Path(".cache") / "detector"


def measure(root: Path) -> tuple[dict[str, Any], list[Ran]]:
    """F1 drop of the best build with its interval, its speed beside its runtime's float build."""
    from examples.detector import PARAMS, TASK, DetectorError, generate

    try:
        files = generate(CACHE)
    except DetectorError as error:
        return {"left_out": str(error).replace("\n", "; ")}, []
    root.mkdir(parents=True)
    parts = (root / "calibration.npz", root / "evaluation.npz")
    split_dataset(files / "pages.npz", *parts)
    recipes = {name: _strict(shipped_recipe(name)) for name in SHIPPED}
    asked = {"task": TASK, "params": PARAMS}
    job = run_job(root / "job", files / "text.onnx", recipes, *parts, task=asked)
    facts = json.loads((files / "facts.json").read_text(encoding="utf-8"))
    return _figures(files / "text.onnx", job) | {"weights": "PP-OCRv4", **facts}, [job]


def _strict(recipe: dict[str, Any]) -> dict[str, Any]:
    if recipe["gate"]:
        recipe["gate"] |= {"max_f1_drop_pts": BOUND_PTS}
    return recipe


def _figures(source: Path, job: Ran) -> dict[str, Any]:
    passed = {
        name: one for name, one in job.built.items() if one.gate.verdict is GateVerdict.PASSED
    }
    times = in_turn(source, passed)
    lossy = [name for name, one in passed.items() if not one.recipe.is_plain]
    best = min(lossy, key=lambda name: times[name], default="")
    found: dict[str, Any] = {
        "best_recipe": best,
        "errors": job.errors,
        "refused": {name: one.gate.reason for name, one in job.built.items() if name not in passed},
        "p50_ms": {name: round(one, 3) for name, one in times.items()},
        "size_mb": {name: round(one.size_bytes / 1e6, 2) for name, one in job.built.items()},
        "f1_by_build": {name: _drop(one) for name, one in job.built.items()},
        "took_s": round(job.took_s, 1),
    }
    if not best:
        return found
    own = f"{passed[best].recipe.runtime}-fp32"
    drop = _drop(passed[best])
    return found | {
        "f1_drop_pct": drop["drop_pct"],
        "f1_drop_upper_pct": drop["drop_upper_pct"],
        "best_vs_fp32": round(times[own] / times[best], 2),
        "best_notes": list(passed[best].evidence.notes),
    }


def _drop(one: Built) -> dict[str, Any]:
    by_name = {figure.name: figure for figure in one.evidence.metrics}
    found: MetricFigure | None = by_name.get(F1)
    if found is None:
        return {}
    return {
        "f1_pct": round(found.value.value, 2),
        "drop_pct": round(0.0 - found.delta_pts.value, 3),
        "drop_upper_pct": round(-found.delta_pts.low, 3),
        "n": found.delta_pts.n,
        **{name: round(one.value.value, 2) for name, one in by_name.items() if name != F1},
    }
