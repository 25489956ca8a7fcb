"""Runs the optimiser's job process as a worker does, and reads what it answers."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.domain.build import Evidence, Recipe, parse_recipe
from controller.domain.device import parse_profile
from controller.domain.gate import GateResult, gate
from controller.domain.model import Signature
from controller.intake.models import parse_model
from controller.services.context import Limits
from controller.services.shipped import shipped_objects
from examples.fleet.clock import monotonic

JOB_S = 900.0
JOB_BYTES = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Built:
    """One build: its file, what was measured, what the gate says."""

    recipe: Recipe
    file: Path
    size_bytes: int
    evidence: Evidence
    gate: GateResult


@dataclass(frozen=True, slots=True)
class Ran:
    """A job: what it made, by recipe; why the rest was not; its time and memory."""

    built: dict[str, Built]
    errors: dict[str, str]
    took_s: float
    peak_rss_mb: float
    signature: Signature


def shipped_recipe(name: str) -> dict[str, Any]:
    """The spec of a shipped recipe, as a copy."""
    specs = {one: spec for kind, one, spec in shipped_objects() if kind == "Recipe"}
    found: dict[str, Any] = json.loads(json.dumps(specs[name]))
    return found


def run_job(
    folder: Path,
    source: Path,
    recipes: dict[str, dict[str, Any]],
    calibration: Path | None = None,
    evaluation: Path | None = None,
    teacher: Path | None = None,
    task: Mapping[str, Any] | None = None,
) -> Ran:
    """Build ``source`` by the recipes. RuntimeError where the process itself fails."""
    shutil.rmtree(folder, ignore_errors=True)
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    for role, path in (
        ("source", source), ("calibration", calibration), ("evaluation", evaluation),
        ("teacher0", teacher),
    ):  # fmt: skip
        if path is not None:
            os.link(path, inputs / role)
    parsed = parse_model(source, Limits())
    spec = {
        "schema": 1, "job_id": "j-bench", "seed": 1,
        "source": {"role": "source", "format": parsed.format.value},
        "signature": parsed.signature.to_json(),
        "builds": [
            {"build_id": f"b-{number}", "recipe": name, "spec": body}
            for number, (name, body) in enumerate(recipes.items())
        ],
        "calibration": calibration is not None, "evaluation": evaluation is not None,
        "limits": {"memory_bytes": JOB_BYTES, "time_s": JOB_S},
        "teachers": {"heaviest": {"role": "teacher0", "format": parsed.format.value}},
        **(task or {}),
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    began = monotonic()
    peak_kb = _run(folder)
    took_s = monotonic() - began
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))["builds"]
    return _ran(folder, rows, recipes, Ran({}, {}, took_s, peak_kb / 1024, parsed.signature))


def _ran(
    folder: Path, rows: list[dict[str, Any]], recipes: dict[str, dict[str, Any]], found: Ran
) -> Ran:
    """With what each row of the result says."""
    for row in rows:
        name = row["recipe"]
        if row["ok"]:
            recipe = parse_recipe(name, recipes[name])
            kind = "onnx" if recipe.runtime == "onnxruntime" else recipe.runtime
            file = folder / "outputs" / f"{row['build_id']}.{kind}"
            evidence = Evidence.from_json(row["evidence"])
            found.built[name] = Built(
                recipe, file, row["length"], evidence, _gate(evidence, recipe)
            )
        else:
            found.errors[name] = row["error"].replace("\n", "; ")
    return found


def _gate(evidence: Evidence, recipe: Recipe) -> GateResult:
    """Of a profile without budgets."""
    profile = parse_profile("any", {"runtimes": [recipe.runtime], "recipes": [recipe.name]})
    return gate(evidence, profile, recipe, host_matches=True)


def _run(folder: Path) -> int:
    """The largest resident memory of the job and of what it started, in KiB."""
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    with (folder / "log").open("wb") as log, Path(os.devnull).open("wb") as nothing:
        child = os.posix_spawn(
            command[0], command, os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
        )  # fmt: skip
        _, status, used = os.wait4(child, 0)
    if status:
        tail = (folder / "log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the job of {folder} failed:\n{tail}")
    return used.ru_maxrss
