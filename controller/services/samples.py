"""Samples in memory before they are stored: bounded, counted when shed, flushed in one transaction.

Reports and events never come through here: losing a sample is allowed, losing those is not.
"""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.services.context import Deps
from controller.store import devices, samples
from controller.store.samples import SampleRow

MAX_ROWS = 100_000
TAIL = 1_000


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """The newest health document of a device and what else its telemetry says."""

    device_id: str
    at: datetime
    status: dict[str, Any]
    applied_generation: int


class SampleWindow:
    """Thread-safe. Holds at most `max_rows` rows; what comes on top is shed and counted."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._rows: dict[tuple[str, str, str, str, datetime], SampleRow] = {}
        self._statuses: dict[str, StatusUpdate] = {}
        self._tail: deque[tuple[int, dict[str, Any]]] = deque(maxlen=TAIL)
        self._told = 0
        self._changed = threading.Condition()
        self.shed = 0

    def add(self, row: SampleRow) -> bool:
        """Take a row in; False when it was shed."""
        with self._changed:
            stored = self._rows.get(row.key)
            if stored is None and len(self._rows) >= self._max_rows:
                self.shed += 1
                return False
            self._rows[row.key] = row if stored is None else stored.merge(row)
            return True

    def note(self, update: StatusUpdate) -> None:
        """Take a device's newest status in, and show it to those who tail."""
        with self._changed:
            if len(self._statuses) < self._max_rows or update.device_id in self._statuses:
                self._statuses[update.device_id] = update
            self._told += 1
            self._tail.append((self._told, update.status))
            self._changed.notify_all()

    def take(self) -> tuple[list[SampleRow], list[StatusUpdate]]:
        """Everything held; the window is empty afterwards."""
        with self._changed:
            rows, statuses = list(self._rows.values()), list(self._statuses.values())
            self._rows.clear()
            self._statuses.clear()
            return rows, statuses

    def give_back(self, rows: list[SampleRow], statuses: list[StatusUpdate]) -> None:
        """What could not be stored: it is tried again with the next flush."""
        for row in rows:
            self.add(row)
        with self._changed:
            for update in statuses:
                self._statuses.setdefault(update.device_id, update)

    def newest(self) -> int:
        """Number of the newest status, where a tail may start."""
        with self._changed:
            return self._told

    def wait_newer(self, after: int, timeout_s: float) -> tuple[int, list[dict[str, Any]]]:
        """Statuses behind `after` and the number of the newest; waits for one up to `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._told > after, timeout_s)
            return self._told, [status for number, status in self._tail if number > after]


def flush_samples(deps: Deps) -> int:
    """Store what the window holds and return the number of rows; on failure it is held again."""
    rows, statuses = deps.samples.take()
    if not rows and not statuses:
        return 0
    try:
        with deps.store.write() as conn:
            speakers = {row.device_id for row in rows} | {one.device_id for one in statuses}
            known = devices.existing(conn, speakers)
            samples.add_samples(conn, (row for row in rows if row.device_id in known))
            heard = [
                (one.device_id, one.at, one.applied_generation, one.status)
                for one in statuses
                if one.device_id in known
            ]
            devices.note_heard(conn, heard)
    except BaseException:
        deps.samples.give_back(rows, statuses)
        raise
    return len(rows)
