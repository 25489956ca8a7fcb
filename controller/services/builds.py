"""Builds: start, retry, override, list. Compiles nothing: it queues jobs for workers.

A compile is made once per target and shared; the gate runs for every version and profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from controller.domain.build import Evidence, GateVerdict
from controller.domain.device import Profile
from controller.domain.finding import Finding
from controller.errors import InvalidError, NotFoundError, RefusedError
from controller.services.build_plans import plan_builds, queue_job
from controller.services.context import Ctx, Deps
from controller.services.gates import load_profiles, measured_on_class
from controller.services.models import require_version
from controller.services.suggestions import suggest_names
from controller.services.tuning_words import Told, Word, told_of
from controller.store import events
from controller.store.builds import SeenRow, list_seen, put_gate
from controller.store.objects import list_objects
from controller.store.session import Connection

MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class BuildView:
    """One build as one profile sees it; ``evidence`` is None where nothing was measured."""

    build_id: str
    model: str
    version: str
    variant: str
    recipe: str
    profile: str
    state: str
    progress_pct: float
    step: str
    reason: str
    digest: str
    size_bytes: int
    source_size_bytes: int
    evidence: Evidence | None
    measured_on_class: bool
    dataset: str
    override_reason: str
    override_by: str
    cached: bool
    job_id: str
    last_lines: tuple[str, ...]
    updated_at: datetime
    findings: tuple[Finding, ...] = ()
    override_at: datetime | None = None
    source_digest: str = ""
    dataset_digest: str = ""
    runtime: str = ""
    target_key: str = ""
    recipe_spec: Mapping[str, Any] | None = None
    asked_at: datetime | None = None  # for the first time
    built_at: datetime | None = None  # or failed
    attempts: int = 0
    worker: str = ""
    measured: tuple[Word, ...] = ()  # by devices of the profile
    rung: str = ""  # in the ladder that a person chose


def start_build(
    deps: Deps,
    ctx: Ctx,
    *,
    model: str,
    version: str,
    profiles: Sequence[str] = (),
    dataset: str = "",
    recipes: Sequence[str] = (),
) -> list[BuildView]:
    """Build a version for profiles (default: those of enrolled devices); failed ones run again.

    ``dataset`` defaults to the one named like the model. What was compiled before is only gated.
    Returns the builds that were asked for, not those of other profiles.
    Raises NotFoundError for unknown names, RefusedError when no profile is given or enrolled.
    """
    with deps.store.write() as conn:
        row = require_version(conn, ctx.project, model, version)
        asked = plan_builds(conn, ctx, deps.limits, row, profiles, dataset, recipes)
        views = _views(conn, ctx.project, model, row.version)
        return [view for view in views if any(_same(view, key) for key in asked)]


def retry_build(deps: Deps, ctx: Ctx, *, model: str, version: str) -> list[BuildView]:
    """Queue again what failed to compile. Raises RefusedError when nothing did."""
    with deps.store.write() as conn:
        row = require_version(conn, ctx.project, model, version)
        seen = list_seen(conn, ctx.project, model, row.version)
        again = False
        for variant in row.variants:
            failed = {
                one.build.build_id: one.build
                for one in seen
                if one.gate.key.variant == variant.variant
                and one.build is not None
                and one.build.state == "FAILED"
            }
            if failed:
                queue_job(conn, ctx, deps.limits, row, variant, list(failed.values()))
                again = True
        if not again:
            raise RefusedError(
                f"no build of {model}:{row.version} failed",
                f"fleetctl build list {model}:{row.version} shows their states",
            )
        return _views(conn, ctx.project, model, row.version)


def list_builds(
    deps: Deps,
    ctx: Ctx,
    *,
    model: str = "",
    version: str = "",
    profile: str = "",
    variant: str = "",
    recipe: str = "",
) -> list[BuildView]:
    """Builds as profiles see them; empty names mean all. NotFoundError for unknown names."""
    with deps.store.read() as conn:
        return read_builds(conn, ctx, model, version, profile, variant, recipe)


def read_builds(
    conn: Connection,
    ctx: Ctx,
    model: str,
    version: str,
    profile: str = "",
    variant: str = "",
    recipe: str = "",
) -> list[BuildView]:
    """As :func:`list_builds`, within a transaction."""
    if model:
        row = require_version(conn, ctx.project, model, version)
        known = [one.variant for one in row.variants]
        if variant and version and variant not in known:
            raise NotFoundError(
                f"{row.model}:{row.version} has no variant {variant}",
                *suggest_names(variant, known),
            )
    _check_profile(conn, ctx, profile)
    views = _views(conn, ctx.project, model, version, profile)
    if recipe:
        recipes = {row.name for row in list_objects(conn, ctx.project, "Recipe")}
        recipes |= {view.recipe for view in views}
        if recipe not in recipes:
            raise NotFoundError(
                f"recipe {recipe} does not exist",
                *suggest_names(recipe, sorted(recipes)),
            )
    return [view for view in views if variant in ("", view.variant) and recipe in ("", view.recipe)]


def override_build(
    deps: Deps,
    ctx: Ctx,
    *,
    model: str,
    version: str,
    profile: str,
    reason: str,
    variant: str = "",
    recipe: str = "",
) -> list[BuildView]:
    """Let refused builds be released to one profile all the same; an event says who and why.

    Raises InvalidError without a reason, RefusedError when there is nothing to override.
    """
    reason = reason.strip()
    if not reason or len(reason) > MAX_REASON_CHARS:
        raise InvalidError(
            "an override needs a reason", f"--reason TEXT, at most {MAX_REASON_CHARS} characters"
        )
    if not profile:
        raise InvalidError("an override speaks of one profile", "name it with --profile")
    with deps.store.write() as conn:
        row = require_version(conn, ctx.project, model, version)
        _check_profile(conn, ctx, profile)
        seen = [
            one
            for one in list_seen(conn, ctx.project, model, row.version, profile)
            if variant in ("", one.gate.key.variant) and recipe in ("", one.gate.key.recipe)
        ]
        chosen = [one for one in seen if _overridable(one)]
        if not chosen:
            raise _nothing_to_override(f"{model}:{row.version}", profile, seen)
        for one in chosen:
            _override(conn, ctx, one, reason)
        names = {one.gate.key for one in chosen}
        views = _views(conn, ctx.project, model, row.version, profile)
    return [view for view in views if any(_same(view, key) for key in names)]


def _check_profile(conn: Connection, ctx: Ctx, profile: str) -> None:
    """NotFoundError for a profile that does not exist and that no build is for."""
    known = sorted(load_profiles(conn, ctx.project))
    if profile and profile not in known and not list_seen(conn, ctx.project, profile=profile):
        raise NotFoundError(f"profile {profile} does not exist", *suggest_names(profile, known))


def _overridable(one: SeenRow) -> bool:
    compiled = one.build is not None and one.build.state == "COMPILED"
    return one.gate.verdict == GateVerdict.REFUSED and compiled


def _override(conn: Connection, ctx: Ctx, one: SeenRow, reason: str) -> None:
    key = one.gate.key
    put_gate(
        conn,
        ctx.project,
        replace(
            one.gate,
            verdict=GateVerdict.OVERRIDDEN.value,
            override_reason=reason,
            override_by=ctx.actor,
            override_at=ctx.now,
            updated_at=ctx.now,
        ),
    )
    events.append(
        conn,
        ctx.project,
        ctx.now,
        "build_overridden",
        ctx.actor,
        model=key.model,
        version=key.version,
        reason=reason,
        details={
            "variant": key.variant,
            "recipe": key.recipe,
            "profile": key.profile,
            "build": one.gate.build_id,
            "refused": one.gate.reason,
        },
    )


def _nothing_to_override(ref: str, profile: str, seen: Sequence[SeenRow]) -> RefusedError:
    if not seen:
        return RefusedError(
            f"{ref} was not built for {profile}", f"fleetctl build run {ref} --profile {profile}"
        )
    return RefusedError(
        f"no build of {ref} for {profile} was refused by its gate",
        *(
            f"{one.gate.key.variant}  {one.gate.key.recipe}  {state_of(one)}"
            + (f": {one.gate.reason}" if one.gate.reason else "")
            for one in seen
        ),
        "only a build that was compiled and refused can be overridden",
    )


def _same(view: BuildView, key: Any) -> bool:
    return (view.variant, view.recipe, view.profile) == (key.variant, key.recipe, key.profile)


def _views(
    conn: Connection, project: str, model: str, version: str, profile: str = ""
) -> list[BuildView]:
    profiles = load_profiles(conn, project)
    seen = list_seen(conn, project, model, version, profile)
    ids = sorted({one.gate.build_id for one in seen if one.gate.build_id})
    told = told_of(conn, project, ids, {(s.gate.key.model, s.gate.key.version) for s in seen})
    return [_with_told(_view(one, profiles), told) for one in seen]


def _with_told(view: BuildView, told: Told) -> BuildView:
    return replace(
        view,
        measured=told.of(view.build_id, view.profile),
        rung=told.rung(view.model, view.version, view.profile, view.build_id),
    )


def state_of(one: SeenRow) -> str:
    """queued, running, passed, refused, failed or overridden."""
    if one.gate.verdict != GateVerdict.PENDING or one.build is None:
        return one.gate.verdict.lower()
    return "running" if one.build.state == "RUNNING" else "queued"


def _view(one: SeenRow, profiles: Mapping[str, Profile]) -> BuildView:
    gate, build = one.gate, one.build
    state = state_of(one)
    evidence = build.evidence if build is not None and build.state == "COMPILED" else None
    profile = profiles.get(gate.key.profile)
    return BuildView(
        build_id=gate.build_id or "",
        model=gate.key.model,
        version=gate.key.version,
        variant=gate.key.variant,
        recipe=gate.key.recipe,
        profile=gate.key.profile,
        state=state,
        progress_pct={"queued": 0.0, "running": one.progress_pct}.get(state, 100.0),
        step=one.step if state == "running" else "",
        reason=gate.reason,
        digest=(build.digest or "") if build is not None else "",
        size_bytes=(build.length or 0) if build is not None else 0,
        source_size_bytes=one.source_length,
        evidence=None if evidence is None else Evidence.from_json(evidence),
        measured_on_class=bool(
            evidence is not None and profile is not None and measured_on_class(evidence, profile)
        ),
        dataset=(build.dataset or "") if build is not None else "",
        override_reason=gate.override_reason or "",
        override_by=gate.override_by or "",
        cached=gate.cached,
        job_id=one.job_id or "",
        last_lines=one.last_lines if state == "failed" else (),
        updated_at=gate.updated_at,
        findings=_findings(one, state),
        override_at=gate.override_at,
        source_digest=one.source_digest,
        dataset_digest=(build.dataset_digest or "") if build is not None else "",
        runtime=build.runtime if build is not None else "",
        target_key=build.target_key if build is not None else "",
        recipe_spec=build.recipe_spec if build is not None else None,
        asked_at=one.asked_at,
        built_at=one.built_at,
        attempts=one.attempts,
        worker=one.worker,
    )


def _findings(one: SeenRow, state: str) -> tuple[Finding, ...]:
    """All that the gate looked at; of what was judged before this was kept, its reason."""
    if one.gate.findings is not None:
        return tuple(Finding.from_json(each) for each in one.gate.findings)
    judged = state in ("passed", "refused", "overridden") and one.gate.reason
    return (Finding(state == "passed", one.gate.reason),) if judged else ()
