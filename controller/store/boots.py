"""How far the gapless log of each boot of a device is stored."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from controller.store.tables import device_boot


@dataclass(frozen=True, slots=True)
class BootRow:
    """One start of an agent; `counter` orders the boots of a device."""

    boot_id: str
    counter: int
    last_seq: int
    first_seen_at: datetime


def get_boot(conn: Connection, device_id: str, boot_id: str) -> BootRow | None:
    """The boot, or None when it never spoke."""
    row = conn.execute(
        select(device_boot).where(
            device_boot.c.device_id == device_id, device_boot.c.boot_id == boot_id
        )
    ).first()
    return BootRow(row.boot_id, row.counter, row.last_seq, row.first_seen_at) if row else None


def add_boot(
    conn: Connection, device_id: str, boot_id: str, counter: int, now: datetime
) -> BootRow:
    """A boot that speaks for the first time."""
    conn.execute(
        insert(device_boot).values(
            device_id=device_id, boot_id=boot_id, counter=counter, last_seq=0, first_seen_at=now
        )
    )
    return BootRow(boot_id, counter, 0, now)


def set_last_seq(conn: Connection, device_id: str, boot_id: str, seq: int) -> None:
    """Everything of this boot up to and including `seq` is stored."""
    conn.execute(
        update(device_boot)
        .where(device_boot.c.device_id == device_id, device_boot.c.boot_id == boot_id)
        .values(last_seq=seq)
    )


def forget_boots(conn: Connection, device_id: str) -> None:
    """The device starts anew: it enrolled again after it was retired."""
    conn.execute(delete(device_boot).where(device_boot.c.device_id == device_id))
