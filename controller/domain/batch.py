"""Which batch to infer by, from a measured curve: a build's rows per second depend on it.

Convolutions of ordinary size gain nothing on one core and lose their caches; small networks gain
several times. Refuses to guess: what was not measured is not chosen.
"""

from collections.abc import Sequence

from controller.errors import InvalidError

# A gain below this may be the noise of a busy machine: 1.1 chose a batch that lost when asked
# again. And waiting for a batch to fill costs latency.
LEAST_GAIN = 1.3
# The smallest batch within so much of the best one: half the wait for nearly the same.
NEAR_BEST = 0.95

Curve = Sequence[tuple[int, float]]  # batch, and the median of a call in ms


def rows_per_s(batch: int, p50_ms: float) -> float:
    """Throughput of one caller."""
    return 1000 * batch / p50_ms


def choose_batch(curve: Curve) -> int:
    """The batch that pays; 1 where none does, or nothing was measured."""
    speeds = {batch: rows_per_s(batch, p50_ms) for batch, p50_ms in curve if p50_ms > 0}
    if 1 not in speeds:
        return 1
    best = max(speeds.values())
    if best < LEAST_GAIN * speeds[1]:
        return 1
    return min(batch for batch, speed in speeds.items() if speed >= NEAR_BEST * best)


def parse_curve(value: object) -> tuple[tuple[int, float], ...]:
    """A curve as stored; evidence of older builds has none. InvalidError for what is no curve."""
    if value is None:
        return ()
    try:
        found = tuple((int(batch), float(p50)) for batch, p50 in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise InvalidError("evidence.batch_p50_ms is no list of batch and ms") from error
    if not all(batch > 0 and 0 < p50 < 1e9 for batch, p50 in found):
        raise InvalidError("evidence.batch_p50_ms has numbers that no call takes")
    return found
