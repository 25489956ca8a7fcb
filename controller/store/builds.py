"""Builds (one compile each) and their gates (one version and profile each). Judges nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, insert, select, update

from controller.domain.build import PassedBuild
from controller.store.session import fresh_id
from controller.store.tables import build, build_gate, build_job, device, variant


@dataclass(frozen=True, slots=True)
class BuildRow:
    """One compile of one source for one target."""

    build_id: str
    target_key: str
    source_digest: str
    recipe: str
    recipe_spec: dict[str, Any]
    runtime: str
    dataset: str | None
    dataset_digest: str | None
    job_id: str | None
    state: str
    reason: str
    digest: str | None
    length: int | None
    media_type: str | None
    evidence: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class GateKey:
    """What a gate is the gate of."""

    model: str
    version: str
    variant: str
    recipe: str
    profile: str


@dataclass(frozen=True, slots=True)
class GateRow:
    """The verdict on one build for a version and profile; without a build, refused before it."""

    key: GateKey
    build_id: str | None
    verdict: str
    reason: str
    override_reason: str | None
    override_by: str | None
    override_at: datetime | None
    cached: bool
    updated_at: datetime
    findings: list[dict[str, Any]] | None = None  # None: judged before they were kept


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A gate with its variant and, where there are any, its build and the job that runs it."""

    gate: GateRow
    position: int
    source_digest: str
    source_length: int
    build: BuildRow | None
    job_id: str | None
    progress_pct: float
    step: str
    last_lines: tuple[str, ...]
    asked_at: datetime | None = None  # when the build was asked for first
    built_at: datetime | None = None  # when it was last made, or not
    attempts: int = 0
    worker: str = ""


def add_build(
    conn: Connection, project: str, row: BuildRow, now: datetime, job_id: str | None = None
) -> None:
    """Add a compile that is to be made."""
    conn.execute(
        insert(build).values(
            build_id=row.build_id,
            project=project,
            target_key=row.target_key,
            source_digest=row.source_digest,
            recipe=row.recipe,
            recipe_spec=row.recipe_spec,
            runtime=row.runtime,
            dataset=row.dataset,
            dataset_digest=row.dataset_digest,
            job_id=job_id,
            state=row.state,
            reason=row.reason,
            created_at=now,
            updated_at=now,
        )
    )


def new_build_id(conn: Connection, new: Callable[[], str]) -> str:
    """An id that no build has."""
    return fresh_id(conn, build.c.build_id, new)


def find_build(conn: Connection, project: str, target_key: str) -> BuildRow | None:
    """The compile for that target, or None."""
    query = select(build).where(build.c.project == project, build.c.target_key == target_key)
    row = conn.execute(query).first()
    return None if row is None else _build(row)


def builds_of_job(conn: Connection, job_id: str) -> list[BuildRow]:
    """What the job compiles."""
    query = select(build).where(build.c.job_id == job_id).order_by(build.c.build_id)
    return [_build(row) for row in conn.execute(query)]


def queue_builds(conn: Connection, build_ids: Sequence[str], job_id: str, now: datetime) -> None:
    """Give builds to a new job; gates that said FAILED because of them are open again."""
    conn.execute(
        update(build_gate)
        .where(build_gate.c.build_id.in_(build_ids), build_gate.c.verdict == "FAILED")
        .values(verdict="PENDING", reason="", updated_at=now)
    )
    conn.execute(
        update(build)
        .where(build.c.build_id.in_(build_ids))
        .values(state="QUEUED", reason="", job_id=job_id, updated_at=now)
    )


def set_job_state(conn: Connection, job_id: str, state: str, now: datetime) -> None:
    """Set the state of those of the job's builds that are queued or running."""
    conn.execute(
        update(build)
        .where(build.c.job_id == job_id, build.c.state.in_(("QUEUED", "RUNNING")))
        .values(state=state, updated_at=now)
    )


