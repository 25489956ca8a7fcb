"""Threads of a road: each model has a lane of requests that wait, and few that work on them.

A lane is bounded, and who is turned away is told when to ask again. What waits in it may
be answered together, where the road brought a way to. Refuses to order requests among roads: the
host's gate does, by when they came; and to know what a batch is worth.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any, Generic, Protocol, TypeVar

from agent.domain.batching import SIZES, Waiting
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


@dataclass(slots=True, eq=False)
class Item(Generic[T]):
    """What waits since `since_s`. Those of one `kind` may be answered together; None: never.

    `asked` is what they are answered by then, `rows` of a batch is its part.
    """

    ticket: Ticket
    work: Callable[[], T]
    kind: Hashable = None
    asked: Any = None
    rows: int = 1
    deadline_s: float | None = None
    since_s: float = 0.0


class Together(Protocol[T]):
    """How a road answers several requests at once."""

    def count(self, model: str, queue: Sequence[Waiting]) -> int:
        """How many of the first of a queue."""
        ...

    def answer(self, items: Sequence[Item[T]], inferred: Callable[[], None]) -> Sequence[T]:
        """One answer each; `inferred` is called when others may infer. Raises nothing."""
        ...


class _Lane(Generic[T]):
    """`turn` is held by who takes from the queue and infers: a batch is formed when it can run."""

    __slots__ = ("each_s", "running", "turn", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Item[T]] = deque()
        self.running = 0
        self.each_s = 0.0
        self.turn = threading.Lock()


class Lanes(Generic[T]):
    """By model. `finished` is called in a worker with each answer, and hands it on at once."""

    def __init__(
        self,
        clock: Clock,
        finished: Callable[[Ticket, T], None],
        together: Together[T] | None = None,
    ) -> None:
        self._clock = clock
        self._finished = finished
        self._together = together
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane[T]] = {}
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="lane")

    def queue(self, model: str) -> tuple[int, float]:
        """How many wait for a model, and for how many seconds the first of them has."""
        with self._lock:
            lane = self._lanes.get(model)
            if lane is None or not lane.waiting:
                return 0, 0.0
            return len(lane.waiting), self._clock.monotonic() - lane.waiting[0].since_s

    def offer(self, model: str, width: int, item: Item[T]) -> None:
        """Do it in turn, at most `width` of a model at once. BusyError when too many wait."""
        item.since_s = self._clock.monotonic()
        with self._lock:
            lane = self._lanes.setdefault(model, _Lane())
            if len(lane.waiting) >= MOST_WAITING:
                # Nobody waits for these any more.
                lane.waiting = deque(one for one in lane.waiting if not one.ticket.gone)
            if len(lane.waiting) >= MOST_WAITING:
                left_s = lane.each_s * len(lane.waiting) / width
                raise BusyError(
                    f"{len(lane.waiting)} requests wait for model {model} already",
                    "ask again later, or less often",
                    retry_s=max(1, min(_LONGEST_RETRY_S, ceil(left_s))),
                )
            lane.waiting.append(item)
            if lane.running >= width:
                return
            lane.running += 1
        self._pool.submit(self._work, model, lane)

    def stop(self) -> None:
        """Those who wait are still served; nobody is waited for."""
        self._pool.shutdown(wait=False)

    def _work(self, model: str, lane: _Lane[T]) -> None:
        while True:
            turn = _Turn(lane.turn)
            try:
                items = self._take(model, lane)
                if items is None:
                    return
                self._do(lane, items, turn)
            except BaseException as error:  # noqa: BLE001 - the lane goes on, whatever it was
                # The pool would keep it to itself.
                kind, trace = type(error), error.__traceback__
                threading.excepthook(
                    threading.ExceptHookArgs((kind, error, trace, threading.current_thread()))
                )
            finally:
                turn.end()

    def _take(self, model: str, lane: _Lane[T]) -> list[Item[T]] | None:
        """The next of the queue, with those that go with it; None where it is empty."""
        with self._lock:
            while lane.waiting and lane.waiting[0].ticket.gone:
                lane.waiting.popleft()
            if not lane.waiting:
                lane.running -= 1
                return None
            count = self._count(model, lane) if lane.waiting[0].kind is not None else 1
            items = [lane.waiting.popleft() for _ in range(count)]
        for one in items:
            one.ticket.started = True
        return items

    def _count(self, model: str, lane: _Lane[T]) -> int:
        """How many of the first go together; with the lock held."""
        if self._together is None or len(lane.waiting) < 2:
            return 1
        kind, now = lane.waiting[0].kind, self._clock.monotonic()
        queue = []
        for one in islice(lane.waiting, SIZES[-1]):
            if one.kind != kind or one.ticket.gone:
                break
            left_s = None if one.deadline_s is None else one.deadline_s - now
            queue.append(Waiting(one.rows, left_s))
        return self._together.count(model, queue)

    def _do(self, lane: _Lane[T], items: list[Item[T]], turn: "_Turn") -> None:
        began = self._clock.monotonic()
        if self._together is not None and items[0].kind is not None:
            answers = self._together.answer(items, turn.end)
        else:
            turn.end()  # the gate keeps order where nothing is joined
            answers = [items[0].work()]
        for one, answer in zip(items, answers, strict=True):
            self._finished(one.ticket, answer)
        each_s = (self._clock.monotonic() - began) / len(items)
        lane.each_s += _SHARE * (each_s - lane.each_s)


class _Turn:
    """A lock that is held from the beginning and given back once, by the thread that has it."""

    __slots__ = ("_lock",)

    def __init__(self, lock: threading.Lock) -> None:
        lock.acquire()
        self._lock: threading.Lock | None = lock

    def end(self) -> None:
        """Let others have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
