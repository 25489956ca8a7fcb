"""Measurements on devices: what is asked of whom, what they said, which ladder was made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from controller.store.session import fresh_id
from controller.store.tables import (
    device_order,
    ladder_choice,
    measurement,
    tuning,
    tuning_device,
)


@dataclass(frozen=True, slots=True)
class TuningRow:
    """One measurement of some builds on some devices."""

    tuning_id: str
    model: str
    version: str
    profile: str
    selector: str
    state: str
    options: dict[str, Any]
    build_ids: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TuningDeviceRow:
    """What one device still has to measure."""

    tuning_id: str
    device_id: str
    build_ids: tuple[str, ...]
    total: int
    note: str


@dataclass(frozen=True, slots=True)
class MeasurementRow:
    """The newest word of a device on a build."""

    build_id: str
    device_id: str
    tuning_id: str
    figures: dict[str, Any]
    measured_at: datetime


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A ladder that a person chose; ``basis`` says on what it was measured."""

    build_ids: tuple[str, ...]
    basis: str
    chosen_at: datetime
    chosen_by: str


def new_tuning_id(conn: Connection, new: Callable[[], str]) -> str:
    """An id that no measurement has."""
    return fresh_id(conn, tuning.c.tuning_id, new)


def add_tuning(
    conn: Connection, project: str, row: TuningRow, devices: Sequence[TuningDeviceRow]
) -> None:
    """Store a measurement that begins; the devices have something to measure."""
    conn.execute(
        insert(tuning).values(
            tuning_id=row.tuning_id,
            project=project,
            model=row.model,
            version=row.version,
            profile=row.profile,
            selector=row.selector,
            state=row.state,
            options=row.options,
            build_ids=list(row.build_ids),
            created_at=row.created_at,
            created_by=row.created_by,
            expires_at=row.expires_at,
        )
    )
    if devices:
        conn.execute(
            insert(tuning_device),
            [
                {
                    "tuning_id": one.tuning_id,
                    "device_id": one.device_id,
                    "build_ids": list(one.build_ids),
                    "total": one.total,
                    "note": one.note,
                    "updated_at": row.created_at,
                }
                for one in devices
            ],
        )


def newest_tuning(
    conn: Connection, project: str, model: str, version: str, profile: str
) -> TuningRow | None:
    """The one that runs, or else the last; None where there never was one."""
    query = (
        select(tuning)
        .where(
            tuning.c.project == project,
            tuning.c.model == model,
            tuning.c.version == version,
            tuning.c.profile == profile,
        )
        .order_by(
            (tuning.c.state == "RUNNING").desc(),
            tuning.c.created_at.desc(),
            tuning.c.tuning_id.desc(),
        )
        .limit(1)
    )
    row = conn.execute(query).first()
    return None if row is None else _tuning(row)


def running_of_device(
    conn: Connection, device_id: str
) -> list[tuple[str, TuningRow, TuningDeviceRow]]:
    """(project, measurement, share) of what the device is asked now, oldest first."""
    query = (
        select(tuning, *_DEVICE_COLUMNS)
        .join_from(tuning, tuning_device, tuning_device.c.tuning_id == tuning.c.tuning_id)
        .where(tuning_device.c.device_id == device_id, tuning.c.state == "RUNNING")
        .order_by(tuning.c.created_at, tuning.c.tuning_id)
    )
    return [(row.project, _tuning(row), _share(row, "d_")) for row in conn.execute(query)]


def shares_of(conn: Connection, tuning_id: str) -> list[TuningDeviceRow]:
    """The devices of a measurement by id."""
    query = (
        select(tuning_device)
        .where(tuning_device.c.tuning_id == tuning_id)
        .order_by(tuning_device.c.device_id)
    )
    return [_share(row) for row in conn.execute(query)]


def end_tuning(conn: Connection, tuning_id: str, state: str, now: datetime) -> None:
    """It is over; only one that runs."""
    conn.execute(
        update(tuning)
        .where(tuning.c.tuning_id == tuning_id, tuning.c.state == "RUNNING")
        .values(state=state, ended_at=now)
    )


