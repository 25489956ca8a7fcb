"""What the books of a controller say, read by plain SQL beside it: cheap enough for every step.

Reads what is committed and nothing else. It is not the store's own reading, so a mistake there
is no mistake here.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from controller.domain.rollout import (
    OPEN,
    TERMINAL,
    UNDERWAY,
    AssignmentState,
    Intent,
    Phase,
    Verdict,
)

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class BookedWave:
    """One wave; `evidence` is the stored text."""

    number: int
    cumulative: int
    is_open: bool
    verdict: Verdict | None
    evidence: str

    def read(self) -> Mapping[str, Any]:
        """The evidence, parsed; nobody may change it."""
        return _parsed(self.evidence)


@dataclass(frozen=True, slots=True)
class BookedRollout:
    """One rollout with its waves, and the devices that count as exposed."""

    rollout_id: str
    model: str
    version: str
    phase: Phase
    reason: str
    intent: Intent
    current_wave: int
    waves: tuple[BookedWave, ...]
    exposed: frozenset[str]
    underway: frozenset[str]

    @property
    def is_over(self) -> bool:
        """Whether nothing may change any more."""
        return self.phase in TERMINAL

    @property
    def cap(self) -> int:
        """How many devices may have it now."""
        return self.waves[self.current_wave - 1].cumulative if self.current_wave else 0


class Books:
    """A second, reading connection to the file of a world; `close` it."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path)
        self._proven: set[str] = set()

    def close(self) -> None:
        """Give the file back."""
        self._conn.close()

    def read(self) -> list[BookedRollout]:
        """All rollouts, in the order of their ids, from one state of the books."""
        self._conn.execute("BEGIN")
        try:
            found = self._conn.execute(
                "SELECT rollout_id, model, version, phase, phase_reason, intent, current_wave"
                " FROM rollout ORDER BY rollout_id"
            ).fetchall()
            waves = self._waves()
            exposed = self._devices("exposed")
            underway = self._devices(f"state IN ({_listed(UNDERWAY)})")
            self._open_twice()
        finally:
            self._conn.execute("COMMIT")
        return [
            BookedRollout(
                rollout_id,
                model,
                version,
                Phase(phase),
                reason,
                Intent(intent),
                current,
                tuple(waves[rollout_id]),
                frozenset(exposed.get(rollout_id, ())),
                frozenset(underway.get(rollout_id, ())),
            )
            for rollout_id, model, version, phase, reason, intent, current in found
        ]

    def _waves(self) -> dict[str, list[BookedWave]]:
        found: dict[str, list[BookedWave]] = {}
        for rollout_id, number, cumulative, is_open, verdict, evidence in self._conn.execute(
            "SELECT rollout_id, number, cumulative, opened_at IS NOT NULL, verdict,"
            " coalesce(evidence, 'null') FROM wave ORDER BY rollout_id, number"
        ):
            word = None if verdict is None else Verdict(verdict)
            one = BookedWave(number, cumulative, bool(is_open), word, evidence)
            found.setdefault(rollout_id, []).append(one)
        return found

    def _devices(self, condition: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for rollout_id, device_id in self._conn.execute(
            f"SELECT rollout_id, device_id FROM assignment WHERE {condition}"
        ):
            found.setdefault(rollout_id, []).append(device_id)
        return found

    def _open_twice(self) -> None:
        """At most one open order per device and model."""
        twice = self._conn.execute(
            "SELECT device_id, model FROM assignment"
            f" WHERE state IN ({_listed(OPEN)})"
            " GROUP BY device_id, model HAVING count(*) > 1"
        ).fetchall()
        assert not twice, f"two open orders on {twice}"

    def is_new(self, text: str) -> bool:
        """Whether this text was not seen before: what was proven of it once stays proven."""
        if text in self._proven:
            return False
        if len(self._proven) > _REMEMBERED:
            self._proven.clear()
        self._proven.add(text)
        return True


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Mapping[str, Any]:
    return json.loads(text) or {}


def _listed(states: Iterable[AssignmentState]) -> str:
    return ", ".join(f"'{state.value}'" for state in sorted(states))
