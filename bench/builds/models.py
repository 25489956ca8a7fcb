"""Speed and size on networks of ordinary size: one job each, all of the shipped CPU recipes."""

from pathlib import Path
from typing import Any

import numpy as np

from bench.builds import networks
from bench.builds.jobs import Built, Ran, run_job, shipped_recipe
from controller.intake.dataset import split_dataset

SHIPPED = (
    *("onnxruntime-fp32", "onnxruntime-int8"),
    *("openvino-fp32", "openvino-int8", "openvino-bf16"),
)
# What the shipped CPU profiles name: compiled once, judged for each of them.
PROFILES = SHIPPED[:4]
PRUNED = "onnxruntime-pruned-int8"
CALIBRATION_ROWS = 32


def measure_random(name: str, root: Path) -> tuple[dict[str, Any], list[Ran]]:
    """ResNet-50 or MobileNetV2 with random weights; ResNet-50 pruned by half as well."""
    make = {"resnet50": networks.resnet50, "mobilenetv2": networks.mobilenetv2}[name]
    root.mkdir(parents=True)
    networks.save(make, root / "source.pt2")
    rows = np.random.default_rng(0).random((CALIBRATION_ROWS, 3, networks.SIDE, networks.SIDE))
    np.savez(root / "rows.npz", x=rows.astype(np.float32))
    recipes = {one: _all_int8(shipped_recipe(one)) for one in SHIPPED}
    if name == "resnet50":
        # Random weights have nothing to learn again.
        recipes[PRUNED] = _all_int8(shipped_recipe(PRUNED))
        recipes[PRUNED]["passes"] = [{"prune": {"share_pct": 50}}]
    job = run_job(root / "job", root / "source.pt2", recipes, root / "rows.npz")
    figures = _figures({key: one for key, one in job.built.items() if key != PRUNED})
    figures |= {"weights": "random", "errors": job.errors, "worker_peak_rss_mb": job.peak_rss_mb}
    if PRUNED in job.built:
        pruned = job.built[PRUNED]
        whole = job.built["onnxruntime-fp32"].size_bytes
        figures["pruned_int8_size_ratio"] = round(whole / pruned.size_bytes, 2)
        figures["pruned_int8_vs_eager"] = _ratio(pruned.evidence.eager_p50_ms, pruned)
        figures["pruned_int8_notes"] = list(pruned.evidence.notes)
    return figures, [job]


def _all_int8(recipe: dict[str, Any]) -> dict[str, Any]:
    """No layer goes back to float: random weights have no accuracy that could ask for it."""
    if recipe["precision"] == "int8":
        recipe["quantization"]["fallback_steps"] = 0
    return recipe


def measure_lite0(root: Path) -> tuple[dict[str, Any], list[Ran]]:
    """EfficientNet-Lite0 with its ImageNet weights, on the crops of real photos."""
    from bench.agent import lite0

    files = lite0.files(Path(".cache") / "models")
    root.mkdir(parents=True)
    split_dataset(files / "photos.npz", root / "calibration.npz", root / "evaluation.npz")
    parts = (root / "calibration.npz", root / "evaluation.npz")
    sets = {one: shipped_recipe(one) for one in PROFILES}
    job = run_job(root / "job", files / "lite0.pt2", sets, *parts)
    half = {"openvino-bf16": shipped_recipe("openvino-bf16")}
    other = run_job(root / "bf16", files / "lite0.pt2", half, *parts)
    built = job.built | other.built
    passed = {key: one for key, one in built.items() if one.gate.verdict == "PASSED"}
    figures = _figures(passed)
    figures |= {
        "weights": "ImageNet",
        "errors": job.errors | other.errors,
        "refused": {key: one.gate.reason for key, one in built.items() if key not in passed},
        "build_set_s": round(job.took_s, 1),
    }
    return figures, [job, other]


def _figures(built: dict[str, Built]) -> dict[str, Any]:
    """Of all these builds the fastest one, against eager PyTorch and its own runtime's float."""
    name = min(built, key=lambda key: built[key].evidence.p50_ms)
    best = built[name]
    return {
        "best_recipe": name,
        "best_vs_eager": _ratio(best.evidence.eager_p50_ms, best),
        "best_vs_same_runtime_fp32": _ratio(best.evidence.fp32_p50_ms, best),
        "eager_p50_ms": round(best.evidence.eager_p50_ms or 0.0, 2),
        "p50_ms": {key: round(one.evidence.p50_ms, 3) for key, one in built.items()},
        "size_mb": {key: round(one.size_bytes / 1e6, 2) for key, one in built.items()},
    }


def _ratio(slow_ms: float | None, built: Built) -> float | None:
    return None if slow_ms is None else round(slow_ms / built.evidence.p50_ms, 2)
