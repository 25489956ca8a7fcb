"""Waiting: bounded, growing, spread over the whole span, never below what the controller said."""

import random

from agent.link.backoff import Backoff


def test_waits_are_spread_over_a_growing_span() -> None:
    for seed in range(50):
        backoff = Backoff(1.0, 60.0, random.Random(seed))
        waits = [backoff.failed() for _ in range(20)]
        assert all(0 <= wait <= min(60.0, 2.0**i) for i, wait in enumerate(waits))


def test_full_jitter_uses_the_lower_half_too() -> None:
    chance = random.Random(1)
    lows = 0
    for _ in range(400):
        backoff = Backoff(1.0, 60.0, chance)
        for _ in range(5):
            backoff.failed()
        lows += backoff.failed() < 16.0
    assert 140 < lows < 260


def test_a_retry_after_is_the_least_wait() -> None:
    backoff = Backoff(1.0, 60.0, random.Random(2))
    assert all(backoff.failed(30.0) >= 30.0 for _ in range(50))


def test_success_starts_over() -> None:
    backoff = Backoff(1.0, 60.0, random.Random(3))
    for _ in range(10):
        backoff.failed()
    backoff.succeeded()
    assert backoff.tries == 0
    assert backoff.failed() <= 1.0


def test_a_long_absence_does_not_overflow() -> None:
    backoff = Backoff(1.0, 60.0)
    assert all(backoff.failed() <= 60.0 for _ in range(2000))
