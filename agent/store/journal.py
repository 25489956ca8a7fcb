"""The journal: what the agent has decided, durable before it is done.

Append-only lines with checksums; the last value per (kind, key) counts. Refuses to guess: damage in
the middle is reported, and the loop then treats what was running as still in probation.
"""

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

from agent.errors import StoreError
from agent.store.disk import Disk
from agent.store.lines import Damage, LineLog

# Rewritten when most of it is history; small enough that a start reads it in no time.
_COMPACT_BYTES = 256 * 1024


class FileJournal:
    """Satisfies `agent.domain.ports.Journal`. `damage` lists what could not be read."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self._disk.make_folder(path.parent)
        self._lock = threading.Lock()
        self._log = LineLog(path, self._disk)
        self._latest: dict[tuple[str, str], dict[str, object]] = {}
        self.damage: tuple[Damage, ...] = ()
        self._number = 0
        self._load()

    def _load(self) -> None:
        found = list(self._log.damage)
        for line, record in self._log.records:
            number, kind, key, value = (record.get(k) for k in ("n", "kind", "key", "value"))
            fits = isinstance(number, int) and isinstance(kind, str) and isinstance(key, str)
            if not fits or not isinstance(value, dict):
                found.append(Damage(str(self._log.path), line, "not a journal record"))
                continue
            if number != self._number + 1 and not found:
                reason = f"record {self._number + 1} is missing"
                found.append(Damage(str(self._log.path), line, reason))
            self._number = int(number or 0)
            self._latest[str(kind), str(key)] = value
        self._log.records.clear()
        self.damage = tuple(found)

    @property
    def is_sound(self) -> bool:
        """Whether nothing but a torn last line is wrong with it."""
        return all(d.torn for d in self.damage)

    def append(self, kind: str, key: str, value: Mapping[str, object]) -> None:
        """Make one record durable; on a StoreError nothing was recorded."""
        with self._lock:
            self._log.append(self._record(self._number + 1, kind, key, value))
            self._number += 1
            self._latest[kind, key] = dict(value)
            if self._log.size > _COMPACT_BYTES:
                # A full disk must not fail an append that is durable already.
                with contextlib.suppress(StoreError):
                    self._compact()

    def latest(self, kind: str) -> dict[str, dict[str, object]]:
        """The newest value per key of this kind."""
        with self._lock:
            return {key: value for (k, key), value in self._latest.items() if k == kind}

    def compact(self) -> None:
        """Keep only the newest value per (kind, key), in one atomic step."""
        with self._lock:
            self._compact()

    def _compact(self) -> None:
        live = list(self._latest.items())
        self._log.rewrite(
            self._record(number, kind, key, value)
            for number, ((kind, key), value) in enumerate(live, 1)
        )
        self._number = len(live)

    @staticmethod
    def _record(n: int, kind: str, key: str, value: Mapping[str, object]) -> dict[str, object]:
        return {"n": n, "kind": kind, "key": key, "value": value}
