"""Datasets: what a name means now and meant before. No content is ever removed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, select, update

from controller.store.tables import dataset as table


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One content of a named dataset, with its two halves."""

    name: str
    digest: str
    calibration_digest: str
    evaluation_digest: str
    facts: dict[str, Any]
    created_at: datetime
    created_by: str


def put_dataset(conn: Connection, project: str, row: DatasetRow) -> None:
    """Make this content what the name means; content that it meant before becomes the newest."""
    key = and_(table.c.project == project, table.c.name == row.name, table.c.digest == row.digest)
    values = {
        "calibration_digest": row.calibration_digest,
        "evaluation_digest": row.evaluation_digest,
        "facts": row.facts,
        "created_at": row.created_at,
        "created_by": row.created_by,
    }
    if conn.execute(update(table).where(key).values(values)).rowcount == 0:
        conn.execute(
            insert(table).values(project=project, name=row.name, digest=row.digest, **values)
        )


def find_dataset(conn: Connection, project: str, name: str) -> DatasetRow | None:
    """The newest content of that name, or None."""
    return next((row for row in list_datasets(conn, project) if row.name == name), None)


def find_dataset_content(
    conn: Connection, project: str, name: str, digest: str
) -> DatasetRow | None:
    """One content that the name means or meant, or None."""
    query = select(table).where(
        table.c.project == project, table.c.name == name, table.c.digest == digest
    )
    row = conn.execute(query).first()
    return None if row is None else _row(row)


def list_datasets(conn: Connection, project: str) -> list[DatasetRow]:
    """The newest content of every name, sorted by name."""
    query = (
        select(table)
        .where(table.c.project == project)
        .order_by(table.c.name, table.c.created_at.desc(), table.c.digest)
    )
    newest: dict[str, DatasetRow] = {}
    for row in conn.execute(query):
        newest.setdefault(row.name, _row(row))
    return list(newest.values())


def _row(row: Row[Any]) -> DatasetRow:
    return DatasetRow(
        row.name,
        row.digest,
        row.calibration_digest,
        row.evaluation_digest,
        row.facts,
        row.created_at,
        row.created_by,
    )
