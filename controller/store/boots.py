"""How far the gapless log of each boot of a device is stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

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


def list_boots(
    conn: Connection, device_ids: Iterable[str], boot_ids: Iterable[str]
) -> dict[tuple[str, str], BootRow]:
    """Those that spoke, by (device, boot)."""
    found: dict[tuple[str, str], BootRow] = {}
    devices, boots = sorted(device_ids), sorted(boot_ids)
    for start in range(0, len(devices), 500):
        query = select(device_boot).where(
            device_boot.c.device_id.in_(devices[start : start + 500]),
            device_boot.c.boot_id.in_(boots),
        )
        for row in conn.execute(query):
            found[row.device_id, row.boot_id] = BootRow(
                row.boot_id, row.counter, row.last_seq, row.first_seen_at
            )
    return found


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


def set_last_seqs(conn: Connection, reached: Mapping[tuple[str, str], int]) -> None:
    """Everything of these boots (device, boot) up to and including the number is stored."""
    if reached:
        conn.execute(
            update(device_boot)
            .where(
                device_boot.c.device_id == bindparam("of_device"),
                device_boot.c.boot_id == bindparam("of_boot"),
            )
            .values(last_seq=bindparam("seq")),
            [
                {"of_device": device_id, "of_boot": boot_id, "seq": seq}
                for (device_id, boot_id), seq in reached.items()
            ],
        )


def forget_boots(conn: Connection, device_id: str) -> None:
    """The device starts anew: it enrolled again after it was retired."""
    conn.execute(delete(device_boot).where(device_boot.c.device_id == device_id))
