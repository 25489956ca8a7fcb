"""Memory that requests are read into, used again as soon as nobody looks at it any more.

Warm memory is half of the price of a picture: a fresh one costs page faults, or the caches. Refuses
to hold more than a bound in all, and knows nothing of what is read.
"""

import threading
from contextlib import suppress

_KEPT = 16
_KEPT_BYTES = 8 * 1024 * 1024
_LEAST_BYTES = 4096


class FullError(Exception):
    """As many bytes as are allowed wait already."""


class Buffers:
    """Byte arrays of at least the wanted size. Safe for threads."""

    def __init__(self, most_bytes: int) -> None:
        """No more than `most_bytes` are out at any time."""
        self._most = most_bytes
        self._lock = threading.Lock()
        self._kept: list[bytearray] = []
        self.out_bytes = 0

    @property
    def kept(self) -> int:
        """How many are kept for the next requests."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """How many bytes they are."""
        return sum(map(len, self._kept))

    def take(self, size: int) -> bytearray:
        """At least `size` bytes of anything. FullError beyond the bound."""
        with self._lock:
            if self.out_bytes + size > self._most:
                raise FullError
            # The last one given back is the one that is in the caches.
            for at in range(len(self._kept) - 1, -1, -1):
                if size <= len(self._kept[at]) <= 2 * size + _LEAST_BYTES:
                    found = self._kept.pop(at)
                    break
            else:
                found = bytearray(max(size, _LEAST_BYTES))
            self.out_bytes += len(found)
        return found

    def give(self, buffer: bytearray) -> None:
        """Take it back; kept for the next one unless somebody still has a view of it."""
        with self._lock:
            self.out_bytes -= len(buffer)
            # A byte array with views of it can't change its size: an inference that was given up
            # may still read this one.
            with suppress(BufferError):
                buffer.pop()
                buffer.append(0)
                self._kept.append(buffer)
                while len(self._kept) > _KEPT or self.kept_bytes > _KEPT_BYTES:
                    del self._kept[0]

    def reserve(self, size: int) -> None:
        """Count so many bytes as out, which are somewhere else; FullError beyond the bound."""
        with self._lock:
            if self.out_bytes + size > self._most:
                raise FullError
            self.out_bytes += size

    def free(self, size: int) -> None:
        """Count them in again."""
        with self._lock:
            self.out_bytes -= size

    def trim(self) -> None:
        """Keep nothing: nobody has asked for a while."""
        with self._lock:
            self._kept.clear()
