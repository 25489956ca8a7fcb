"""What metrics are made of: counts over whole tables, all projects together. Reads only."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, case, func, or_, select

from controller.store.tables import (
    assignment,
    build,
    build_gate,
    capability,
    desired,
    device,
    event,
    outbox,
    profile,
    rollout,
    version,
)


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """One device, as far as it is counted; `status` is its last health document."""

    device_id: str
    profile: str
    state: str
    online: bool
    seen_at: datetime
    status: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutFact:
    """One rollout that is shown."""

    rollout_id: str
    model: str
    version: str
    phase: str


@dataclass(frozen=True, slots=True)
class CountedEvent:
    """One event that a counter is made of."""

    number: int
    kind: str
    model: str
    version: str
    details: dict[str, str]


def list_facts(conn: Connection) -> list[DeviceFact]:
    """Every device that is not retired; one that never spoke was last seen when it enrolled."""
    query = select(
        device.c.device_id,
        device.c.profile,
        device.c.state,
        device.c.online,
        func.coalesce(device.c.last_seen_at, device.c.enrolled_at, type_=device.c.enrolled_at.type),
        device.c.status,
    ).where(device.c.state != "RETIRED")
    return [
        DeviceFact(row[0], row[1] or "", row[2], bool(row[3]), row[4], row[5] or {})
        for row in conn.execute(query)
    ]


def memory_totals(conn: Connection) -> dict[str, int]:
    """Physical memory in bytes by device id, of devices that told it."""
    column = capability.c.reported["memory_bytes"].as_float()  # an INTEGER holds 2 GiB
    query = select(capability.c.device_id, column).where(column.is_not(None))
    return {row[0]: int(row[1]) for row in conn.execute(query)}


def count_behind(conn: Connection) -> int:
    """Active devices that have not applied what they should run."""
    query = (
        select(func.count())
        .select_from(device.join(desired, desired.c.device_id == device.c.device_id))
        .where(device.c.applied_generation < desired.c.generation, device.c.state == "ACTIVE")
    )
    return int(conn.execute(query).scalar_one())


def list_shown(conn: Connection, since: datetime, limit: int) -> list[RolloutFact]:
    """Rollouts under way or ended after `since`: those under way first, then the newest."""
    query = (
        select(rollout.c.rollout_id, rollout.c.model, rollout.c.version, rollout.c.phase)
        .where(or_(rollout.c.finished_at.is_(None), rollout.c.finished_at >= since))
        .order_by(case((rollout.c.finished_at.is_(None), 0), else_=1), rollout.c.created_at.desc())
        .limit(limit)
    )
    return [RolloutFact(*row) for row in conn.execute(query)]


def count_rollout_states(
    conn: Connection, rollout_ids: Sequence[str]
) -> dict[tuple[str, str], int]:
    """Devices by (rollout, state of the assignment)."""
    query = (
        select(assignment.c.rollout_id, assignment.c.state, func.count())
        .where(assignment.c.rollout_id.in_(rollout_ids))
        .group_by(assignment.c.rollout_id, assignment.c.state)
    )
    return {(row[0], row[1]): int(row[2]) for row in conn.execute(query)}


def count_assignment_states(conn: Connection) -> dict[str, int]:
    """All assignments by state."""
    query = select(assignment.c.state, func.count()).group_by(assignment.c.state)
    return {row[0]: int(row[1]) for row in conn.execute(query)}


def count_build_states(conn: Connection) -> dict[str, int]:
    """Builds by state, as `fleetctl build list` names them."""
    state = case(
        (build_gate.c.verdict != "PENDING", func.lower(build_gate.c.verdict)),
        (build.c.state == "RUNNING", "running"),
        else_="queued",
    )
    joined = build_gate.outerjoin(build, build.c.build_id == build_gate.c.build_id)
    query = select(state.label("s"), func.count()).select_from(joined).group_by("s")
    return {row[0]: int(row[1]) for row in conn.execute(query)}


def outbox_backlog(conn: Connection) -> tuple[int, datetime | None]:
    """How many rows wait to be told, and since when the oldest does."""
    oldest = func.min(outbox.c.created_at, type_=outbox.c.created_at.type)
    count, since = conn.execute(select(func.count(), oldest)).one()
    return int(count), since


def newest_versions(conn: Connection, per_model: int) -> list[tuple[str, str]]:
    """(model, version) of the versions pushed last of every model."""
    rank = (
        func.row_number()
        .over(
            partition_by=(version.c.project, version.c.model),
            order_by=version.c.created_at.desc(),
        )
        .label("rank")
    )
    ranked = select(version.c.model, version.c.version, rank).subquery()
    query = select(ranked.c.model, ranked.c.version).where(ranked.c.rank <= per_model)
    return sorted({(row[0], row[1]) for row in conn.execute(query)})


def versions_of_devices(
    conn: Connection, device_ids: Iterable[str]
) -> dict[str, frozenset[tuple[str, str]]]:
    """(model, version) that rollouts ever gave to each device, or took from it."""
    columns = (
        assignment.c.device_id,
        assignment.c.model,
        assignment.c.version,
        assignment.c.previous_version,
    )
    wanted = sorted(device_ids)
    found: dict[str, set[tuple[str, str]]] = {device_id: set() for device_id in wanted}
    for start in range(0, len(wanted), 500):
        query = select(*columns).where(assignment.c.device_id.in_(wanted[start : start + 500]))
        for device_id, model, new, old in conn.execute(query):
            found[device_id].add((model, new))
            if old:
                found[device_id].add((model, old))
    return {device_id: frozenset(versions) for device_id, versions in found.items()}


def profile_specs(conn: Connection) -> list[tuple[str, dict[str, Any]]]:
    """(name, spec) of every profile."""
    query = select(profile.c.name, profile.c.spec).order_by(profile.c.name)
    return [(row[0], dict(row[1])) for row in conn.execute(query)]


def counted_events(
    conn: Connection, kinds: Sequence[str], after: int, upto: int
) -> Iterator[CountedEvent]:
    """Events of these kinds with a number in (after, upto], in order."""
    query = (
        select(event.c.number, event.c.kind, event.c.model, event.c.version, event.c.details)
        .where(and_(event.c.number > after, event.c.number <= upto), event.c.kind.in_(kinds))
        .order_by(event.c.number)
    )
    for row in conn.execute(query):
        yield CountedEvent(row[0], row[1], row[2] or "", row[3] or "", row[4] or {})
