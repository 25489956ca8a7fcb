"""Rows of waves and what was judged of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from controller.domain.rollout import Verdict
from controller.domain.wave import Wave
from controller.store.tables import wave


@dataclass(frozen=True, slots=True)
class WaveRow:
    """One wave; `evidence` holds the judge's figures and its memory between looks."""

    number: int
    entry: str
    cumulative: int
    opened_at: datetime | None
    soak_started_at: datetime | None
    verdict: Verdict | None
    verdict_reason: str
    evidence: dict[str, Any]
    judged_at: datetime | None


def insert_waves(conn: Connection, rollout_id: str, waves: Iterable[Wave]) -> None:
    """Add the waves of a rollout, none of them open."""
    conn.execute(
        insert(wave),
        [
            {
                "rollout_id": rollout_id,
                "number": one.number,
                "entry": one.entry,
                "cumulative": one.cumulative,
            }
            for one in waves
        ],
    )


_LISTED = select(wave).where(wave.c.rollout_id == bindparam("wanted")).order_by(wave.c.number)


def list_waves(conn: Connection, rollout_id: str) -> list[WaveRow]:
    """The waves of a rollout, the first one first."""
    return [_row(row) for row in conn.execute(_LISTED, {"wanted": rollout_id})]


def open_wave(conn: Connection, rollout_id: str, number: int, now: datetime) -> None:
    """From now on the wave's cap holds."""
    conn.execute(update(wave).where(*_key(rollout_id, number)).values(opened_at=now))


def set_verdict(
    conn: Connection,
    rollout_id: str,
    number: int,
    verdict: Verdict,
    reason: str,
    evidence: dict[str, Any],
    soak_started_at: datetime | None,
    now: datetime,
) -> None:
    """What the judge said."""
    conn.execute(
        update(wave)
        .where(*_key(rollout_id, number))
        .values(
            verdict=verdict.value,
            verdict_reason=reason,
            evidence=evidence,
            soak_started_at=soak_started_at,
            judged_at=now,
        )
    )


def _key(rollout_id: str, number: int) -> tuple[Any, Any]:
    return wave.c.rollout_id == rollout_id, wave.c.number == number


def _row(row: Row[Any]) -> WaveRow:
    return WaveRow(
        number=row.number,
        entry=row.entry,
        cumulative=row.cumulative,
        opened_at=row.opened_at,
        soak_started_at=row.soak_started_at,
        verdict=None if row.verdict is None else Verdict(row.verdict),
        verdict_reason=row.verdict_reason,
        evidence=dict(row.evidence or {}),
        judged_at=row.judged_at,
    )
