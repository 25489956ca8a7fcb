"""Which requests of a queue are inferred at once, by how long batches were measured to take.

A batch is formed of what waits already: nobody is held back for company that may never come.
Refuses sizes that were not measured, and to know where time comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Sizes that are tried at load, in this order. Few: a runtime plans its memory for each of them.
SIZES = (2, 4, 8, 16, 32)
# What a batch has to save of the time of its rows one by one; less may be noise, and a copy costs.
LEAST_GAIN_PCT = 4.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds that one row takes, and those that batches which pay take, by rows, ascending."""

    single_s: float
    batches: tuple[tuple[int, float], ...]

    @property
    def most(self) -> int:
        """Rows of the largest batch that pays; 1 when none does."""
        return self.batches[-1][0] if self.batches else 1

    def alone(self, rows: int) -> float | None:
        """What one row takes alone as a share of what a batch of `rows` does; None: none pays."""
        return next((self.single_s / took for size, took in self.batches if size == rows), None)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request of the queue; `left_s` until its client gives up, None when it never does."""

    rows: int
    left_s: float | None = None


NO_BATCHES = Curve(0.0, ())


def pays(single_s: float, rows: int, batch_s: float, most_s: float) -> bool:
    """Whether a batch is worth it: quicker by row, and no longer than anyone may have to wait."""
    saved_pct = 100.0 * (1.0 - batch_s / (rows * single_s)) if single_s > 0 else 0.0
    return batch_s <= most_s and saved_pct >= LEAST_GAIN_PCT


def cut(single_s: float, measured: Sequence[tuple[int, float]], most_s: float) -> Curve:
    """The batches of a measured curve that pay, each also by row as quick as any smaller one."""
    found: list[tuple[int, float]] = []
    for rows, batch_s in measured:
        better = not found or batch_s / rows <= found[-1][1] / found[-1][0]
        if better and pays(single_s, rows, batch_s, most_s):
            found.append((rows, batch_s))
    return Curve(single_s, tuple(found))


def first_of(queue: Sequence[Waiting], curve: Curve) -> int:
    """How many of the first in the queue are inferred at once, 1 at least.

    The largest batch that pays and lets nobody in it miss a deadline that it would meet alone.
    Requests of several rows count with all of them.
    """
    rows, left_s, found = 0, float("inf"), 1
    sizes = dict(curve.batches)
    for count, one in enumerate(queue, start=1):
        rows += one.rows
        if one.left_s is not None and one.left_s >= curve.single_s:
            left_s = min(left_s, one.left_s)
        if rows > curve.most:
            break
        took_s = sizes.get(rows)
        if count > 1 and took_s is not None and took_s <= left_s:
            found = count
    return found
