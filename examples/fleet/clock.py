"""Time for the examples: waiting on a condition with a deadline, and pacing."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")


class TooLateError(Exception):
    """A condition did not come true before its deadline."""


def monotonic() -> float:
    """Seconds from an arbitrary start."""
    return time.monotonic()


def utc_now() -> datetime:
    """Aware UTC wall time."""
    return datetime.now(UTC)


def wait_until(
    condition: Callable[[], T | None], timeout_s: float, what: str, every_s: float = 0.1
) -> T:
    """The first truthy value of ``condition``; TooLateError naming ``what`` after the timeout."""
    deadline = monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if monotonic() > deadline:
            raise TooLateError(f"waited {timeout_s:.0f} s in vain for {what}")
        threading.Event().wait(every_s)
