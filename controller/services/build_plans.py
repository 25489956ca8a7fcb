"""What has to be compiled for a version and profiles: targets, what is there, jobs for the rest.

Writes builds, gates and jobs inside the caller's transaction; opens none.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from controller.domain.build import GateVerdict, Recipe, parse_recipe
from controller.domain.device import Profile
from controller.domain.gate import GateResult, recipes_of, refuse_early
from controller.domain.task import parse_task
from controller.domain.version_spec import variant_spec
from controller.errors import NotFoundError, RefusedError
from controller.services.context import Ctx, Limits
from controller.services.dataset_fits import check_fits
from controller.services.datasets import require_dataset
from controller.services.gates import judge, load_profiles, previous_of, recipe_of, write_gate
from controller.services.suggestions import suggest_names
from controller.services.teachers import find_teacher, refuse_teacher, teachers_of
from controller.store import events
from controller.store.artifacts import artifact_length
from controller.store.builds import (
    BuildRow,
    GateKey,
    add_build,
    enrolled_profiles,
    find_build,
    list_seen,
    new_build_id,
    queue_builds,
)
from controller.store.datasets import DatasetRow, find_dataset, find_dataset_content
from controller.store.devices import reports_runtime
from controller.store.jobs import add_job, new_job_id
from controller.store.models import VariantRow, VersionRow
from controller.store.objects import list_objects
from controller.store.session import Connection

# Counted up when a gate asks for evidence that older builds lack: they are made again then.
EVIDENCE = 2


@dataclass(frozen=True, slots=True)
class _Wish:
    """Everything that all targets of one run share."""

    version: VersionRow
    profiles: Sequence[Profile]
    recipes: dict[str, tuple[Recipe, dict[str, Any]]]
    only: frozenset[str]
    named: dict[str, tuple[str, ...]]  # by profile: what it builds where nobody names recipes
    dataset: DatasetRow | None
    dataset_name: str


def plan_builds(
    conn: Connection,
    ctx: Ctx,
    limits: Limits,
    version: VersionRow,
    profiles: Sequence[str],
    dataset: str,
    recipes: Sequence[str],
) -> frozenset[GateKey]:
    """Write a gate for every variant, profile and recipe, and queue one job per variant.

    Returns the gates that were asked for. Where all is as it was, nothing is said in the events.
    """
    wish = _wish(conn, ctx, version, profiles, dataset, recipes)
    asked: set[GateKey] = set()
    before = _standing(conn, ctx, version)
    queued = False
    for variant in version.variants:
        missing: dict[str, BuildRow] = {}
        for profile in wish.profiles:
            for name in sorted(wish.only) or wish.named[profile.name]:
                found = _plan_one(conn, ctx, wish, variant, profile, name)
                asked.add(_key(version, variant, profile, name))
                if found is not None:
                    missing[found.build_id] = found
        if missing:
            queue_job(conn, ctx, limits, version, variant, list(missing.values()))
            queued = True
    if queued or _standing(conn, ctx, version) != before:
        _tell_requested(conn, ctx, wish)
    return frozenset(asked)


def _key(version: VersionRow, variant: VariantRow, profile: Profile, recipe: str) -> GateKey:
    return GateKey(version.model, version.version, variant.variant, recipe, profile.name)


def _standing(conn: Connection, ctx: Ctx, version: VersionRow) -> dict[GateKey, tuple[str, ...]]:
    """What each gate of the version says."""
    seen = list_seen(conn, ctx.project, version.model, version.version)
    return {
        one.gate.key: (one.gate.build_id or "", one.gate.verdict, one.gate.reason) for one in seen
    }


def _tell_requested(conn: Connection, ctx: Ctx, wish: _Wish) -> None:
    version = wish.version
    events.append(
        conn,
        ctx.project,
        ctx.now,
        "build_requested",
        ctx.actor,
        model=version.model,
        version=version.version,
        details={
            "profiles": ", ".join(profile.name for profile in wish.profiles),
            "dataset": wish.dataset.name if wish.dataset else "",
        },
    )


def _plan_one(
    conn: Connection, ctx: Ctx, wish: _Wish, variant: VariantRow, profile: Profile, name: str
) -> BuildRow | None:
    """Write one gate; returns the build when it still has to be compiled and nobody does."""
    recipe, spec = wish.recipes[name]
    version = wish.version
    key = _key(version, variant, profile, name)
    found = wish.dataset.name if wish.dataset else None
    refusal = refuse_early(recipe, profile, found, wish.dataset_name)
    refusal = refusal or refuse_teacher(recipe, version, variant)
    if refusal is not None:
        write_gate(conn, ctx, key, build_id=None, result=refusal)
        return None
    around, teacher = variant_body(version, variant), find_teacher(recipe, version)
    task = task_key(version)
    target = target_key(variant.digest, recipe, spec, wish.dataset, task, teacher, around)
    row = find_build(conn, ctx.project, target)
    if row is not None and row.state != "FAILED":
        write_gate(
            conn,
            ctx,
            key,
            build_id=row.build_id,
            result=judge(row, profile, previous_of(conn, ctx.project, key, row)),
            cached=row.state == "COMPILED",
        )
        return None
    if row is None:
        row = _new_build(conn, ctx, target, variant, recipe, spec, wish.dataset)
    waits = GateResult(GateVerdict.PENDING, "")
    write_gate(conn, ctx, key, build_id=row.build_id, result=waits)
    return row


def task_key(version: VersionRow) -> dict[str, Any]:
    """What of a version decides on what its builds are judged by; empty for the default."""
    task = parse_task(version.task, version.params)
    return {} if task.is_default else {**task.to_json(), "numbers": dict(task.numbers)}


def target_key(
    source_digest: str,
    recipe: Recipe,
    spec: dict[str, Any],
    dataset: DatasetRow | None,
    task: Mapping[str, Any],
    teacher: VariantRow | None = None,
    around: Mapping[str, Any] | None = None,
) -> str:
    """Digest of all that a compile depends on: equal keys give equal builds.

    ``around`` is what the version's spec says of the variant.
    """
    quantization = recipe.quantization
    flavour = f"{quantization.get('activation', '')}{quantization.get('weight', '')}"
    content = {
        "source": source_digest,
        "recipe": spec,
        "runtime": recipe.runtime,
        "flavour": flavour or recipe.precision.value,
        "dataset": dataset.digest if dataset else None,
        "evidence": EVIDENCE,
        **({"task": dict(task)} if task else {}),
        **({"teacher": teacher.digest} if teacher else {}),
        **({"around": around} if around else {}),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def variant_body(version: VersionRow, variant: VariantRow) -> Mapping[str, Any] | None:
    """What the version's spec says of a variant; None: nothing."""
    names = [one.variant for one in version.variants]
    return variant_spec(version.spec, variant.variant, names).body


