"""Models, versions and variants. Versions are only ever added: no function here changes one."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, insert, select

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
    spec: dict[str, Any] = field(default_factory=dict)  # of `domain.version_spec`


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
            spec=row.spec,
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
    wanted = {"of_project": project}
    wanted |= {"of_model": name} if name else {}
    wanted |= {"of_version": number} if number else {}
    query, parts = _listing(bool(name), bool(number))
    variants: dict[tuple[str, str], list[VariantRow]] = {}
    for row in conn.execute(parts, wanted):
        variants.setdefault((row.model, row.version), []).append(
            VariantRow(row.variant, row.position, row.digest, row.length, row.format, row.file_name)
        )
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
            row.spec or {},
        )
        for row in conn.execute(query, wanted)
    ]


@cache
def _listing(by_model: bool, by_number: bool) -> tuple[Select[Any], Select[Any]]:
    """Versions, and their variants: put together once for each kind of question."""
    query = select(version).where(version.c.project == bindparam("of_project"))
    parts = select(variant).where(variant.c.project == bindparam("of_project"))
    if by_model:
        query = query.where(version.c.model == bindparam("of_model"))
        parts = parts.where(variant.c.model == bindparam("of_model"))
    if by_number:
        query = query.where(version.c.version == bindparam("of_version"))
        parts = parts.where(variant.c.version == bindparam("of_version"))
    query = query.order_by(version.c.model, version.c.created_at.desc(), version.c.version.desc())
    return query, parts.order_by(variant.c.position)


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
