"""Accuracy on all 1,797 digits: five folds, each trained without the rows that it is judged on."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.builds.jobs import Ran, run_job, shipped_recipe
from controller.domain.interval import paired_difference_pts, share_pct
from controller.intake.models import parse_model
from controller.optimize.builder import find_builder
from controller.optimize.import_torch import TorchModel
from controller.services.context import Limits

FOLDS = 5
EPOCHS = 8
PRUNED = "onnxruntime-pruned-int8"
# Which builds a figure speaks of: one of each runtime would be chosen by speed on a device.
KINDS = {
    "int8": ("onnxruntime-int8",),
    "openvino_int8": ("openvino-int8",),
    "pruned_int8": (PRUNED,),
}

# The same light network, from the same first weights, for as many epochs: by labels alone, and by
# the heavy one.
_NUMBERS = {"epochs": 30, "patience": 30, "rate": 0.004, "batch": 64}
_STEPS: dict[str, dict[str, Any]] = {
    "alone": {**_NUMBERS, "distill_pct": 0}, "distilled": {**_NUMBERS, "teacher": "heaviest"},
}  # fmt: skip
STUDENTS: dict[str, dict[str, Any]] = {
    name: {"runtime": "onnxruntime", "precision": "fp32", "passes": [{"train": step}]}
    for name, step in _STEPS.items()
}

Labels = NDArray[np.int64]


def measure(root: Path) -> tuple[dict[str, Any], list[Ran]]:
    """Drops with their paired intervals over all folds, and the jobs."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = found.images.astype(np.float32)[:, None], found.target.astype(np.int64)
    fold_of = np.random.default_rng(0).permutation(len(x)) % FOLDS
    right: dict[str, list[NDArray[np.bool_]]] = {}
    jobs = []
    for fold in range(FOLDS):
        inside = fold_of != fold
        job, answers = _fold(root / f"fold-{fold}", x, y, inside)
        jobs.append(job)
        for name, classes in answers.items():
            right.setdefault(name, []).append(classes == y[~inside])
    whole = {name: np.concatenate(parts) for name, parts in right.items()}
    return _figures(whole) | _gain(whole), jobs


def _gain(right: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """Points that the distilled student wins over the one trained alone, row by row."""
    taught, alone = right.get("distilled"), right.get("alone")
    if taught is None or alone is None or len(taught) != len(alone):
        return {}
    gain = paired_difference_pts(
        int((taught & ~alone).sum()), int((alone & ~taught).sum()), len(taught)
    )
    return {
        "student_alone_pct": round(share_pct(int(alone.sum()), len(alone)).value, 2),
        "distilled_pct": round(share_pct(int(taught.sum()), len(taught)).value, 2),
        "distill_gain_pct": round(gain.value, 3),
        "distill_gain_lower_pct": round(gain.low, 3),
        "distill_gain_upper_pct": round(gain.high, 3),
        "distill_n": len(taught),
    }


def _figures(right: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    source = right["source"]
    accuracy = share_pct(int(source.sum()), len(source))
    figures: dict[str, Any] = {"n": len(source), "source_accuracy_pct": round(accuracy.value, 2)}
    for kind, recipes in KINDS.items():
        hits = right.get(recipes[0], source[:0])
        if len(hits) != len(source):
            continue  # a fold without that build: no figure over all
        delta = paired_difference_pts(
            int((hits & ~source).sum()), int((source & ~hits).sum()), len(source)
        )
        figures[f"{kind}_drop_pct"] = round(-delta.value, 3)
        figures[f"{kind}_drop_lower_pct"] = round(-delta.high, 3)
        figures[f"{kind}_drop_upper_pct"] = round(-delta.low, 3)
    return figures


def _fold(
    folder: Path, x: NDArray[np.float32], y: Labels, inside: NDArray[np.bool_]
) -> tuple[Ran, dict[str, Labels]]:
    """Train on what is inside, build, and ask source and builds for the rest."""
    from examples.digits.networks import heavy, light, save
    from examples.digits.training import train

    folder.mkdir(parents=True)
    network = heavy()
    train(network, x[inside], y[inside], EPOCHS)
    save(network, folder / "heavy.pt2")
    np.savez(folder / "inside.npz", x=x[inside], y=y[inside])
    np.savez(folder / "outside.npz", x=x[~inside], y=y[~inside])
    names = [name for recipes in KINDS.values() for name in recipes]
    recipes = {name: shipped_recipe(name) for name in names}
    job = run_job(
        folder / "job", folder / "heavy.pt2", recipes, folder / "inside.npz", folder / "outside.npz"
    )
    signature = parse_model(folder / "heavy.pt2", Limits()).signature
    source = TorchModel(folder / "heavy.pt2", signature)
    answers = {"source": source.run([x[~inside]])[0].argmax(axis=1)}
    for name, built in job.built.items():
        runner = find_builder(built.recipe.runtime).open_build(built.file, signature)
        answers[name] = runner.run([x[~inside]])[0].argmax(axis=1)
    save(light(), folder / "light.pt2")
    students = run_job(
        folder / "students", folder / "light.pt2", STUDENTS, folder / "inside.npz",
        teacher=folder / "heavy.pt2",
    )  # fmt: skip
    for name, built in students.built.items():
        runner = find_builder(built.recipe.runtime).open_build(built.file, signature)
        answers[name] = runner.run([x[~inside]])[0].argmax(axis=1)
    return job, answers
