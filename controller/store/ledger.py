"""What a tick asks of a rollout: devices by state, who could be next, what has to be closed.

Counts come from `assignment_count`, which triggers of the database keep with every write, so no
question here reads a whole rollout. Statements are made once: a tick asks the same again and again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Text,
    bindparam,
    exists,
    literal,
    or_,
    select,
    text,
)

from controller.domain.rollout import OPEN, AssignmentState
from controller.store.assignments import AssignmentRow, read_row
from controller.store.tables import assignment, assignment_count, desired, device, rollout

_A = AssignmentState
_ROLLOUT: BindParameter[str] = bindparam("wanted_rollout", type_=Text)
_LIMIT = bindparam("wanted_limit", type_=assignment.c.wave.type)


@dataclass(frozen=True, slots=True)
class Tally:
    """Devices of a rollout by wave and state, and the ledger."""

    by_wave: Mapping[tuple[int, AssignmentState], int]
    exposed: int  # were ever offered the version
    not_returned: int  # activated it and could not go back


_TALLY = select(
    assignment_count.c.wave,
    assignment_count.c.state,
    assignment_count.c.exposed,
    assignment_count.c.activated,
    assignment_count.c.devices,
).where(assignment_count.c.rollout_id == _ROLLOUT, assignment_count.c.devices > 0)


def tally(conn: Connection, rollout_id: str) -> Tally:
    """The counts of a rollout: as many rows as it has waves and states, whatever its size."""
    by_wave: dict[tuple[int, AssignmentState], int] = {}
    exposed = not_returned = 0
    for wave, word, was_exposed, activated, count in conn.execute(
        _TALLY, {"wanted_rollout": rollout_id}
    ):
        state = _A(word)
        by_wave[wave, state] = by_wave.get((wave, state), 0) + count
        exposed += count if was_exposed else 0
        not_returned += count if activated and state is _A.FAILED else 0
    return Tally(by_wave, exposed, not_returned)


_CANDIDATES = (
    select(assignment.c.device_id)
    .join(device, device.c.device_id == assignment.c.device_id)
    .where(
        assignment.c.rollout_id == _ROLLOUT,
        assignment.c.state == _A.PLANNED.value,
        device.c.online.is_(True),
        device.c.state == "ACTIVE",
    )
    .order_by(assignment.c.position)
    .limit(_LIMIT)
)


def candidates(conn: Connection, rollout_id: str, limit: int) -> list[str]:
    """Planned devices that are online and active, in stable order."""
    found = conn.execute(_CANDIDATES, {"wanted_rollout": rollout_id, "wanted_limit": limit})
    return [str(row[0]) for row in found]


_SUPERSEDED = (
    select(assignment.c.reason)
    .where(assignment.c.rollout_id == _ROLLOUT, assignment.c.state == _A.SUPERSEDED.value)
    .order_by(assignment.c.updated_at.desc())
    .limit(1)
)


def superseded_reason(conn: Connection, rollout_id: str) -> str:
    """Why an assignment of the rollout was superseded; empty where none was."""
    return str(conn.execute(_SUPERSEDED, {"wanted_rollout": rollout_id}).scalar() or "")


_REFUSED = (
    select(assignment.c.device_id, assignment.c.reason)
    .where(assignment.c.rollout_id == _ROLLOUT, assignment.c.state == _A.REFUSED.value)
    .order_by(assignment.c.position < 0, assignment.c.updated_at.desc(), assignment.c.position)
    .limit(1)
)


def refused_reason(conn: Connection, rollout_id: str) -> str:
    """Who refused last, and why, in the first place those who were asked; empty where none did."""
    row = conn.execute(_REFUSED, {"wanted_rollout": rollout_id}).first()
    return "" if row is None else f"{row.device_id}: {row.reason}"


_mine, _other = rollout.alias("mine"), rollout.alias("other")
_BESIDE = (
    select(literal(1))
    .select_from(_mine)
    .join(
        _other,
        (_other.c.project == _mine.c.project)
        & (_other.c.model == _mine.c.model)
        & (_other.c.rollout_id != _mine.c.rollout_id)
        & (_other.c.finished_at.is_(None) | (_other.c.finished_at >= _mine.c.created_at)),
    )
    .where(_mine.c.rollout_id == _ROLLOUT)
    .limit(1)
)
_newer = assignment.alias("newer")
_TAKEN_OVER = (
    select(assignment.c.device_id, assignment.c.wave, _newer.c.rollout_id)
    .join(
        _newer,
        (_newer.c.device_id == assignment.c.device_id)
        & (_newer.c.model == assignment.c.model)
        & (_newer.c.rollout_id != assignment.c.rollout_id)
        & (_newer.c.offered_at > assignment.c.offered_at),
    )
    .where(
        assignment.c.rollout_id == _ROLLOUT,
        assignment.c.state == _A.COMMITTED.value,
        _newer.c.state == _A.COMMITTED.value,
    )
    .order_by(_newer.c.offered_at)
)


def taken_over(conn: Connection, rollout_id: str) -> list[tuple[int, str]]:
    """Wave and newer rollout of each device that committed this one and, since, the newer one.

    Reads devices only where another rollout of the model ran meanwhile.
    """
    wanted = {"wanted_rollout": rollout_id}
    if conn.execute(_BESIDE, wanted).first() is None:
        return []
    # A device may have gone on twice since: its newest one counts.
    found = {row[0]: (int(row[1]), str(row[2])) for row in conn.execute(_TAKEN_OVER, wanted)}
    return list(found.values())


# The words as the indexes of these have them: a bound value would leave them unused.
_UNSETTLED = select(assignment).where(
    text(
        "assignment.state IN ('ROLLED_BACK','FAILED','REFUSED','SUPERSEDED') "
        "AND assignment.finished_at IS NULL"
    )
)
_RECALLED = (
    select(assignment)
    .join(device, device.c.device_id == assignment.c.device_id)
    .join(desired, desired.c.device_id == assignment.c.device_id)
    .where(
        text("assignment.state = 'ROLLING_BACK'"),
        device.c.applied_generation >= assignment.c.generation,
    )
)
_RETIRED = (
    select(assignment)
    .join(device, device.c.device_id == assignment.c.device_id)
    .where(
        text("device.state = 'RETIRED'"),
        assignment.c.state.in_([state.value for state in OPEN]),
    )
)
_WAITING = select(
    or_(
        *(
            exists(one.with_only_columns(literal(1), maintain_column_froms=True))
            for one in (_UNSETTLED, _RECALLED, _RETIRED)
        )
    )
)


def has_left_over(conn: Connection) -> bool:
    """Whether any of the three lists below has an entry."""
    return bool(conn.execute(_WAITING).scalar())


def list_unsettled(conn: Connection, limit: int = 500) -> list[AssignmentRow]:
    """Left by their device, while desired was not looked after yet."""
    return _rows(conn, _UNSETTLED, limit)


def list_recalled(conn: Connection, limit: int = 500) -> list[AssignmentRow]:
    """ROLLING_BACK, and the device has applied the generation of the last order about it."""
    return _rows(conn, _RECALLED, limit)


def list_retired(conn: Connection, limit: int = 500) -> list[AssignmentRow]:
    """Open assignments of devices that were retired since."""
    return _rows(conn, _RETIRED, limit)


def _rows(conn: Connection, query: Any, limit: int) -> list[AssignmentRow]:
    found = conn.execute(query.limit(_LIMIT), {"wanted_limit": limit})
    return [read_row(row) for row in found]
