"""What must still be told over MQTT, written by the transaction that decided it. Tells nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select

from controller.store.tables import outbox


class OutboxKind(StrEnum):
    """How a row is told: published on its topic, or done to the broker."""

    DOORBELL = "doorbell"
    FEED = "feed"
    ACK = "ack"
    KICK = "kick"  # payload: common name whose certificates were revoked
    ACL = "acl"  # the lists that the broker reads have changed


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One thing to tell, in the order of `number`."""

    number: int
    kind: OutboxKind
    topic: str
    payload: bytes
    retain: bool


def append(
    conn: Connection,
    at: datetime,
    kind: OutboxKind,
    topic: str = "",
    payload: bytes = b"",
    *,
    retain: bool = False,
) -> int:
    """Add a row and return its number."""
    result = conn.execute(
        insert(outbox)
        .values(kind=str(kind), topic=topic, payload=payload, retain=retain, created_at=at)
        .returning(outbox.c.number)
    )
    return int(result.scalar_one())


def append_many(
    conn: Connection,
    at: datetime,
    kind: OutboxKind,
    messages: Sequence[tuple[str, bytes]],
    *,
    retain: bool = False,
) -> None:
    """Add rows of one kind (topic, payload) in this order, in one statement."""
    if messages:
        conn.execute(
            insert(outbox),
            [
                {"kind": str(kind), "topic": topic, "payload": payload, "retain": retain,
                 "created_at": at}
                for topic, payload in messages
            ],
        )  # fmt: skip


def take(conn: Connection, limit: int = 500, after: int = 0) -> list[OutboxRow]:
    """The oldest rows behind number `after`; they stay until `done` names them."""
    query = select(outbox).where(outbox.c.number > after).order_by(outbox.c.number)
    rows = conn.execute(query.limit(limit))
    return [
        OutboxRow(row.number, OutboxKind(row.kind), row.topic, bytes(row.payload), row.retain)
        for row in rows
    ]


def done(conn: Connection, numbers: list[int]) -> None:
    """Forget rows that were told."""
    if numbers:
        conn.execute(delete(outbox).where(outbox.c.number.in_(numbers)))
