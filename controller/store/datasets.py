"""Datasets: what a name means now and meant before. Rows are only ever added."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

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


def add_dataset(conn: Connection, project: str, row: DatasetRow) -> None:
    """Add newer content under the name."""
    conn.execute(
        insert(table).values(
            project=project,
            name=row.name,
            digest=row.digest,
            calibration_digest=row.calibration_digest,
            evaluation_digest=row.evaluation_digest,
            facts=row.facts,
            created_at=row.created_at,
            created_by=row.created_by,
        )
    )


def find_dataset(conn: Connection, project: str, name: str) -> DatasetRow | None:
    """The newest content of that name, or None."""
    return next((row for row in list_datasets(conn, project) if row.name == name), None)


def list_datasets(conn: Connection, project: str) -> list[DatasetRow]:
    """The newest content of every name, sorted by name."""
    query = (
        select(table)
        .where(table.c.project == project)
        .order_by(table.c.name, table.c.created_at.desc(), table.c.digest)
    )
    newest: dict[str, DatasetRow] = {}
    for row in conn.execute(query):
        newest.setdefault(
            row.name,
            DatasetRow(
                row.name,
                row.digest,
                row.calibration_digest,
                row.evaluation_digest,
                row.facts,
                row.created_at,
                row.created_by,
            ),
        )
    return list(newest.values())