def queue_job(
    conn: Connection,
    ctx: Ctx,
    limits: Limits,
    version: VersionRow,
    variant: VariantRow,
    builds: Sequence[BuildRow],
) -> None:
    """Queue one job per dataset content that compiles ``builds``, all of this variant."""
    by_data: dict[tuple[str | None, str | None], list[BuildRow]] = {}
    for one in builds:
        by_data.setdefault((one.dataset, one.dataset_digest), []).append(one)
    for (name, digest), group in by_data.items():
        dataset = None
        if name is not None and digest is not None:
            dataset = find_dataset_content(conn, ctx.project, name, digest)
        job_id = new_job_id(conn, partial(ctx.ids.new, "j"))
        spec = _job_spec(job_id, limits, version, variant, group, dataset)
        inputs = [{"role": "source", "digest": variant.digest, "length": variant.length}]
        if dataset is not None:
            for role, part in (
                ("calibration", dataset.calibration_digest),
                ("evaluation", dataset.evaluation_digest),
            ):
                length = artifact_length(conn, ctx.project, part) or 0
                inputs.append({"role": role, "digest": part, "length": length})
        inputs += [one.input() for one in teachers_of(version, map(recipe_of, group)).values()]
        add_job(conn, ctx.project, job_id, {"job": spec, "inputs": inputs}, ctx.now)
        queue_builds(conn, [one.build_id for one in group], job_id, ctx.now)


