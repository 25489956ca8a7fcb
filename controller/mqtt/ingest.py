"""Takes in what devices say over MQTT. Who speaks is the topic's device: the broker binds the two.

Nothing that a device sends raises or stops this: it is counted, logged and dropped.
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from controller.clock import Clock
from controller.domain.words import count_of
from controller.errors import ErrorKind, InvalidError, LightermanError
from controller.mqtt.backlog import Backlog, Word
from controller.mqtt.client import Message, Outgoing
from controller.mqtt.convert import ack_message, spooled, telemetry_of
from controller.services.context import Ctx, Deps
from controller.services.device_sessions import boot_counter, check_live_boot
from controller.services.reports import DeviceEnvelope, accept_spools
from controller.services.telemetry import (
    Seen,
    Telemetry,
    find_all_seen,
    find_seen,
    health_document,
    list_health,
    look_ahead,
    mark_silent_offline,
    set_online,
    take_telemetry,
)
from lighterman.v1 import device_pb2, topics

log = logging.getLogger("lighterman.ingest")

FILTERS = ((topics.ALL_UP, 1),)
QUEUE_MAX = 20_000
BATCH_MAX = 200
GATHER_S = 0.05
SEEN_S = 5.0  # how long a device's stored facts are believed without a look
LOG_EVERY_S = 10.0


@dataclass(slots=True)
class _Known:
    """What was looked up of a device, and until when it holds."""

    seen: Seen | None
    boot_id: str
    until: float


class Ingest:
    """A bounded backlog and one thread behind it."""

    def __init__(
        self,
        deps: Deps,
        new_ctx: Callable[[str], Ctx],
        clock: Clock,
        publish: Callable[[Outgoing], None],
        told: Callable[[], None],
        grace_s: float,
    ) -> None:
        self._deps = deps
        self._new_ctx = new_ctx
        self._clock = clock
        self._publish = publish
        self._told = told
        self._grace_s = grace_s
        self._backlog = Backlog(QUEUE_MAX)
        self._known: dict[str, _Known] = {}
        self._present: dict[str, tuple[bool, Seen]] = {}  # of the batch at hand
        self._ahead: dict[str, Seen] = {}  # the same
        self._logged_at = -LOG_EVERY_S
        self._silent_since: datetime | None = None
        self._feed_all = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to take messages from the queue."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued and end."""
        self._ending.set()
        if self._thread.is_alive():
            self._backlog.wake()
            self._thread.join(10.0)

    def take(self, message: Message) -> None:
        """Queue a message; when the queue is full it is dropped: spools send reports again."""
        if not self._backlog.put(message):
            self._count("shed", "the queue is full")

    def queued(self) -> int:
        """How many messages wait."""
        return len(self._backlog)

    def on_connect(self) -> None:
        """The broker has us again: devices that stay silent from now on are not online."""
        self._silent_since = self._clock.now()
        self._feed_all.set()
        self._backlog.wake()

    def _run(self) -> None:
        while not self._ending.is_set() or len(self._backlog):
            self._backlog.wait(1.0)
            self._guarded(self._sort_in)
            if 1 < len(self._backlog) < BATCH_MAX and not self._backlog.urgent:
                # Many speak: a little later there are more, for one price.
                self._ending.wait(GATHER_S)
                self._guarded(self._sort_in)
            batch = self._backlog.take(BATCH_MAX)
            if batch:
                self._guarded(partial(self._take_batch, batch))
            self._settle_silence()

    def _sort_in(self) -> None:
        for unread in self._backlog.sort_in():
            self._count(unread.outcome, unread.why)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except LightermanError as error:
            self._refuse(error)
        except Exception:
            self._count("failed", "see the traceback")
            log.exception("a message could not be taken in")

    def _refuse(self, error: LightermanError) -> None:
        self._count("malformed" if error.kind is ErrorKind.INVALID else "refused", error.text())

    def _take_batch(self, batch: list[Word]) -> None:
        spools: dict[str, list[DeviceEnvelope]] = {}
        self._guarded(partial(self._read_ahead, batch))
        for word in batch:
            if word.suffix in (topics.UP_REPORT, topics.UP_EVENT):
                self._guarded(partial(_spool, spools, word.device_id, word.envelope))
                continue
            take = self._presence if word.suffix == topics.UP_PRESENCE else self._telemetry
            self._guarded(partial(take, word.device_id, word.envelope, word.retained))
        if self._present:
            present, self._present = self._present, {}
            self._guarded(partial(self._tell_presence, present))
        if spools:
            self._guarded(partial(self._reports, spools))

    def _reports(self, spools: dict[str, list[DeviceEnvelope]]) -> None:
        """One transaction for all; acknowledged when it is committed. A lost word comes again."""
        for entries in spools.values():
            # Report and event arrive on two topics: one order per boot is restored here.
            entries.sort(key=lambda one: (boot_counter(one.boot_id), one.boot_id, one.seq))
        try:
            answers = accept_spools(self._deps, self._new_ctx("controller"), spools)
        except Exception as error:
            if len(spools) == 1 or getattr(error, "kind", None) is ErrorKind.UNAVAILABLE:
                raise
            for device_id, entries in spools.items():  # one that cannot be stored stands alone
                self._guarded(partial(self._reports, {device_id: entries}))
            return
        for device_id, answer in answers.items():
            if isinstance(answer, LightermanError):
                self._refuse(answer)
                continue
            self.counts["reports"] += len(spools[device_id])
            for ack in answer.acks:
                # A lost one costs nothing: what is not acknowledged is said again.
                self._publish(Outgoing(*ack_message(device_id, ack), retain=False, qos=0))
        self._told()  # what changed may have left something in the outbox

    def _telemetry(self, device_id: str, envelope: device_pb2.Envelope, retained: bool) -> None:
        if retained:
            return  # telemetry is never retained by an agent: this is not news
        known = self._look_up(device_id, envelope.boot_id)
        if known.seen is None:
            self._count("refused", f"telemetry of {device_id}")
            return
        telemetry = telemetry_of(envelope)
        now = self._clock.now()
        document = take_telemetry(self._deps, now, device_id, known.seen, telemetry)
        self.counts["telemetry"] += 1
        self._feed(known.seen.project, device_id, document)

    def _presence(self, device_id: str, envelope: device_pb2.Envelope, retained: bool) -> None:
        online = envelope.presence.online
        counter = boot_counter(envelope.boot_id)
        known = self._look_up(device_id, envelope.boot_id, live=online and not retained)
        if known.seen is None:
            return
        newer = [boot for boot in (known.boot_id, known.seen.boot_id) if boot]
        if not online and any(counter < boot_counter(boot) for boot in newer):
            return  # the last will of a boot that was replaced
        self._present[device_id] = (online, known.seen)

    def _tell_presence(self, present: dict[str, tuple[bool, Seen]]) -> None:
        """One transaction for all: a whole fleet may come back at once."""
        words = {device_id: online for device_id, (online, _) in present.items()}
        changed = set_online(self._deps, self._new_ctx("controller"), words)
        for device_id, (online, seen) in present.items():
            if device_id not in changed and online:
                continue
            document = seen.status or health_document(
                device_id, seen.profile, self._clock.now(), online, Telemetry()
            )
            seen.status = {**document, "online": online}
            self._feed(seen.project, device_id, seen.status)

    def _read_ahead(self, batch: list[Word]) -> None:
        """Look all devices of a batch up in one go whose facts are not known any more."""
        now = self._clock.monotonic()
        wanted: set[str] = set()
        telling: set[str] = set()
        for word in batch:
            if word.suffix in (topics.UP_REPORT, topics.UP_EVENT):
                continue
            if word.suffix == topics.UP_TELEMETRY:
                telling.add(word.device_id)
            known = self._known.get(word.device_id)
            if known is None or now >= known.until:
                wanted.add(word.device_id)
        self._ahead = find_all_seen(self._deps, wanted) if wanted else {}
        known_ones = telling & (self._ahead.keys() | self._known.keys())
        look_ahead(self._deps, self._clock.now(), known_ones)

    def _look_up(self, device_id: str, boot_id: str, live: bool = True) -> _Known:
        now = self._clock.monotonic()
        known = self._known.get(device_id)
        if known is not None and now < known.until and (known.boot_id == boot_id or not live):
            return known
        seen = self._ahead.pop(device_id, None) or find_seen(self._deps, device_id)
        if live and seen is not None:
            boot_counter(boot_id)
            if seen.boot_id != boot_id and not check_live_boot(
                self._deps, self._new_ctx(device_id), device_id, boot_id
            ):
                return _Known(None, boot_id, now)
        before = known.boot_id if known is not None else ""
        known = _Known(seen, boot_id if live else before, now + SEEN_S)
        if seen is not None:
            self._known[device_id] = known
        return known

    def _feed(self, project: str, device_id: str, document: dict[str, object]) -> None:
        payload = json.dumps(document, separators=(",", ":"), sort_keys=True).encode("utf-8")
        self._publish(Outgoing(topics.feed_health(project, device_id), payload, True, qos=0))

    def _settle_silence(self) -> None:
        if self._feed_all.is_set():  # the broker may have lost what it kept for consumers
            self._feed_all.clear()
            self._guarded(self._feed_stored)
        since = self._silent_since
        if since is None or self._clock.now() < since + timedelta(seconds=self._grace_s):
            return
        self._silent_since = None
        self._guarded(partial(self._mark_silent, since))

    def _feed_stored(self) -> None:
        for project, device_id, document in list_health(self._deps):
            self._feed(project, device_id, document)

    def _mark_silent(self, since: datetime) -> None:
        silent = mark_silent_offline(self._deps, self._new_ctx("controller"), since)
        if silent:
            found = count_of(len(silent), "device")
            log.info("online before and silent since we listen again: %s, now offline", found)

    def _count(self, what: str, why: str) -> None:
        self.counts[what] += 1
        now = self._clock.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:  # a flood must not fill the log
            self._logged_at = now
            log.warning("%s message, %d so far: %s", what, self.counts[what], why)


def _spool(
    spools: dict[str, list[DeviceEnvelope]], device_id: str, envelope: device_pb2.Envelope
) -> None:
    """Put it with what its device said. InvalidError: alone, so that it takes no other with it."""
    entry = spooled(envelope)
    if entry is None:
        raise InvalidError(f"no number on what {device_id} said")
    boot_counter(entry.boot_id)
    spools.setdefault(device_id, []).append(entry)
