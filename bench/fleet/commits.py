"""When what the controller stored was there for all: another connection looks at its database.

Reads only, every few milliseconds. A moment is the one behind the look that found the row, so it is
never before the commit, and later by one look at most.
"""

import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Stored:
    """One event of the controller's log; `at` is the wall clock, seconds since 1970."""

    at: float
    number: int
    kind: str
    device_id: str
    rollout: str
    applied: bool
    phase: str  # to which a rollout went


class Commits:
    """Looks from `with` to its end; `all` grows meanwhile, in the order of the log."""

    def __init__(self, database: Path) -> None:
        self.all: list[Stored] = []
        self.looks = 0
        self._database = database
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)

    def __enter__(self) -> "Commits":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(10.0)

    def of(self, kind: str, rollout: str, phase: str = "") -> list[Stored]:
        """Of one kind and rollout (and phase, where given), in order."""
        wanted = (kind, rollout)
        return [
            one
            for one in list(self.all)
            if (one.kind, one.rollout) == wanted and phase in ("", one.phase)
        ]

    def applied(self, rollout: str, device_id: str) -> float | None:
        """When the report was there by which the device applied what the rollout ordered."""
        return next(
            (
                one.at
                for one in list(self.all)
                if one.applied and (one.rollout, one.device_id) == (rollout, device_id)
            ),
            None,
        )

    def _run(self) -> None:
        conn = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        last = conn.execute("SELECT coalesce(max(number), 0) FROM event").fetchone()[0]
        seen = -1
        while not self._ending.wait(LOOK_S):
            self.looks += 1
            version = conn.execute("PRAGMA data_version").fetchone()[0]
            if version == seen:  # nobody has committed anything
                continue
            seen = version
            rows = conn.execute(
                "SELECT number, kind, device_id, rollout_id, details FROM event"
                " WHERE number > ? ORDER BY number",
                (last,),
            ).fetchall()
            at = time.time()
            last = rows[-1][0] if rows else last
            self.all += [_stored(at, *row) for row in rows]
        conn.close()


def _stored(
    at: float, number: int, kind: str, device_id: str | None, rollout: str | None, details: str
) -> Stored:
    told = json.loads(details)
    return Stored(
        at,
        number,
        kind,
        device_id or "",
        rollout or "",
        told.get("applied") == "true",
        told.get("to", "") if kind == "rollout_phase" else "",
    )