def _job_spec(
    job_id: str,
    limits: Limits,
    version: VersionRow,
    variant: VariantRow,
    builds: Sequence[BuildRow],
    dataset: DatasetRow | None,
) -> dict[str, Any]:
    """What the job process reads; its shape is a contract with `controller.optimize`."""
    around = variant_body(version, variant)
    teachers = teachers_of(version, map(recipe_of, builds))
    return {
        **(
            {"teachers": {name: one.to_json() for name, one in teachers.items()}}
            if teachers
            else {}
        ),
        # A worker that knows nothing of what goes around a graph may not build as if nothing did.
        "schema": 2 if around else 1,
        "job_id": job_id,
        "model": version.model,
        "version": version.version,
        "variant": variant.variant,
        "source": {
            "role": "source",
            "format": variant.format,
            **({"spec": around} if around else {}),
        },
        "signature": version.signature,
        "labels_count": len(version.labels),
        # Absent for the default; a worker reads it as such then.
        **(
            {"task": version.task, "params": parse_task(version.task, version.params).numbers}
            if version.task
            else {}
        ),
        "builds": [
            {"build_id": one.build_id, "recipe": one.recipe, "spec": one.recipe_spec}
            for one in builds
        ],
        "calibration": dataset is not None and any(recipe_of(b).needs_dataset for b in builds),
        "evaluation": dataset is not None,
        "limits": {"memory_bytes": limits.job_memory_bytes, "time_s": limits.job_time_s},
        # The same source always gets the same seed: a repeated job gives the same build.
        "seed": int(variant.digest.removeprefix("sha256:")[:8], 16),
    }


def _wish(
    conn: Connection,
    ctx: Ctx,
    version: VersionRow,
    profiles: Sequence[str],
    dataset: str,
    recipes: Sequence[str],
) -> _Wish:
    known = {
        row.name: (parse_recipe(row.name, row.spec), row.spec)
        for row in list_objects(conn, ctx.project, "Recipe")
    }
    for name in recipes:
        if name not in known:
            raise NotFoundError(
                f"recipe {name} does not exist", *suggest_names(name, sorted(known))
            )
    if dataset:
        data: DatasetRow | None = require_dataset(conn, ctx.project, dataset)
    else:
        data = find_dataset(conn, ctx.project, version.model)
    if data is not None:
        check_fits(version, data)
    chosen = _choose_profiles(conn, ctx, profiles)
    parsed = {name: recipe for name, (recipe, _) in known.items()}
    return _Wish(
        version=version,
        profiles=chosen,
        recipes=known,
        only=frozenset(recipes),
        named={one.name: recipes_of(one, parsed, _reported(conn, ctx, one)) for one in chosen},
        dataset=data,
        dataset_name=dataset or version.model,
    )


def _choose_profiles(conn: Connection, ctx: Ctx, names: Sequence[str]) -> list[Profile]:
    known = load_profiles(conn, ctx.project)
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"profile {name} does not exist", *suggest_names(name, sorted(known))
            )
    chosen = sorted(set(names)) or enrolled_profiles(conn, ctx.project)
    found = [known[name] for name in chosen if name in known]
    if not found:
        raise RefusedError(
            "no enrolled device has a profile to build for",
            "enrol a device, or name one with --profile (fleetctl admin profile list)",
        )
    return found


def _reported(conn: Connection, ctx: Ctx, profile: Profile) -> frozenset[str]:
    """Which of the profile's runtimes at least one of its devices has."""
    return frozenset(
        runtime
        for runtime in profile.runtimes
        if reports_runtime(conn, ctx.project, profile.name, runtime)
    )


def _new_build(
    conn: Connection,
    ctx: Ctx,
    target: str,
    variant: VariantRow,
    recipe: Recipe,
    spec: dict[str, Any],
    dataset: DatasetRow | None,
) -> BuildRow:
    row = BuildRow(
        build_id=new_build_id(conn, partial(ctx.ids.new, "b")),
        target_key=target,
        source_digest=variant.digest,
        recipe=recipe.name,
        recipe_spec=spec,
        runtime=recipe.runtime,
        dataset=dataset.name if dataset else None,
        dataset_digest=dataset.digest if dataset else None,
        job_id=None,
        state="QUEUED",
        reason="",
        digest=None,
        length=None,
        media_type=None,
        evidence=None,
    )
    add_build(conn, ctx.project, row, ctx.now)
    return row
