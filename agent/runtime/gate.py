"""First come, first served: lets so many inferences of one model run at once and ages the rest.

Refuses to bound the queue: the server in front does, which can still answer who is turned away.
"""

import threading
from collections import deque

from agent.domain.ports import Clock

# How far back a wait that is over still counts as the queue's age: once between two looks.
_LOOK_BACK_S = 1.0


class Gate:
    """A semaphore in order of arrival, whose waits can be read."""

    def __init__(self, slots: int, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._free = slots
        self._waiting: deque[tuple[float, threading.Lock]] = deque()
        self._ended: deque[tuple[float, float]] = deque(maxlen=256)

    def enter(self, waited_s: float = 0.0) -> float:
        """Wait for a place; gives the whole wait in seconds, `waited_s` of it elsewhere before."""
        with self._lock:
            arrived = self._clock.monotonic() - waited_s
            if self._free and not self._waiting:
                self._free -= 1
                turn = None
            else:
                turn = threading.Lock()
                turn.acquire()
                self._waiting.insert(self._place(arrived), (arrived, turn))
        if turn is not None:
            # Handed over by `leave`: nobody who came later can take the place.
            turn.acquire()
        now = self._clock.monotonic()
        with self._lock:
            self._ended.append((now, now - arrived))
        return now - arrived

    def _place(self, arrived: float) -> int:
        """Who waited elsewhere before comes before those who came later: almost always the last."""
        at = len(self._waiting)
        while at and self._waiting[at - 1][0] > arrived:
            at -= 1
        return at

    def leave(self) -> None:
        """Give the place to who waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft()[1].release()
            else:
                self._free += 1

    def waiting(self) -> int:
        """How many wait now."""
        with self._lock:
            return len(self._waiting)

    def age_s(self, now: float) -> float:
        """The longest wait: of who waits now, or whose wait ended within the last second."""
        with self._lock:
            waits = [wait for at, wait in self._ended if now - at <= _LOOK_BACK_S]
            if self._waiting:
                waits.append(now - self._waiting[0][0])
        return max(waits, default=0.0)
