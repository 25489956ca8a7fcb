"""The threads of requests that have no lane of their own.

Refuses to bound anything: the server's `most_calls` does.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ServingPool(ThreadPoolExecutor):
    """A thread pool that tells when a task of it ended."""

    def __init__(self, workers: int, after: Callable[[], None]) -> None:
        """`after` is called by the serving thread when a task of it ended."""
        super().__init__(max_workers=workers, thread_name_prefix="serve")
        self._after = after

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See Executor.submit."""
        return super().submit(self._told, fn, args, kwargs)

    def _told(self, fn: Callable[..., T], args: Any, kwargs: Any) -> T:
        try:
            return fn(*args, **kwargs)
        finally:
            self._after()
