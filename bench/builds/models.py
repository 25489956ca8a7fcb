"""Speed and size on networks of ordinary size: one job each, all of the shipped CPU recipes."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.builds import networks
from bench.builds.jobs import Built, Ran, run_job, shipped_recipe
from controller.intake.dataset import split_dataset
from controller.intake.models import parse_model
from controller.optimize.builder import Runner, find_builder
from controller.optimize.import_torch import TorchModel
from controller.optimize.rows import sample_inputs
from controller.services.context import Limits
from examples.fleet.clock import monotonic

SHIPPED = (
    *("onnxruntime-fp32", "onnxruntime-int8"),
    *("openvino-fp32", "openvino-int8", "openvino-bf16"),
)
# What the shipped CPU profiles name: compiled once, judged for each of them.
PROFILES = SHIPPED[:4]
PRUNED = "onnxruntime-pruned-int8"
CALIBRATION_ROWS = 32
EAGER = "torch eager"
IN_TURN_S, TURNS, CALLS = 12.0, 5, 5


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
    whole = {key: one for key, one in job.built.items() if key != PRUNED}
    figures = _figures(root / "source.pt2", whole)
    figures |= {"weights": "random", "errors": job.errors, "worker_peak_rss_mb": job.peak_rss_mb}
    if PRUNED in job.built:
        pruned = job.built[PRUNED]
        was = job.built["onnxruntime-fp32"].size_bytes
        figures["pruned_int8_size_ratio"] = round(was / pruned.size_bytes, 2)
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
    figures = _figures(files / "lite0.pt2", passed)
    figures |= {
        "weights": "ImageNet",
        "errors": job.errors | other.errors,
        "refused": {key: one.gate.reason for key, one in built.items() if key not in passed},
        "build_set_s": round(job.took_s, 1),
    }
    return figures, [job, other]


def _figures(source: Path, built: dict[str, Built]) -> dict[str, Any]:
    """Of all these builds the fastest one, against eager PyTorch and its own runtime's float."""
    times = in_turn(source, built)
    name = min(built, key=lambda key: times[key])
    own_float = next(
        key
        for key, one in built.items()
        if one.recipe.is_plain and one.recipe.runtime == built[name].recipe.runtime
    )
    return {
        "best_recipe": name,
        "best_vs_eager": round(times[EAGER] / times[name], 2),
        "best_vs_same_runtime_fp32": round(times[own_float] / times[name], 2),
        "p50_ms": {key: round(one, 3) for key, one in times.items()},
        "size_mb": {key: round(one.size_bytes / 1e6, 2) for key, one in built.items()},
    }


def in_turn(source: Path, built: dict[str, Built]) -> dict[str, float]:
    """Medians in ms of single calls, some of each in turn: what else the machine does, and how fast
    its clock runs just then, meets all of them alike. The first of a turn finds cold caches.
    """
    signature = parse_model(source, Limits()).signature
    inputs = sample_inputs(signature, batch=1, seed=0)
    runners: dict[str, Runner] = {}
    if source.suffix == ".pt2":
        runners[EAGER] = TorchModel(source, signature)
    for key, one in built.items():
        runners[key] = find_builder(one.recipe.runtime).open_build(one.file, signature)
    times: dict[str, list[float]] = {key: [] for key in runners}
    began = monotonic()
    while (
        min(len(one) for one in times.values()) < TURNS * CALLS or monotonic() - began < IN_TURN_S
    ):
        for key, runner in runners.items():
            runner.run(inputs)
            for _ in range(CALLS):
                before = monotonic()
                runner.run(inputs)
                times[key].append(1000 * (monotonic() - before))
    return {key: median(found[CALLS:]) for key, found in times.items()}
