"""Reads what `fleet-sim` wrote down of its devices while it goes on writing. Judges nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to a device; `at` is the wall clock, seconds since 1970."""

    at: float
    device_id: str
    kind: str
    rollout: str
    version: str
    state: str
    generation: int
    applied: bool
    detail: str


class Happenings:
    """Everything so far; `read` takes in what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.all: list[Happening] = []

    def read(self) -> "Happenings":
        """Take in the lines that were written since."""
        if not self._path.exists():
            return self
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            self.all.append(_happening(json.loads(line)))
        return self

    def of(self, kind: str, rollout: str = "", state: str = "") -> list[Happening]:
        """Of one kind, of one rollout and in one state where given, in order."""
        return [
            one
            for one in self.all
            if one.kind == kind and rollout in ("", one.rollout) and state in ("", one.state)
        ]


def _happening(line: dict[str, Any]) -> Happening:
    return Happening(
        at=line["at"],
        device_id=line["device_id"],
        kind=line["kind"],
        rollout=line.get("rollout", ""),
        version=line.get("version", ""),
        state=line.get("state", ""),
        generation=line.get("generation", 0),
        applied=line.get("applied", False),
        detail=line.get("detail", ""),
    )


def by_device(found: list[Happening]) -> dict[str, float]:
    """When it first happened to each device."""
    first: dict[str, float] = {}
    for one in found:
        first.setdefault(one.device_id, one.at)
    return first
