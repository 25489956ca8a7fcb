"""Sends what the spool holds until the controller says that it stored it.

MQTT first; where the broker is away, or takes messages that nobody acknowledges, over gRPC.
Refuses to drop anything without an acknowledgement, and to change the order within a boot.

A controller whose database was restored from a backup may have forgotten what it acknowledged: its
answers say less than before. That is asked about (`on_behind`), and only what hello confirms
(`forgotten`) is told with the number it had reached, so that it goes on behind the gap.
"""

import threading
from collections import deque
from collections.abc import Callable

from agent.domain.ports import Clock, Spool, SpoolEntry
from agent.errors import StoreError
from agent.link.backoff import Backoff
from agent.link.convert import AckPoint, numbered, suffix_of
from agent.link.errors import LinkError

Publish = Callable[[str, bytes, int], bool]
ReportCall = Callable[[list[SpoolEntry], int], AckPoint]


class SpoolSender:
    """A thread between the spool and the two roads up."""

    def __init__(
        self,
        spool: Spool,
        publish: Publish,
        report: ReportCall,
        connected: Callable[[], bool],
        clock: Clock,
        on_trouble: Callable[[str], None],
        on_behind: Callable[[], None] = lambda: None,
        *,
        ack_wait_s: float = 5.0,
        slow_road_after_s: float = 3.0,
        batch: int = 100,
        backoff: Backoff | None = None,
    ) -> None:
        self._spool = spool
        self._publish = publish
        self._report = report
        self._connected = connected
        self._clock = clock
        self._on_trouble = on_trouble
        self._on_behind = on_behind
        self._confirmed: deque[frozenset[str]] = deque()
        self._forgotten: frozenset[str] = frozenset()
        self._asked = False
        self._ack_wait_s = ack_wait_s
        self._slow_road_after_s = slow_road_after_s
        self._batch = batch
        self._backoff = backoff or Backoff(base_s=1.0, cap_s=30.0)
        self._acks: deque[AckPoint] = deque()
        self._sent: dict[tuple[str, int], float] = {}
        self._missed = 0
        self._away_since: float | None = clock.monotonic()
        self._slow_road_at = 0.0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def start(self) -> None:
        """Begin to send, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """End the thread; what is not acknowledged stays in the spool."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Something was appended, or the connection changed."""
        self._wake.set()

    def acked(self, point: AckPoint) -> None:
        """The controller stored everything up to here. Returns at once; any thread."""
        self._acks.append(point)
        self._wake.set()

    def forgotten(self, boots: frozenset[str]) -> None:
        """What hello said of boots of which less is stored than was acknowledged; any thread."""
        self._confirmed.append(boots)
        self._wake.set()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                wait_s = self._look()
            except StoreError as error:
                self._on_trouble(str(error))
                wait_s = self._ack_wait_s
            self._wake.wait(wait_s)
            self._wake.clear()

    def _look(self) -> float:
        """Send what is due; gives the seconds until there can be something new to do."""
        now = self._clock.monotonic()
        while self._acks:
            self._drop(self._acks.popleft())
        while self._confirmed:
            self._forgotten = self._confirmed.popleft()
            if self._forgotten:  # what was sent before came without the number
                self._sent.clear()
                self._slow_road_at = 0.0
        entries = self._spool.pending(self._batch)
        if self._connected():
            self._away_since = None
        else:
            self._sent.clear()  # that connection is gone, and what it carried with it
            if self._away_since is None:
                self._away_since = now
        if not entries:
            self._missed = 0
            return 3600.0
        if self._slow_road_due(now):
            return self._by_grpc(entries, now)
        if self._away_since is not None:
            return max(0.05, self._away_since + self._slow_road_after_s - now)
        return self._by_mqtt(entries, now)

    def _drop(self, point: AckPoint) -> None:
        self._missed = 0
        if point.seq < self._spool.acknowledged().get(point.boot_id, 0):
            if not self._asked:  # old news, or a database that forgot: hello tells
                self._asked = True
                self._on_behind()
            return
        if self._spool.ack(point.boot_id, point.seq):
            self._asked = False
            self._forgotten -= {point.boot_id}
        for key in [k for k in self._sent if k[0] == point.boot_id and k[1] <= point.seq]:
            del self._sent[key]

    def _slow_road_due(self, now: float) -> bool:
        if now < self._slow_road_at:
            return False
        if self._away_since is not None:
            return now >= self._away_since + self._slow_road_after_s
        return self._missed >= 2

    def _by_mqtt(self, entries: tuple[SpoolEntry, ...], now: float) -> float:
        oldest = self._sent.get(_key(entries[0]))
        if oldest is not None and now >= oldest + self._ack_wait_s:
            self._missed += 1
            self._sent.clear()
        for entry in entries:
            if _key(entry) in self._sent:
                continue
            envelope = numbered(entry, self._reached(entry.boot_id))
            if not self._publish(suffix_of(envelope), envelope.SerializeToString(), 1):
                break
            self._sent[_key(entry)] = now
        return self._ack_wait_s

    def _by_grpc(self, entries: tuple[SpoolEntry, ...], now: float) -> float:
        boot_id = entries[0].boot_id
        try:
            mine = [e for e in entries if e.boot_id == boot_id]
            point = self._report(mine, self._reached(boot_id))
        except LinkError as error:
            wait_s = self._backoff.failed(error.retry_after_s)
            self._slow_road_at = now + wait_s
            self._on_trouble(error.message)
            return max(0.05, wait_s)
        self._backoff.succeeded()
        self._drop(point)
        if point.boot_id != boot_id or point.seq < entries[0].seq:
            # Nothing moved: the controller misses what came before. Do not hammer it.
            self._slow_road_at = now + self._ack_wait_s
            return self._ack_wait_s
        return 0.0

    def _reached(self, boot_id: str) -> int:
        """What a controller that forgot has to be told; 0 for one that did not."""
        return self._spool.acknowledged().get(boot_id, 0) if boot_id in self._forgotten else 0


def _key(entry: SpoolEntry) -> tuple[str, int]:
    return entry.boot_id, entry.seq
