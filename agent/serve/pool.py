"""The server's threads, which know how long each request waited for one of them.

Refuses to bound anything: the server's `maximum_concurrent_rpcs` does.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from agent.domain.ports import Clock

P = ParamSpec("P")
T = TypeVar("T")


class TimedPool(ThreadPoolExecutor):
    """A thread pool whose `waited_s` tells, inside a call, how long that call was queued."""

    def __init__(self, workers: int, clock: Clock, after: Callable[[], None]) -> None:
        """`after` is called by the serving thread when a task of it ended."""
        super().__init__(max_workers=workers, thread_name_prefix="serve")
        self._clock = clock
        self._after = after
        self._local = threading.local()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See Executor.submit."""
        return super().submit(self._timed, self._clock.monotonic(), fn, args, kwargs)

    def _timed(self, submitted_s: float, fn: Callable[..., T], args: Any, kwargs: Any) -> T:
        self._local.waited_s = self._clock.monotonic() - submitted_s
        try:
            return fn(*args, **kwargs)
        finally:
            self._after()

    @property
    def waited_s(self) -> float:
        """Seconds the running call waited for its thread; 0 outside the pool."""
        waited: float = getattr(self._local, "waited_s", 0.0)
        return waited
