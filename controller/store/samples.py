"""Latency samples: one row per device, model, version, rung and minute. Merges, never averages."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, update

from controller.domain.histogram import Histogram
from controller.store.tables import sample

NUMBER_MOST = 2**31 - 1  # of a column; one device that counts beyond must not stop the flush


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What one rung of one device did in one minute; `histogram` holds service times."""

    device_id: str
    model: str
    version: str
    rung: str
    minute_at: datetime
    build_digest: str
    histogram: Histogram
    errors: int
    non_finite: int
    last_at: datetime

    @property
    def key(self) -> tuple[str, str, str, str, datetime]:
        """What a row is found by."""
        return (self.device_id, self.model, self.version, self.rung, self.minute_at)

    def merge(self, newer: "SampleRow") -> "SampleRow":
        """Both together; the newer one names the build."""
        return SampleRow(
            *self.key,
            build_digest=newer.build_digest or self.build_digest,
            histogram=self.histogram.merge(newer.histogram),
            errors=self.errors + newer.errors,
            non_finite=self.non_finite + newer.non_finite,
            last_at=max(self.last_at, newer.last_at),
        )


def add_samples(conn: Connection, rows: Iterable[SampleRow]) -> None:
    """Add rows to what is stored of the same minutes. At most one row per key."""
    fresh: list[dict[str, Any]] = []
    merged: list[dict[str, Any]] = []
    listed = list(rows)
    stored = _stored(conn, listed)
    for row in listed:
        before = stored.get(row.key)
        if before is None:
            fresh.append(_values(row))
        else:
            values = _values(before.merge(row))
            merged.append({f"b_{name}": value for name, value in values.items()})
    if fresh:
        conn.execute(insert(sample), fresh)
    if merged:
        keys = ("device_id", "model", "version", "rung", "minute_at")
        others = ("build_digest", "count", "errors", "non_finite", "histogram", "last_at")
        conn.execute(
            update(sample)
            .where(*(sample.c[name] == bindparam(f"b_{name}") for name in keys))
            .values({name: bindparam(f"b_{name}") for name in others}),
            merged,
        )


def _stored(
    conn: Connection, rows: list[SampleRow]
) -> dict[tuple[str, str, str, str, datetime], SampleRow]:
    """What is stored of the same devices and minutes."""
    found: dict[tuple[str, str, str, str, datetime], SampleRow] = {}
    wanted = sorted({row.device_id for row in rows})
    minutes = sorted({row.minute_at for row in rows})
    for start in range(0, len(wanted), 500):
        part = {"of_devices": wanted[start : start + 500], "of_minutes": minutes}
        for row in map(_row, conn.execute(_OF_MINUTES, part)):
            found[row.key] = row
    return found


_OF_MINUTES = select(sample).where(
    sample.c.device_id.in_(bindparam("of_devices", expanding=True)),
    sample.c.minute_at.in_(bindparam("of_minutes", expanding=True)),
)


def is_of_build(row: SampleRow) -> bool:
    """Whether a local build answered; a remote rung's answers have no digest."""
    return bool(row.build_digest)


def list_samples(
    conn: Connection,
    *,
    device_ids: Collection[str] | None = None,
    model: str | None = None,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[SampleRow]:
    """Rows that match, oldest first.

    `since` compares with the last sample of a row, `until` with the end of its minute.
    """
    equal = {"model": model, "version": version, "since": since}
    wanted: dict[str, Any] = {f"of_{n}": value for n, value in equal.items() if value is not None}
    if until is not None:
        wanted["of_until"] = until - timedelta(minutes=1)
    query = _listing(tuple(wanted), device_ids is not None)
    if device_ids is None:
        return [_row(row) for row in conn.execute(query, wanted)]
    found: list[SampleRow] = []
    ids = sorted(device_ids)
    for start in range(0, len(ids), 500):
        part = {**wanted, "of_devices": ids[start : start + 500]}
        found += [_row(row) for row in conn.execute(query, part)]
    return found


@cache
def _listing(names: tuple[str, ...], of_devices: bool) -> Select[Any]:
    """A tick asks the same again and again: each kind of question is put together once."""
    query = select(sample).order_by(sample.c.minute_at, sample.c.device_id, sample.c.rung)
    conditions = {
        "of_model": sample.c.model == bindparam("of_model"),
        "of_version": sample.c.version == bindparam("of_version"),
        "of_since": sample.c.last_at >= bindparam("of_since"),
        "of_until": sample.c.minute_at <= bindparam("of_until"),
    }
    query = query.where(*(conditions[name] for name in names))
    if of_devices:
        query = query.where(sample.c.device_id.in_(bindparam("of_devices", expanding=True)))
    return query


def _values(row: SampleRow) -> dict[str, Any]:
    return {
        "device_id": row.device_id,
        "model": row.model,
        "version": row.version,
        "rung": row.rung,
        "minute_at": row.minute_at,
        "build_digest": row.build_digest,
        "count": min(row.histogram.count, NUMBER_MOST),
        "errors": min(row.errors, NUMBER_MOST),
        "non_finite": min(row.non_finite, NUMBER_MOST),
        "histogram": row.histogram.to_json(),
        "last_at": row.last_at,
    }


def _row(row: Row[Any]) -> SampleRow:
    return SampleRow(
        device_id=row.device_id,
        model=row.model,
        version=row.version,
        rung=row.rung,
        minute_at=row.minute_at,
        build_digest=row.build_digest,
        histogram=Histogram.from_json(row.histogram),
        errors=row.errors,
        non_finite=row.non_finite,
        last_at=row.last_at,
    )
