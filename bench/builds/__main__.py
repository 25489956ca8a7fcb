"""`python -m bench.builds --json FILE`: what builds gain and lose, on this machine's CPU."""

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.builds import batches, detector, digits, models
from bench.builds.jobs import Ran
from examples.fleet.clock import monotonic, utc_now

PARTS = ("digits", "mobilenetv2", "lite0", "resnet50", "detector")
# Key with dots, at least or at most, and how much.
GOALS: tuple[tuple[str, str, float], ...] = (
    ("models.resnet50.best_vs_eager", ">=", 5.5),
    ("models.mobilenetv2.best_vs_eager", ">=", 6.5),
    ("models.lite0.best_vs_eager", ">=", 7.5),
    ("models.resnet50.best_vs_same_runtime_fp32", ">=", 3.0),
    ("models.mobilenetv2.best_vs_same_runtime_fp32", ">=", 2.5),
    ("models.lite0.best_vs_same_runtime_fp32", ">=", 2.3),
    ("size_ratio_resnet50_pruned_int8", ">=", 10.0),
    ("digits.int8_drop_upper_pct", "<=", 0.5),
    ("digits.pruned_int8_drop_upper_pct", "<=", 1.0),
    ("digits.distill_gain_lower_pct", ">=", 0.001),
    ("batch_gain_best", ">=", 2.3),
    ("batch_losses", "<=", 0),
    ("detector.f1_drop_pct", "<=", 0.5),
    ("detector.best_vs_fp32", ">=", 1.5),
    ("slower_builds_passed", "<=", 0),
    ("lite0_build_set_s", "<=", 300.0),
    ("worker_peak_rss_mb", "<=", 3000.0),
)


def main() -> int:
    """Run the parts; exit code 1 where a goal was missed."""
    parser = argparse.ArgumentParser(prog="bench.builds", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART",
        help=f"one of {', '.join(PARTS)}; the figures of the others stay in FILE as they are",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the folders of the jobs")
    options = parser.parse_args()
    figures = _before(options.json) if options.only else {}
    root = Path(tempfile.mkdtemp(prefix="bench-builds-"))
    try:
        for part in options.only or PARTS:
            _take(figures, part, root)
            if options.json is not None:
                options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    finally:
        if options.keep:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    missed = [text for goal in GOALS if (text := _missed(figures, *goal))]
    for text in missed:
        print(text)
    return 1 if missed else 0


def _before(file: Path | None) -> dict[str, Any]:
    if file is None or not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _take(figures: dict[str, Any], part: str, root: Path) -> None:
    """Measure one part and put it in its place."""
    began, load = monotonic(), os.getloadavg()[0]
    if part in ("digits", "detector"):
        found, jobs = (digits if part == "digits" else detector).measure(root / part)
        figures[part] = found
    else:
        found, jobs = (
            models.measure_lite0(root / part)
            if part == "lite0"
            else models.measure_random(part, root / part)
        )
        figures.setdefault("models", {})[part] = found
    if part == "lite0":
        figures["lite0_build_set_s"] = found["build_set_s"]
    if part == "resnet50":
        figures["size_ratio_resnet50_pruned_int8"] = found.get("pruned_int8_size_ratio")
        figures["worker_peak_rss_mb"] = round(jobs[0].peak_rss_mb)
    parts = figures.setdefault("parts", {})
    parts[part] = {
        **_slower(jobs), "batches": batches.measure(part, jobs),
        "took_s": round(monotonic() - began, 1), "load_before": round(load, 2),
    }  # fmt: skip
    best = max(parts.values(), key=lambda one: float(one["batches"]["batch_gain_best"]))
    figures |= {
        "schema_version": 1,
        "at": utc_now().isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "builds_judged": sum(one["builds_judged"] for one in parts.values()),
        "slower_builds_passed": sum(one["slower_builds_passed"] for one in parts.values()),
        "batch_gain_best": best["batches"]["batch_gain_best"],
        "batch_gain_of": best["batches"]["batch_gain_of"],
        "batch_losses": sum(one["batches"]["batch_losses"] for one in parts.values()),
        "took_s": round(sum(one["took_s"] for one in parts.values()), 1),
    }
    print(f"{part}: {json.dumps(found)}", flush=True)


def _slower(jobs: list[Ran]) -> dict[str, int]:
    """Builds that passed though fp32 of the same runtime was faster, counted without the gate."""
    built = [one for job in jobs for one in job.built.values()]
    passed = [one for one in built if one.gate.verdict == "PASSED" and not one.recipe.is_plain]
    slower = [
        one
        for one in passed
        if one.evidence.fp32_p50_ms is None or one.evidence.p50_ms > one.evidence.fp32_p50_ms
    ]
    return {"builds_judged": len(built), "slower_builds_passed": len(slower)}


def _missed(figures: Mapping[str, Any], key: str, how: str, bound: float) -> str:
    """What to say of a goal that was missed; empty where it was met, or is of a part not run."""
    value: Any = figures
    for step in key.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    met = value >= bound if how == ">=" else value <= bound
    return "" if met else f"missed: {key} is {value}, {how} {bound:g} is wanted"


if __name__ == "__main__":
    raise SystemExit(main())