def set_compiled(
    conn: Connection,
    build_id: str,
    *,
    digest: str,
    length: int,
    media_type: str,
    evidence: dict[str, Any],
    now: datetime,
) -> None:
    """Store what a compile gave."""
    conn.execute(
        update(build)
        .where(build.c.build_id == build_id)
        .values(
            state="COMPILED",
            reason="",
            digest=digest,
            length=length,
            media_type=media_type,
            evidence=evidence,
            updated_at=now,
        )
    )


def set_failed(conn: Connection, build_id: str, reason: str, now: datetime) -> None:
    """Store why a compile gave nothing."""
    conn.execute(
        update(build)
        .where(build.c.build_id == build_id)
        .values(state="FAILED", reason=reason, updated_at=now)
    )


def put_gate(conn: Connection, project: str, row: GateRow) -> None:
    """Write the gate, over an older one."""
    key = _gate_key(project, row.key)
    values = {
        "build_id": row.build_id,
        "verdict": row.verdict,
        "reason": row.reason,
        "override_reason": row.override_reason,
        "override_by": row.override_by,
        "override_at": row.override_at,
        "cached": row.cached,
        "updated_at": row.updated_at,
        "findings": row.findings,
    }
    if conn.execute(update(build_gate).where(key).values(values)).rowcount == 0:
        conn.execute(
            insert(build_gate).values(
                project=project,
                model=row.key.model,
                version=row.key.version,
                variant=row.key.variant,
                recipe=row.key.recipe,
                profile=row.key.profile,
                **values,
            )
        )


def find_gate(conn: Connection, project: str, key: GateKey) -> GateRow | None:
    """One gate, or None."""
    query = select(build_gate).where(_gate_key(project, key))
    row = conn.execute(query).first()
    return None if row is None else _gate(row)


def gates_of_build(conn: Connection, build_id: str) -> list[tuple[str, GateRow]]:
    """(project, gate) of every version and profile that uses the build."""
    query = select(build_gate).where(build_gate.c.build_id == build_id)
    return [(row.project, _gate(row)) for row in conn.execute(query)]


def list_seen(
    conn: Connection, project: str, model: str = "", version: str = "", profile: str = ""
) -> list[SeenRow]:
    """Gates by version, profile, variant (heavy to light) and recipe; empty names mean all."""
    query = _seen().where(build_gate.c.project == project)
    for column, wanted in (
        (build_gate.c.model, model),
        (build_gate.c.version, version),
        (build_gate.c.profile, profile),
    ):
        if wanted:
            query = query.where(column == wanted)
    return [_seen_row(row) for row in conn.execute(query)]


def enrolled_profiles(conn: Connection, project: str) -> list[str]:
    """Profiles of devices that are enrolled and not retired, by name."""
    query = (
        select(device.c.profile)
        .where(
            device.c.project == project,
            device.c.profile.is_not(None),
            device.c.state.in_(("PENDING", "ACTIVE", "QUARANTINED")),
        )
        .distinct()
        .order_by(device.c.profile)
    )
    return [str(name) for name in conn.execute(query).scalars()]


def _own_p50_ms(evidence: dict[str, Any]) -> float | None:
    """None where another runtime answered for the build's: that is no speed of it."""
    return None if evidence.get("stand_in") else evidence.get("p50_ms")


def passed_builds(
    conn: Connection, project: str, model: str, version: str, profile: str
) -> list[PassedBuild]:
    """Builds of the version that the profile's devices may get, heavy to light."""
    return [
        PassedBuild(
            build_id=seen.build.build_id,
            variant=seen.gate.key.variant,
            recipe=seen.build.recipe,
            runtime=seen.build.runtime,
            digest=seen.build.digest,
            length=seen.build.length or 0,
            media_type=seen.build.media_type or "application/onnx",
            p50_ms=_own_p50_ms(seen.build.evidence or {}),
            peak_rss_bytes=(seen.build.evidence or {}).get("peak_rss_bytes"),
            overridden=seen.gate.verdict == "OVERRIDDEN",
        )
        for seen in list_seen(conn, project, model, version, profile)
        if seen.gate.verdict in ("PASSED", "OVERRIDDEN")
        and seen.build is not None
        and seen.build.digest is not None
    ]


