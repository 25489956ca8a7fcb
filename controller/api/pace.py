"""Cuts a download into messages that fit the road: large where it is fast, small where it is slow.

A message that is not through when the connection breaks is lost as a whole, and one that takes
longer than a device waits never arrives at all. Refuses to know what the bytes are.
"""

from collections.abc import Iterable, Iterator

from controller.clock import Clock

# At 4 KB/s, below which a device gives up, the least one takes 16 s of its 20. Larger ones cost
# less of this side's time; beyond the largest, a cut loses more than is saved.
LEAST_BYTES = 64 * 1024
LARGEST_BYTES = 256 * 1024
FAST_S = 0.25
SLOW_S = 1.0


def in_pieces(chunks: Iterable[bytes], clock: Clock) -> Iterator[bytes]:
    """The same bytes in messages; asking for the next one tells how fast they go."""
    size = LEAST_BYTES
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            began = clock.monotonic()
            piece = chunk[at : at + size]
            yield piece
            at += len(piece)
            if len(piece) == size:  # the rest of a chunk tells nothing
                size = next_size(size, clock.monotonic() - began)


def next_size(size: int, took_s: float) -> int:
    """After a message of this size that took so many seconds to be taken off our hands."""
    if took_s < FAST_S:
        return min(2 * size, LARGEST_BYTES)
    return max(size // 2, LEAST_BYTES) if took_s > SLOW_S else size
