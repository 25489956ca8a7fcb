"""Documented objects as they were applied: profiles, policies, recipes, groups. Validates none."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from controller.store.tables import device_group, policy, profile, recipe

TABLES: dict[str, Table] = {
    "Profile": profile,
    "Policy": policy,
    "Recipe": recipe,
    "Group": device_group,
}


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One object; ``shipped`` until a person changes it."""

    kind: str
    name: str
    spec: dict[str, Any]
    shipped: bool
    updated_at: datetime
    updated_by: str


def put_object(conn: Connection, project: str, row: ObjectRow) -> None:
    """Write the object, over one of the same name if there is one."""
    table = TABLES[row.kind]
    key = (table.c.project == project) & (table.c.name == row.name)
    values = {
        "spec": row.spec,
        "shipped": row.shipped,
        "updated_at": row.updated_at,
        "updated_by": row.updated_by,
    }
    if conn.execute(update(table).where(key).values(values)).rowcount == 0:
        conn.execute(insert(table).values(project=project, name=row.name, **values))


def find_object(conn: Connection, project: str, kind: str, name: str) -> ObjectRow | None:
    """One object, or None."""
    table = TABLES[kind]
    row = conn.execute(
        select(table).where(table.c.project == project, table.c.name == name)
    ).first()
    if row is None:
        return None
    return ObjectRow(kind, row.name, row.spec, row.shipped, row.updated_at, row.updated_by)


def list_objects(conn: Connection, project: str, kind: str) -> list[ObjectRow]:
    """All objects of a kind, by name."""
    table = TABLES[kind]
    query = select(table).where(table.c.project == project).order_by(table.c.name)
    return [
        ObjectRow(kind, row.name, row.spec, row.shipped, row.updated_at, row.updated_by)
        for row in conn.execute(query)
    ]
