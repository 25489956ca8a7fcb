"""The digits models and jobs on them, as the controller would ask for them."""

import json
import shutil
from pathlib import Path
from typing import Any

from controller.intake.dataset import split_dataset
from controller.intake.models import parse_model
from controller.services.context import Limits
from controller.services.shipped import shipped_objects
from examples.digits import generate

CACHE = Path(__file__).resolve().parent.parent.parent / ".cache" / "digits"
RECIPES = ("onnxruntime-fp32", "onnxruntime-int8")

Json = dict[str, Any]


def digits() -> Path:
    """heavy.pt2, light.pt2 and digits.npz; trained once per state of the scripts."""
    return generate(CACHE)


def job_spec(
    source: Path,
    recipes: tuple[str, ...] = RECIPES,
    *,
    calibration: bool = True,
    evaluation: bool = True,
    memory_bytes: int = 6 * 1024**3,
    time_s: float = 300.0,
) -> Json:
    """A job for one variant; the source's own signature."""
    parsed = parse_model(source, Limits())
    shipped = {name: spec for kind, name, spec in shipped_objects() if kind == "Recipe"}
    return {
        "schema": 1,
        "job_id": "j-test",
        "model": "digits",
        "version": "1.0.0",
        "variant": "heavy",
        "source": {"role": "source", "format": parsed.format.value},
        "signature": parsed.signature.to_json(),
        "labels_count": 10,
        "builds": [
            {"build_id": f"b-{number}", "recipe": name, "spec": shipped[name]}
            for number, name in enumerate(recipes)
        ],
        "calibration": calibration,
        "evaluation": evaluation,
        "limits": {"memory_bytes": memory_bytes, "time_s": time_s},
        "seed": 1,
    }


def job_folder(folder: Path, source: Path, spec: Json, dataset: Path | None = None) -> Path:
    """A job's directory as the worker lays it out."""
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    shutil.copyfile(source, inputs / "source")
    if dataset is not None:
        split_dataset(dataset, inputs / "calibration", inputs / "evaluation")
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder
