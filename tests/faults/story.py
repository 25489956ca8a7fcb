"""What happened in a run: lines as it goes, figures at the end."""

import json
import os
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from examples.fleet.clock import monotonic, utc_now


class Story:
    """Told by several threads."""

    def __init__(self, seed: int, *, loud: bool) -> None:
        self.began = monotonic()
        self.began_at = utc_now()
        self.lines: list[str] = []
        self.told: list[tuple[datetime, str]] = []
        self.faults: Counter[str] = Counter()
        self.rollouts: Counter[str] = Counter()
        self.brought: Counter[str] = Counter()
        self.figures: dict[str, Any] = {"schema_version": 1, "seed": seed}
        self._loud = loud
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """One line."""
        now = monotonic()
        line = f"{now - self.began:7.1f} s  {text}"
        with self._lock:
            self.lines.append(line)
            self.told.append((self.wall(now), text))
            if self._loud:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    def wall(self, moment: float) -> datetime:
        """The wall clock at a monotonic moment: logs and events are told by it."""
        return self.began_at + timedelta(seconds=moment - self.began)

    def document(self) -> dict[str, Any]:
        """All of it."""
        return {
            **self.figures,
            "faults": dict(sorted(self.faults.items())),
            "rollouts": dict(sorted(self.rollouts.items())),
            "brought": dict(sorted(self.brought.items())),
            "story": self.lines,
        }

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
