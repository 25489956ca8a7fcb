"""Feeds the service manager's watchdog as long as inference goes on, from the threads that serve.

A beat is fed by a serving thread: after any request, or, when nobody asks, after an empty task that
`look` puts into the same queue. Refuses to feed while an inference runs beyond `hang_s`, and once
it found a hang. A queue that moves, however long, is no hang; neither is a slow load elsewhere.

    Watchdog(notifier, clock, Vitals(...), hang_s)
    .served()                            # by a serving thread, after each task; cheap
    .look(now) -> str                    # about once a second; why it hangs, empty when it does not
"""

from collections.abc import Callable
from dataclasses import dataclass

from agent.domain.ports import Clock
from agent.host.notify import Notifier

# So many feeds fit into the time the manager waits.
_FEEDS = 4
# The loop waits for disks that wake up; it serves nobody, so it gets more patience.
_LOOP_HANG_TIMES = 8.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is looked at.

    `longest` is the inference that runs longest, with its seconds. `ask` lets a serving thread call
    `served`. `loop_silent_s` is since the loop, which steps and rolls back, last looked around.
    """

    longest: Callable[[], tuple[str, float] | None]
    ask: Callable[[], None]
    loop_silent_s: Callable[[], float]


class Watchdog:
    """Whether this process still serves. Works without a manager, too: then it only tells."""

    def __init__(self, notifier: Notifier, clock: Clock, vitals: Vitals, hang_s: float) -> None:
        self._notifier = notifier
        self._clock = clock
        self._vitals = vitals
        self._hang_s = hang_s
        self._every_s = (notifier.watchdog_s or hang_s) / _FEEDS
        self._served_at = clock.monotonic()
        self._fed_at = float("-inf")
        self._asked_at: float | None = None
        self._hangs = ""
        self._tripped = False

    def served(self) -> None:
        """A serving thread ended a task. Feeds when it is time to."""
        now = self._clock.monotonic()
        self._served_at = now
        self._asked_at = None
        if now - self._fed_at < self._every_s or self._hangs or self._stuck():
            return
        self._fed_at = now
        self._notifier.feed()

    def look(self) -> str:
        """Why this process hangs, or empty. The second time, the manager is told to end it.

        It ends it at once: the look before leaves the caller the time to write down why.
        """
        now = self._clock.monotonic()
        found = self._stuck()
        if not found and self._asked_at is not None and now - self._asked_at > self._hang_s:
            found = f"no serving thread came back for {now - self._served_at:.0f} s"
        if found and self._hangs and not self._tripped:
            self._notifier.trip()
        self._tripped = bool(found and self._hangs)
        self._hangs = found
        if not found and self._asked_at is None and now - self._fed_at >= self._every_s:
            self._asked_at = now
            self._vitals.ask()
        return found

    def _stuck(self) -> str:
        running = self._vitals.longest()
        if running is not None and running[1] > self._hang_s:
            return f"an inference of {running[0]} has been running for {running[1]:.0f} s"
        silent_s = self._vitals.loop_silent_s()
        if silent_s > self._hang_s * _LOOP_HANG_TIMES:
            return f"the loop has been silent for {silent_s:.0f} s"
        return ""
