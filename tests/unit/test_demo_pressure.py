"""The demo's burst passes the threshold by far, whatever the heavy rung takes."""

import pytest

from examples.demo.pressure import (
    BURST_EVERY_S,
    MOST_PICTURES,
    TIMES_THE_THRESHOLD,
    Burst,
    burst_for,
    queue_threshold_ms,
)

SLOW_MS = 100.0  # the demo's policy calls a longer inference slow


@pytest.mark.parametrize("heavy_ms", [0.3, 1.0, 2.0, 5.0, 19.9, 20.0, 40.0, 80.0])
def test_the_last_of_a_burst_waits_long_enough(heavy_ms: float) -> None:
    burst = burst_for(heavy_ms)
    threshold = queue_threshold_ms(heavy_ms)
    assert burst.longest_wait_ms(heavy_ms) >= TIMES_THE_THRESHOLD * threshold
    # Five times as fast as it was measured: still enough.
    assert burst.longest_wait_ms(heavy_ms / 5) > threshold
    # No request is slow by itself: what is shown is load, not latency.
    assert burst.pictures * heavy_ms < SLOW_MS
    assert 1 <= burst.pictures <= MOST_PICTURES


@pytest.mark.parametrize("heavy_ms", [1.0, 5.0, 20.0])
def test_a_burst_leaves_time_for_the_next_one(heavy_ms: float) -> None:
    burst = burst_for(heavy_ms)
    assert burst.cameras * burst.pictures * heavy_ms < 1000 * BURST_EVERY_S


def test_negative_control_more_cameras_alone_pass_no_threshold_on_a_fast_machine() -> None:
    assert Burst(cameras=4, pictures=1).longest_wait_ms(5.0) < queue_threshold_ms(5.0)
