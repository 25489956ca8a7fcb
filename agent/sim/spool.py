"""Reports of a simulated device until the controller has stored them: in memory, in order."""

from collections.abc import Iterator

from agent.domain.ports import SpoolEntry
from agent.link.convert import AckPoint, numbered, suffix_of
from lighterman.v1 import topics

ACK_WAIT_S = 5.0  # then what was not acknowledged is sent again


class SimSpool:
    """Numbers what is said, keeps it until it is acknowledged."""

    __slots__ = ("_boot_id", "_device_id", "_sent_at_s", "_seq", "_waiting")

    def __init__(self, device_id: str, boot_id: str) -> None:
        self._device_id = device_id
        self._boot_id = boot_id
        self._seq = 0
        self._sent_at_s = 0.0
        self._waiting: dict[int, tuple[str, bytes]] = {}  # topic and envelope

    def add(self, kind: str, payload: bytes, now_s: float) -> tuple[str, bytes]:
        """Keep one message; returns its topic and envelope."""
        self._seq += 1
        envelope = numbered(SpoolEntry(self._boot_id, self._seq, kind, payload))
        topic = topics.device(self._device_id, suffix_of(envelope))
        message = (topic, envelope.SerializeToString())
        if not self._waiting:
            self._sent_at_s = now_s
        self._waiting[self._seq] = message
        return message

    def acked(self, point: AckPoint) -> list[int]:
        """The controller has stored everything up to here; gives the numbers that are news."""
        if point.boot_id != self._boot_id:
            return []
        done = [number for number in self._waiting if number <= point.seq]
        for seq in done:
            del self._waiting[seq]
        return done

    @property
    def last(self) -> int:
        """Number of the newest message."""
        return self._seq

    def all(self, now_s: float) -> Iterator[tuple[str, bytes]]:
        """Everything that waits, in order, to be sent (again) now."""
        self._sent_at_s = now_s
        yield from list(self._waiting.values())

    def is_late(self, now_s: float) -> bool:
        """Whether an acknowledgement is overdue."""
        return bool(self._waiting) and now_s >= self._sent_at_s + ACK_WAIT_S

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self._waiting)
