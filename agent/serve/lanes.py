"""Threads of a road: each model has a lane of requests that wait, and few that work on them.

A lane is bounded, and who is turned away is told when to ask again. Refuses to order requests among
roads: the host's gate does, by when they came.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Generic, TypeVar

from agent.domain.ports import Clock
from agent.errors import BusyError
from agent.serve.http_answer import Answer

MOST_WAITING = 256
_WORKERS = 32
_LONGEST_RETRY_S = 60
# How much the newest request says of how long one takes.
_SHARE = 0.1


class Ticket:
    """Who waits for an answer; `gone` when nobody does any more, `started` when its turn came."""

    __slots__ = ("gone", "started")

    def __init__(self) -> None:
        self.gone = False
        self.started = False

    def deliver(self, answer: Answer) -> None:
        """Take the answer, where the work has not sent it; in the thread of the connections."""


Work = Callable[[], Answer]
T = TypeVar("T")


class _Lane(Generic[T]):
    __slots__ = ("each_s", "running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, Ticket, Callable[[], T]]] = deque()
        self.running = 0
        self.each_s = 0.0


class Lanes(Generic[T]):
    """By model. `finished` is called in a worker with each answer, and hands it on at once."""

    def __init__(self, clock: Clock, finished: Callable[[Ticket, T], None]) -> None:
        self._clock = clock
        self._finished = finished
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane[T]] = {}
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="lane")

    def queue(self, model: str) -> tuple[int, float]:
        """How many wait for a model, and for how many seconds the first of them has."""
        with self._lock:
            lane = self._lanes.get(model)
            if lane is None or not lane.waiting:
                return 0, 0.0
            return len(lane.waiting), self._clock.monotonic() - lane.waiting[0][0]

    def offer(self, model: str, width: int, ticket: Ticket, work: Callable[[], T]) -> None:
        """Do it in turn, at most `width` of a model at once. BusyError when too many wait."""
        with self._lock:
            lane = self._lanes.setdefault(model, _Lane())
            if len(lane.waiting) >= MOST_WAITING:
                # Nobody waits for these any more.
                lane.waiting = deque(one for one in lane.waiting if not one[1].gone)
            if len(lane.waiting) >= MOST_WAITING:
                left_s = lane.each_s * len(lane.waiting) / width
                raise BusyError(
                    f"{len(lane.waiting)} requests wait for model {model} already",
                    "ask again later, or less often",
                    retry_s=max(1, min(_LONGEST_RETRY_S, ceil(left_s))),
                )
            lane.waiting.append((self._clock.monotonic(), ticket, work))
            if lane.running >= width:
                return
            lane.running += 1
        self._pool.submit(self._work, lane)

    def stop(self) -> None:
        """Those who wait are still served; nobody is waited for."""
        self._pool.shutdown(wait=False)

    def _work(self, lane: _Lane[T]) -> None:
        while True:
            with self._lock:
                if not lane.waiting:
                    lane.running -= 1
                    return
                _, ticket, work = lane.waiting.popleft()
            if ticket.gone:
                continue
            ticket.started = True
            began = self._clock.monotonic()
            try:
                self._finished(ticket, work())
            except BaseException as error:  # noqa: BLE001 - the lane goes on, whatever it was
                # The pool would keep it to itself.
                kind, trace = type(error), error.__traceback__
                threading.excepthook(
                    threading.ExceptHookArgs((kind, error, trace, threading.current_thread()))
                )
            lane.each_s += _SHARE * (self._clock.monotonic() - began - lane.each_s)
