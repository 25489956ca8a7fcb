"""Reports and events until the controller has stored them.

One file per start of the agent, numbered without a gap from 1. Refuses to drop anything but on a
cumulative acknowledgement; at its bound it takes nothing more, and says so.
"""

import base64
import binascii
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from agent.domain.ports import SpoolEntry
from agent.errors import SpoolFullError
from agent.ids import boot_counter
from agent.store.disk import Disk
from agent.store.lines import Damage, LineLog

_REWRITE_BYTES = 64 * 1024
# An entry that bit rot took: its number must still be told, or the controller waits for it forever.
LOST = "lost"


@dataclass(slots=True)
class _Boot:
    log: LineLog
    entries: "OrderedDict[int, SpoolEntry]" = field(default_factory=OrderedDict)
    last: int = 0
    acked: int = 0


class FileSpool:
    """Satisfies `agent.domain.ports.Spool`. `refused` counts entries that found no room."""

    def __init__(
        self,
        root: Path,
        boot_id: str,
        max_bytes: int = 16 * 1024 * 1024,
        disk: Disk | None = None,
    ) -> None:
        boot_counter(boot_id)
        self._disk = disk or Disk()
        self._disk.make_folder(root)
        self._root = root
        self._boot_id = boot_id
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.refused = 0
        self.damage: tuple[Damage, ...] = ()
        names = {p.name for p in root.iterdir() if _is_boot(p.name)} | {boot_id}
        self._boots = {name: self._open(name) for name in sorted(names)}

    def _open(self, name: str) -> _Boot:
        boot = _Boot(LineLog(self._root / name, self._disk))
        for _, record in boot.log.records:
            if "ack" in record:
                boot.acked = max(boot.acked, int(record["ack"]))
                boot.last = max(boot.last, boot.acked)
                continue
            entry = _entry(name, record)
            if entry is not None:
                boot.entries[entry.seq] = entry
                boot.last = max(boot.last, entry.seq)
        boot.log.records.clear()
        self.damage += tuple(boot.log.damage)
        for seq in range(boot.acked + 1, boot.last):
            boot.entries.setdefault(seq, SpoolEntry(name, seq, LOST, b""))
        kept = sorted(seq for seq in boot.entries if seq > boot.acked)
        boot.entries = OrderedDict((seq, boot.entries[seq]) for seq in kept)
        return boot

    def append(self, kind: str, payload: bytes) -> SpoolEntry:
        """Number and keep one entry, durable on return. SpoolFullError, StoreError: not taken."""
        with self._lock:
            boot = self._boots[self._boot_id]
            entry = SpoolEntry(self._boot_id, boot.last + 1, kind, payload)
            need = 100 + len(payload) * 4 // 3
            if self._bytes() + need > self._max_bytes:
                self._shrink(boot)
            if self._bytes() + need > self._max_bytes:
                self.refused += 1
                raise SpoolFullError(
                    f"the spool holds {self._bytes()} of {self._max_bytes} bytes",
                    "it empties when the controller answers again",
                )
            boot.log.append(_record(entry))
            boot.last = entry.seq
            boot.entries[entry.seq] = entry
            return entry

    def pending(self, limit: int = 100) -> tuple[SpoolEntry, ...]:
        """The oldest entries not acknowledged, older boots first."""
        with self._lock:
            found: list[SpoolEntry] = []
            for boot in self._boots.values():
                for entry in boot.entries.values():
                    if len(found) >= limit:
                        return tuple(found)
                    found.append(entry)
            return tuple(found)

    def acknowledged(self) -> dict[str, int]:
        """By boot how far it was acknowledged."""
        with self._lock:
            return {name: boot.acked for name, boot in self._boots.items()}

    def held(self) -> tuple[int, int]:
        """Entries that are not acknowledged, and bytes on disk."""
        with self._lock:
            return sum(len(boot.entries) for boot in self._boots.values()), self._bytes()

    def ack(self, boot_id: str, seq: int) -> int:
        """Everything of this boot up to `seq` is stored there; gives the entries dropped."""
        with self._lock:
            boot = self._boots.get(boot_id)
            if boot is None:
                return 0
            seq = min(seq, boot.last)
            gone = [s for s in boot.entries if s <= seq]
            if seq <= boot.acked:
                return 0
            done = len(gone) == len(boot.entries)
            if done and boot_id != self._boot_id:
                self._disk.remove(boot.log.path)
                del self._boots[boot_id]
                return len(gone)
            boot.log.append({"ack": seq})
            boot.acked = seq
            for number in gone:
                del boot.entries[number]
            if boot.log.size > _REWRITE_BYTES and done:
                self._shrink(boot)
            return len(gone)

    def _shrink(self, boot: _Boot) -> None:
        """Leave out what is acknowledged; the number it reached stays."""
        entries = (_record(entry) for entry in boot.entries.values() if entry.kind != LOST)
        boot.log.rewrite(({"ack": boot.acked}, *entries))

    def _bytes(self) -> int:
        return sum(boot.log.size for boot in self._boots.values())


def _is_boot(name: str) -> bool:
    try:
        boot_counter(name)
    except ValueError:
        return False
    return True


def _record(entry: SpoolEntry) -> dict[str, object]:
    payload = base64.b64encode(entry.payload).decode()
    return {"seq": entry.seq, "kind": entry.kind, "payload": payload}


def _entry(boot_id: str, record: dict[str, object]) -> SpoolEntry | None:
    seq, kind, payload = record.get("seq"), record.get("kind"), record.get("payload")
    if not isinstance(seq, int) or not isinstance(kind, str) or not isinstance(payload, str):
        return None
    try:
        return SpoolEntry(boot_id, seq, kind, base64.b64decode(payload, validate=True))
    except binascii.Error:
        return None
