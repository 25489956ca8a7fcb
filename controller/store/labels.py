"""Labels of devices."""

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, delete, insert, select

from controller.store.tables import label


def labels_of(
    conn: Connection, device_ids: Iterable[str] | None = None
) -> dict[str, dict[str, str]]:
    """Labels by device id; devices without labels are absent. With `device_ids` only those."""
    query = select(label).order_by(label.c.device_id, label.c.name)
    found: dict[str, dict[str, str]] = {}
    if device_ids is None:
        for row in conn.execute(query):
            found.setdefault(row.device_id, {})[row.name] = row.value
        return found
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in conn.execute(query.where(label.c.device_id.in_(part))):
            found.setdefault(row.device_id, {})[row.name] = row.value
    return found


def change_labels(
    conn: Connection, device_id: str, values: Mapping[str, str], remove: Iterable[str] = ()
) -> None:
    """Set and remove labels of one device."""
    names = [*values, *remove]
    if names:
        conn.execute(delete(label).where(label.c.device_id == device_id, label.c.name.in_(names)))
    for name, value in values.items():
        conn.execute(insert(label).values(device_id=device_id, name=name, value=value))