def set_share(
    conn: Connection,
    share: TuningDeviceRow,
    now: datetime,
    *,
    build_ids: Sequence[str] | None = None,
    note: str | None = None,
) -> None:
    """Change what a device still has to measure, or what it said last."""
    values: dict[str, Any] = {"updated_at": now}
    if build_ids is not None:
        values["build_ids"] = list(build_ids)
    if note is not None:
        values["note"] = note
    conn.execute(
        update(tuning_device)
        .where(
            tuning_device.c.tuning_id == share.tuning_id,
            tuning_device.c.device_id == share.device_id,
        )
        .values(**values)
    )


def put_measurement(conn: Connection, project: str, row: MeasurementRow) -> None:
    """Write over what the device said of the build before."""
    key = (measurement.c.build_id == row.build_id) & (measurement.c.device_id == row.device_id)
    values = {
        "project": project,
        "tuning_id": row.tuning_id,
        "figures": row.figures,
        "measured_at": row.measured_at,
    }
    if conn.execute(update(measurement).where(key).values(**values)).rowcount == 0:
        conn.execute(
            insert(measurement).values(build_id=row.build_id, device_id=row.device_id, **values)
        )


def measurements_of(
    conn: Connection, project: str, build_ids: Sequence[str]
) -> dict[str, list[MeasurementRow]]:
    """What devices said of these builds, by build; devices by id."""
    query = (
        select(measurement)
        .where(measurement.c.project == project, measurement.c.build_id.in_(build_ids))
        .order_by(measurement.c.device_id)
    )
    found: dict[str, list[MeasurementRow]] = {}
    for row in conn.execute(query):
        one = MeasurementRow(
            row.build_id, row.device_id, row.tuning_id, dict(row.figures), row.measured_at
        )
        found.setdefault(one.build_id, []).append(one)
    return found


def put_choice(
    conn: Connection, project: str, names: tuple[str, str, str], row: ChoiceRow | None
) -> None:
    """The ladder of (model, version, profile); None: none is chosen any more."""
    model, version, profile = names
    conn.execute(
        delete(ladder_choice).where(
            ladder_choice.c.project == project,
            ladder_choice.c.model == model,
            ladder_choice.c.version == version,
            ladder_choice.c.profile == profile,
        )
    )
    if row is not None:
        conn.execute(
            insert(ladder_choice).values(
                project=project,
                model=model,
                version=version,
                profile=profile,
                build_ids=list(row.build_ids),
                basis=row.basis,
                chosen_at=row.chosen_at,
                chosen_by=row.chosen_by,
            )
        )


def choices_of(conn: Connection, project: str, model: str, version: str) -> dict[str, ChoiceRow]:
    """The chosen ladders of a version by profile."""
    query = select(ladder_choice).where(
        ladder_choice.c.project == project,
        ladder_choice.c.model == model,
        ladder_choice.c.version == version,
    )
    return {
        row.profile: ChoiceRow(tuple(row.build_ids), row.basis, row.chosen_at, row.chosen_by)
        for row in conn.execute(query)
    }


def order_number(conn: Connection, device_id: str) -> int:
    """The number of the newest orders; 0: there never were any."""
    query = select(device_order.c.number).where(device_order.c.device_id == device_id)
    return int(conn.execute(query).scalar() or 0)


def next_order(conn: Connection, device_id: str, now: datetime) -> int:
    """There are other orders for the device from now on; gives their number."""
    number = order_number(conn, device_id) + 1
    key = device_order.c.device_id == device_id
    values = {"number": number, "updated_at": now}
    if conn.execute(update(device_order).where(key).values(**values)).rowcount == 0:
        conn.execute(insert(device_order).values(device_id=device_id, **values))
    return number


_DEVICE_COLUMNS = [column.label(f"d_{column.name}") for column in tuning_device.c]


def _tuning(row: Row[Any]) -> TuningRow:
    return TuningRow(
        tuning_id=row.tuning_id,
        model=row.model,
        version=row.version,
        profile=row.profile,
        selector=row.selector,
        state=row.state,
        options=dict(row.options),
        build_ids=tuple(row.build_ids),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
    )


def _share(row: Row[Any], prefix: str = "") -> TuningDeviceRow:
    value = row._mapping
    return TuningDeviceRow(
        tuning_id=value[f"{prefix}tuning_id"],
        device_id=value[f"{prefix}device_id"],
        build_ids=tuple(value[f"{prefix}build_ids"]),
        total=value[f"{prefix}total"],
        note=value[f"{prefix}note"],
    )
