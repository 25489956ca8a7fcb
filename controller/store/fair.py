"""A lock that serves in the order of asking: `threading.Lock` lets the one that just held it win.

With it a stream of large transactions cannot keep a small one waiting for more than the queue.
"""

import threading
from collections import deque


class FairLock:
    """Mutual exclusion, first come, first served. Not reentrant; a context manager."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._held:
                self._held = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()  # opened by whoever hands the lock over
        except BaseException:
            self._give_up(gate)
            raise

    def __exit__(self, *_: object) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False

    def _give_up(self, gate: threading.Lock) -> None:
        """Interrupted while waiting: out of the queue, or pass on what was handed over already."""
        with self._mutex:
            waiting = gate in self._waiting
            if waiting:
                self._waiting.remove(gate)
        if not waiting:
            self._hand_over()
