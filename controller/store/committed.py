"""Which versions are committed on devices. Reads assignments, changes none."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, func, select

from controller.domain.rollout import AssignmentState
from controller.store.tables import assignment


def committed_versions(
    conn: Connection, models: Iterable[str], device_ids: Sequence[str] | None = None
) -> dict[str, dict[str, str]]:
    """By device and model the version committed last and not left since; with ids only those."""
    rank = (
        func.row_number()
        .over(
            partition_by=(assignment.c.device_id, assignment.c.model),
            order_by=(assignment.c.offered_at.desc(), assignment.c.rollout_id),
        )
        .label("rank")
    )
    columns = (assignment.c.device_id, assignment.c.model, assignment.c.version)
    committed = select(*columns, rank).where(
        assignment.c.state == AssignmentState.COMMITTED.value,
        assignment.c.model.in_(sorted(models)),
    )
    parts: list[Sequence[str] | None] = [None]
    if device_ids is not None:
        parts = [device_ids[start : start + 500] for start in range(0, len(device_ids), 500)]
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        some = committed if part is None else committed.where(assignment.c.device_id.in_(part))
        ranked = some.subquery()
        newest = select(*list(ranked.c)[:3]).where(ranked.c.rank == 1)
        for device_id, model, version in conn.execute(newest):
            found.setdefault(device_id, {})[model] = version
    return found
