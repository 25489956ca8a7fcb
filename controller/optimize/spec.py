"""What a job is asked and what it answers: `spec.json` in, `result.json` out. Runs nothing.

Refuses specs of another schema: the controller and its workers may differ in age.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controller.domain.build import Recipe, parse_recipe
from controller.domain.model import ModelFormat, Signature
from controller.domain.task import CLASSIFY, Task, parse_task
from controller.domain.version_spec import VariantSpec, parse_variant
from controller.errors import InvalidError

SCHEMA = 1
AROUND_SCHEMA = 2  # something goes around the source's graph, which older workers do not know
_RUNTIME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_BUILD_ID = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """One build of the job."""

    build_id: str
    recipe: Recipe

    @property
    def file_name(self) -> str:
        """Name of the result in `outputs/`."""
        runtime = self.recipe.runtime
        return f"{self.build_id}.{'onnx' if runtime == 'onnxruntime' else runtime}"


@dataclass(frozen=True, slots=True)
class Teacher:
    """Another variant of the version, which a recipe's training learns from."""

    role: str
    format: ModelFormat


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One variant, compiled by some recipes in one process, so that the export is paid once."""

    job_id: str
    source_role: str
    source_format: ModelFormat
    signature: Signature
    builds: tuple[BuildSpec, ...]
    calibration: bool
    evaluation: bool
    memory_bytes: int
    time_s: float
    seed: int
    task: Task = CLASSIFY
    teachers: Mapping[str, Teacher] = field(default_factory=dict)  # as recipes name them
    around: VariantSpec = field(
        default_factory=VariantSpec
    )  # what the version's spec says of the source


def read_spec(path: Path) -> JobSpec:
    """Parse `spec.json`. Raises InvalidError naming what is wrong."""
    return parse_spec(path.read_text(encoding="utf-8"))


def parse_spec(text: str) -> JobSpec:
    """Parse a job's spec. Raises InvalidError naming what is wrong."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InvalidError(f"the job's spec is no JSON: {error}") from error
    if not isinstance(body, dict) or body.get("schema") not in (SCHEMA, AROUND_SCHEMA):
        found = body.get("schema") if isinstance(body, dict) else None
        raise InvalidError(
            f"the job's spec has schema {found!r}, this worker knows {SCHEMA} and {AROUND_SCHEMA}",
            "controller and worker have to be of the same release",
        )
    try:
        source, limits = body["source"], body["limits"]
        return JobSpec(
            job_id=str(body["job_id"]),
            source_role=str(source["role"]),
            source_format=ModelFormat(source["format"]),
            signature=Signature.from_json(body["signature"]),
            builds=tuple(_build(item) for item in body["builds"]),
            calibration=body["calibration"] is True,
            evaluation=body["evaluation"] is True,
            memory_bytes=int(limits["memory_bytes"]),
            time_s=float(limits["time_s"]),
            seed=int(body["seed"]),
            task=parse_task(body.get("task") or {}, body.get("params") or {}),
            teachers={
                str(name): Teacher(str(one["role"]), ModelFormat(one["format"]))
                for name, one in (body.get("teachers") or {}).items()
            },
            around=parse_variant(source.get("spec") or {}),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidError(f"the job's spec is incomplete: {error!r}") from error


def _build(item: Mapping[str, object]) -> BuildSpec:
    build_id, name, body = item["build_id"], item["recipe"], item["spec"]
    if not isinstance(build_id, str) or not _BUILD_ID.fullmatch(build_id):
        raise InvalidError(f"{build_id!r} is no build id")
    if not isinstance(name, str) or not isinstance(body, Mapping):
        raise InvalidError(f"build {build_id} has no recipe")
    recipe = parse_recipe(name, body)
    if not _RUNTIME.fullmatch(recipe.runtime):
        raise InvalidError(
            f"recipe {name} is for {recipe.runtime!r}, which is no name of a runtime"
        )
    return BuildSpec(build_id, recipe)
