"""Waiting on a condition with a deadline. Never sleeps a fixed time instead."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_for(fn: Callable[[], T], timeout_s: float = 10.0, what: str = "the condition") -> T:
    """Call `fn` until it returns something truthy, and return that.

    Raises AssertionError with `what`, the last value and the last AssertionError of `fn` when
    `timeout_s` passed.
    """
    deadline = time.monotonic() + timeout_s
    last_error: AssertionError | None = None
    while True:
        value: T | None = None
        try:
            value = fn()
        except AssertionError as error:
            last_error = error
        else:
            if value:
                return value
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"waited {timeout_s:g} s for {what}; last value {value!r}"
                + (f", last error {last_error}" if last_error else "")
            )
        time.sleep(POLL_S)
