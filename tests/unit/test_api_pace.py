"""Messages of a download grow on a fast road and shrink on a slow one; no byte is lost or moved."""

import random

import pytest

from controller.api.pace import LARGEST_BYTES, LEAST_BYTES, in_pieces, next_size
from controller.clock import SystemClock


class Road(SystemClock):
    """A clock that moves as a road of this speed takes what was handed to it."""

    def __init__(self, bytes_per_s: float) -> None:
        self.at_s = 0.0
        self.bytes_per_s = bytes_per_s

    def monotonic(self) -> float:
        return self.at_s

    def send(self, chunks: list[bytes]) -> list[bytes]:
        found = []
        for piece in in_pieces(chunks, self):
            self.at_s += len(piece) / self.bytes_per_s
            found.append(piece)
        return found


@pytest.mark.parametrize("bytes_per_s", [4096.0, 50e3, 400e3, 1e9])
def test_the_same_bytes_in_messages_that_a_device_waits_for(bytes_per_s: float) -> None:
    chance = random.Random(3)
    chunks = [chance.randbytes(size) for size in (1 << 20, 1, 300_000, 1 << 20)]
    pieces = Road(bytes_per_s).send(chunks)
    assert b"".join(pieces) == b"".join(chunks)
    assert max(len(piece) for piece in pieces) <= LARGEST_BYTES
    # A device gives up a download that brings nothing in 20 s.
    assert max(len(piece) for piece in pieces) / bytes_per_s < 20.0


def test_a_fast_road_gets_large_messages() -> None:
    pieces = Road(1e9).send([bytes(1 << 20)] * 8)
    assert [len(piece) for piece in pieces[:3]] == [64 * 1024, 128 * 1024, 256 * 1024]
    assert pieces[-2:] == [bytes(LARGEST_BYTES)] * 2


def test_a_road_that_gets_slow_gets_small_ones_again() -> None:
    assert next_size(LARGEST_BYTES, 2.0) == LARGEST_BYTES // 2
    assert next_size(LEAST_BYTES, 15.0) == LEAST_BYTES
    assert next_size(LEAST_BYTES, 0.5) == LEAST_BYTES


def test_nothing_makes_no_message() -> None:
    assert Road(1e9).send([]) == []
    assert Road(1e9).send([b""]) == []
