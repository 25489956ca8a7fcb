"""What devices said and nobody has taken in yet: whose turn it is when many wait.

First those that left a version, or could not take it: their rollout must hear of it before more
devices are exposed. Of the others one by arrival, so that nobody waits for ever, and one by turns
of the rollouts, so that an order for one device does not wait behind a fleet. The words of one
device stay in their order: they are numbered without gaps.
"""

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import cycle

from controller.mqtt.client import Message
from controller.mqtt.convert import parse_envelope
from controller.services.protocol import ProtocolError
from lighterman.v1 import device_pb2, topics

MALFORMED, OTHER_PROTOCOL = "malformed", "other_protocol"
DEVICE_MOST = 100  # words of one device in one turn: a chatty one holds up nobody

_URGENT = frozenset(
    {
        device_pb2.ASSIGNMENT_STATE_ROLLING_BACK,
        device_pb2.ASSIGNMENT_STATE_ROLLED_BACK,
        device_pb2.ASSIGNMENT_STATE_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class Word:
    """One readable message of a device."""

    device_id: str
    suffix: str
    envelope: device_pb2.Envelope
    retained: bool


@dataclass(frozen=True, slots=True)
class Unread:
    """A message that cannot be read: what it counts as, and why."""

    outcome: str
    why: str


@dataclass(slots=True)
class _Waiting:
    """What waits of one device, the line that it stands in, how many of its words are urgent."""

    line: str
    words: deque[Word] = field(default_factory=deque)
    urgent: int = 0


class _Lines:
    """Devices in lines by arrival: one line a rollout, and one for those who speak of none ("")."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, dict[str, None]] = OrderedDict()

    def is_shorter(self, line: str, other: str) -> bool:
        """Whether who stands in `other` is better off in `line`; the one of no rollout never is."""
        if not line or line == other:
            return False
        return not other or len(self._lines.get(line, ())) < len(self._lines[other])

    def join(self, line: str, device_id: str) -> None:
        """Stand at the end of a line."""
        self._lines.setdefault(line, {})[device_id] = None

    def leave(self, line: str, device_id: str) -> None:
        """Stand there no more."""
        standing = self._lines[line]
        del standing[device_id]
        if not standing:
            del self._lines[line]

    def next(self) -> str | None:
        """The first device of the line whose turn it is; the other lines come before it again."""
        if not self._lines:
            return None
        line, standing = next(iter(self._lines.items()))
        self._lines.move_to_end(line)
        return next(iter(standing))


class Backlog:
    """At most `most` messages. One thread takes; `put` may be called by any."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._came: deque[Message] = deque()
        self._news = threading.Event()
        self._devices: dict[str, _Waiting] = {}  # by arrival
        self._lines = _Lines()
        self._urgent: dict[str, None] = {}  # devices, by arrival
        self._urgent_last = False  # whether those had the turn before
        self._count = 0  # words in `_devices`

    def put(self, message: Message) -> bool:
        """Keep a message; False when there is no room for it."""
        if len(self) >= self._most:
            return False
        self._came.append(message)
        self._news.set()
        return True

    def __len__(self) -> int:
        return len(self._came) + self._count

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to take."""
        if not len(self):
            self._news.wait(timeout_s)
        self._news.clear()  # before the look: what comes behind it sets it again

    def wake(self) -> None:
        """End a `wait`."""
        self._news.set()

    def sort_in(self) -> list[Unread]:
        """Put what came to its device; gives what cannot be read."""
        unread: list[Unread] = []
        while self._came:
            message = self._came[0]  # counted until it is in its place
            try:
                word = _read(message)
                if isinstance(word, Unread):
                    unread.append(word)
                else:
                    self._place(word)
            finally:
                self._came.popleft()
        return unread

    @property
    def urgent(self) -> bool:
        """Whether somebody waits of whom a rollout must hear at once."""
        return bool(self._urgent)

    def take(self, limit: int) -> list[Word]:
        """At most `limit` words, of those whose turn it is.

        Urgent ones come alone, so that they are stored soon, and every second time at most, so that
        they keep nobody waiting for ever.
        """
        taken: list[Word] = []
        self._urgent_last = self.urgent and not self._urgent_last
        for by_line in cycle((True, False)):
            device_id = self._next(by_line)
            if device_id is None or len(taken) >= limit:
                break
            taken += self._words_of(device_id, min(DEVICE_MOST, limit - len(taken)))
        self._count -= len(taken)
        return taken

    def _next(self, by_line: bool) -> str | None:
        if self._urgent_last:
            return next(iter(self._urgent), None)
        return self._lines.next() if by_line else next(iter(self._devices), None)

    def _words_of(self, device_id: str, limit: int) -> list[Word]:
        waiting = self._devices.pop(device_id)
        self._lines.leave(waiting.line, device_id)
        self._urgent.pop(device_id, None)
        words = [waiting.words.popleft() for _ in range(min(limit, len(waiting.words)))]
        waiting.urgent -= sum(map(_is_urgent, words))
        if waiting.words:  # the rest stands behind all others
            self._devices[device_id] = waiting
            self._lines.join(waiting.line, device_id)
            if waiting.urgent:
                self._urgent[device_id] = None
        return words

    def _place(self, word: Word) -> None:
        name, line = word.device_id, _rollout(word)
        waiting = self._devices.get(name)
        if waiting is None:
            waiting = self._devices[name] = _Waiting(line)
            self._lines.join(line, name)
        elif self._lines.is_shorter(line, waiting.line):
            self._lines.leave(waiting.line, name)
            waiting.line = line
            self._lines.join(line, name)
        waiting.words.append(word)
        self._count += 1
        if _is_urgent(word):
            waiting.urgent += 1
            self._urgent[name] = None


def _rollout(word: Word) -> str:
    return word.envelope.report.rollout if word.suffix == topics.UP_REPORT else ""


def _is_urgent(word: Word) -> bool:
    return word.suffix == topics.UP_REPORT and word.envelope.report.state in _URGENT


def _read(message: Message) -> Word | Unread:
    where = f"on {message.topic[:200]}"
    topic = topics.parse_device_topic(message.topic)
    try:
        envelope = parse_envelope(topic.suffix, message.payload) if topic else None
    except ProtocolError as error:
        return Unread(OTHER_PROTOCOL, f"{where}: {error.text()}")
    if topic is None or envelope is None:
        return Unread(MALFORMED, where)
    return Word(topic.device_id, topic.suffix, envelope, message.retained)