def _gate_key(project: str, key: GateKey) -> ColumnElement[bool]:
    return and_(
        build_gate.c.project == project,
        build_gate.c.model == key.model,
        build_gate.c.version == key.version,
        build_gate.c.variant == key.variant,
        build_gate.c.recipe == key.recipe,
        build_gate.c.profile == key.profile,
    )


def _seen() -> Select[Any]:
    gate_columns = [column.label(f"gate_{column.name}") for column in build_gate.c]
    build_columns = [column.label(f"build_{column.name}") for column in build.c]
    return (
        select(
            *gate_columns,
            *build_columns,
            variant.c.position,
            variant.c.digest.label("variant_digest"),
            variant.c.length.label("variant_length"),
            build_job.c.job_id,
            build_job.c.progress_pct,
            build_job.c.step,
            build_job.c.last_lines,
            build_job.c.attempt,
            build_job.c.worker,
        )
        .join_from(
            build_gate,
            variant,
            and_(
                variant.c.project == build_gate.c.project,
                variant.c.model == build_gate.c.model,
                variant.c.version == build_gate.c.version,
                variant.c.variant == build_gate.c.variant,
            ),
        )
        .outerjoin(build, build.c.build_id == build_gate.c.build_id)
        .outerjoin(build_job, build_job.c.job_id == build.c.job_id)
        .order_by(
            build_gate.c.model,
            build_gate.c.version,
            build_gate.c.profile,
            variant.c.position,
            build_gate.c.recipe,
        )
    )


def _seen_row(row: Row[Any]) -> SeenRow:
    return SeenRow(
        gate=_gate(row, "gate_"),
        position=row.position,
        source_digest=row.variant_digest,
        source_length=row.variant_length,
        build=None if row.build_build_id is None else _build(row, "build_"),
        job_id=row.job_id,
        progress_pct=row.progress_pct or 0.0,
        step=row.step or "",
        last_lines=tuple(row.last_lines or ()),
        asked_at=row.build_created_at,
        built_at=row.build_updated_at if row.build_state in ("COMPILED", "FAILED") else None,
        attempts=row.attempt or 0,
        worker=row.worker or "",
    )


def _build(row: Row[Any], prefix: str = "") -> BuildRow:
    value = row._mapping
    return BuildRow(
        build_id=value[f"{prefix}build_id"],
        target_key=value[f"{prefix}target_key"],
        source_digest=value[f"{prefix}source_digest"],
        recipe=value[f"{prefix}recipe"],
        recipe_spec=value[f"{prefix}recipe_spec"],
        runtime=value[f"{prefix}runtime"],
        dataset=value[f"{prefix}dataset"],
        dataset_digest=value[f"{prefix}dataset_digest"],
        job_id=value[f"{prefix}job_id"],
        state=value[f"{prefix}state"],
        reason=value[f"{prefix}reason"],
        digest=value[f"{prefix}digest"],
        length=value[f"{prefix}length"],
        media_type=value[f"{prefix}media_type"],
        evidence=value[f"{prefix}evidence"],
    )


def _gate(row: Row[Any], prefix: str = "") -> GateRow:
    value = row._mapping
    return GateRow(
        key=GateKey(
            value[f"{prefix}model"],
            value[f"{prefix}version"],
            value[f"{prefix}variant"],
            value[f"{prefix}recipe"],
            value[f"{prefix}profile"],
        ),
        build_id=value[f"{prefix}build_id"],
        verdict=value[f"{prefix}verdict"],
        reason=value[f"{prefix}reason"],
        override_reason=value[f"{prefix}override_reason"],
        override_by=value[f"{prefix}override_by"],
        override_at=value[f"{prefix}override_at"],
        cached=value[f"{prefix}cached"],
        updated_at=value[f"{prefix}updated_at"],
        findings=value[f"{prefix}findings"],
    )
