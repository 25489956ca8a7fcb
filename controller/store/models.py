"""Models, versions and variants. Versions are only ever added: no function here changes one."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from controller.store.tables import device, model, variant, version


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One variant of a version; position 0 is the heaviest."""

    variant: str
    position: int
    digest: str
    length: int
    format: str
    file_name: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One immutable version with its variants, heavy to light."""

    model: str
    version: str
    content_digest: str
    signature: dict[str, Any]
    labels: list[str]
    params: dict[str, Any]
    licence: str
    created_at: datetime
    created_by: str
    variants: tuple[VariantRow, ...]
    task: dict[str, Any] = field(default_factory=dict)  # empty: classification


def add_version(conn: Connection, project: str, row: VersionRow) -> None:
    """Add a version and, when it is the first one, its model."""
    known = select(model.c.name).where(model.c.project == project, model.c.name == row.model)
    if conn.execute(known).first() is None:
        conn.execute(
            insert(model).values(project=project, name=row.model, created_at=row.created_at)
        )
    conn.execute(
        insert(version).values(
            project=project,
            model=row.model,
            version=row.version,
            content_digest=row.content_digest,
            signature=row.signature,
            labels=row.labels,
            params=row.params,
            task=row.task or None,
            licence=row.licence,
            created_at=row.created_at,
            created_by=row.created_by,
        )
    )
    conn.execute(
        insert(variant),
        [
            {
                "project": project,
                "model": row.model,
                "version": row.version,
                "variant": one.variant,
                "position": one.position,
                "digest": one.digest,
                "length": one.length,
                "format": one.format,
                "file_name": one.file_name,
            }
            for one in row.variants
        ],
    )


def find_version(conn: Connection, project: str, name: str, number: str) -> VersionRow | None:
    """One version, or None."""
    found = list_versions(conn, project, name, number)
    return found[0] if found else None


def list_versions(
    conn: Connection, project: str, name: str = "", number: str = ""
) -> list[VersionRow]:
    """Versions by model, newest first within one; empty names mean all."""
    query = select(version).where(version.c.project == project)
    parts = select(variant).where(variant.c.project == project)
    if name:
        query = query.where(version.c.model == name)
        parts = parts.where(variant.c.model == name)
    if number:
        query = query.where(version.c.version == number)
        parts = parts.where(variant.c.version == number)
    variants: dict[tuple[str, str], list[VariantRow]] = {}
    for row in conn.execute(parts.order_by(variant.c.position)):
        variants.setdefault((row.model, row.version), []).append(
            VariantRow(row.variant, row.position, row.digest, row.length, row.format, row.file_name)
        )
    query = query.order_by(version.c.model, version.c.created_at.desc(), version.c.version.desc())
    return [
        VersionRow(
            row.model,
            row.version,
            row.content_digest,
            row.signature,
            row.labels,
            row.params,
            row.licence,
            row.created_at,
            row.created_by,
            tuple(variants.get((row.model, row.version), ())),
            row.task or {},
        )
        for row in conn.execute(query)
    ]


def list_model_names(conn: Connection, project: str) -> list[str]:
    """Names of all models, sorted."""
    query = select(model.c.name).where(model.c.project == project).order_by(model.c.name)
    return [str(name) for name in conn.execute(query).scalars()]


def count_running(conn: Connection, project: str) -> dict[tuple[str, str], int]:
    """Active devices by (model, version) that they said they run in their last telemetry."""
    counts: dict[tuple[str, str], int] = {}
    query = select(device.c.status).where(device.c.project == project, device.c.state == "ACTIVE")
    for status in conn.execute(query).scalars():
        for one in (status or {}).get("models", ()):
            key = (str(one.get("model", "")), str(one.get("version", "")))
            counts[key] = counts.get(key, 0) + 1
    return counts
