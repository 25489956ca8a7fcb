"""What is inside a runtime right now, since when, and how to call it off when it does not end.

Refuses to judge what a hang is: who asks brings the limit.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.domain.ports import Clock
from agent.runtime.backend import Backend


@dataclass(slots=True, eq=False)
class _Run:
    """One call: `since_s` is monotonic."""

    model: str
    rung: str
    backend: Backend
    since_s: float
    called_off: bool = False

    def __str__(self) -> str:
        return f"{self.model} rung {self.rung!r}"


class Running:
    """By thread. `enter` and `leave` are on the path of every inference: no lock, no words."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inside: dict[int, _Run] = {}

    def enter(self, model: str, rung: str, backend: Backend) -> float:
        """This thread goes into a runtime; gives the moment, monotonic seconds."""
        now = self._clock.monotonic()
        self._inside[threading.get_ident()] = _Run(model, rung, backend, now)
        return now

    def leave(self) -> float:
        """This thread came out; gives the moment."""
        now = self._clock.monotonic()
        del self._inside[threading.get_ident()]
        return now

    @contextmanager
    def inside(self, model: str, rung: str, backend: Backend) -> Iterator[None]:
        """`enter` and `leave` around what is not counted, as a warm-up."""
        self.enter(model, rung, backend)
        try:
            yield
        finally:
            self.leave()

    def longest(self) -> tuple[str, float] | None:
        """What has been running longest and for how many seconds; None when nothing runs."""
        first = min(list(self._inside.values()), key=lambda run: run.since_s, default=None)
        return None if first is None else (str(first), self._clock.monotonic() - first.since_s)

    def call_off(self, after_s: float) -> tuple[str, ...]:
        """Ask runtimes to end what has run longer; gives what was asked for the first time."""
        now = self._clock.monotonic()
        found = []
        for thread, run in list(self._inside.items()):
            if run.called_off or now - run.since_s <= after_s:
                continue
            run.called_off = True
            run.backend.call_off(thread)
            found.append(str(run))
        return tuple(found)
