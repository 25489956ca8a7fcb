"""What consumers read of a rollout: at every change of it, and when the broker forgot what it kept.

Knows no topic: the MQTT door makes one of the name that stands in the outbox.
"""

from datetime import datetime, timedelta

from controller.domain.planner import is_over
from controller.services.context import Ctx, Deps
from controller.services.desired import canonical
from controller.store import ledger, outbox, rollouts, waves
from controller.store.outbox import OutboxKind, OutboxRow
from controller.store.rollouts import RolloutRow
from controller.store.session import Connection

KEPT = timedelta(days=1)  # as long as /metrics tells of one that ended
KEPT_MOST = 200


def feed_rollout(conn: Connection, now: datetime, row: RolloutRow) -> None:
    """Have consumers told how the rollout stands."""
    told = _told(conn, now, row)
    outbox.append(conn, now, OutboxKind.FEED, told.topic, told.payload, retain=True)


def recent_rollouts(deps: Deps, ctx: Ctx) -> list[OutboxRow]:
    """What a broker that forgot has to know again: of rollouts under way or of the last day."""
    with deps.store.read() as conn:
        return [
            _told(conn, ctx.now, row)
            for row in rollouts.list_rollouts(conn, limit=KEPT_MOST)
            if not is_over(row.phase) or (row.finished_at or row.created_at) > ctx.now - KEPT
        ]


def _told(conn: Connection, now: datetime, row: RolloutRow) -> OutboxRow:
    listed = waves.list_waves(conn, row.rollout_id)
    document = {
        "schema_version": 1,
        "rollout": row.rollout_id,
        "model": row.model,
        "version": row.version,
        "phase": row.phase.value,
        "reason": row.phase_reason,
        "wave": row.current_wave,
        "waves": len(listed),
        "exposed": ledger.tally(conn, row.rollout_id).exposed,
        "exposed_cap": listed[row.current_wave - 1].cumulative if row.current_wave else 0,
        "at": now.isoformat(timespec="milliseconds"),
    }
    topic = f"rollout/{row.project}/{row.rollout_id}"
    return OutboxRow(0, OutboxKind.FEED, topic, canonical(document), retain=True)
