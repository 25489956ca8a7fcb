"""Which rollouts are to be looked at in the next tick, and which of them at once.

Most news concerns one rollout; to look at all of them for it would let each order wait for all
others. In memory: a process that starts looks at everything, and what is forgotten costs a little
time only, because every rollout is looked at again and again anyway.
"""

import threading
from collections.abc import Callable, Collection, Iterable
from datetime import datetime

from controller.domain.rollout import Phase

# Nothing could be spared any more by being quick, and a whole fleet says that it goes back.
_CALM = frozenset({Phase.ROLLING_BACK})


class Agenda:
    """Thread-safe. `ring` is called after each note; True: do not wait for the usual time."""

    def __init__(self, ring: Callable[[bool], None] = lambda urgent: None) -> None:
        self.ring = ring
        self._lock = threading.Lock()
        self._all = True
        self._named: set[str] = set()
        self._urgent: dict[str, None] = {}  # in the order in which it was said
        self._calm: set[str] = set()
        self._wake_at: dict[str, datetime] = {}

    def note(self, rollout_ids: Iterable[str], *, urgent: bool = False) -> None:
        """There is news of these rollouts. Call it when the news is stored."""
        named = set(rollout_ids)
        with self._lock:
            self._named |= named
            pressing = sorted(named - self._calm) if urgent else []
            self._urgent |= dict.fromkeys(pressing)
        if named:
            self.ring(bool(pressing))

    def note_all(self) -> None:
        """Something happened that may concern any of them."""
        with self._lock:
            self._all = True

    def take_news(self, active: Collection[str]) -> tuple[frozenset[str], bool]:
        """Those of the active ones with news, and whether all may have some; it is used up by that.

        What was never looked at is news.
        """
        with self._lock:
            self._wake_at = {name: at for name, at in self._wake_at.items() if name in active}
            self._calm &= set(active)
            named, everything = self._named, self._all
            self._named, self._all = set(), False
            return frozenset(n for n in active if n in named or n not in self._wake_at), everything

    def is_due(self, rollout_id: str, now: datetime) -> bool:
        """Whether the time has come at which it wanted to be looked at."""
        with self._lock:
            wake_at = self._wake_at.get(rollout_id)
        return wake_at is None or wake_at <= now

    def take_urgent(self) -> str | None:
        """The one that cannot wait for the end of the round."""
        with self._lock:
            first = next(iter(self._urgent), None)
            if first is not None:
                del self._urgent[first]
            return first

    def has_urgent(self) -> bool:
        """Whether any cannot wait."""
        with self._lock:
            return bool(self._urgent)

    def settle(self, rollout_id: str, phase: Phase, wake_at: datetime) -> None:
        """It was looked at, is in this phase now, and wants to be looked at again then."""
        with self._lock:
            self._wake_at[rollout_id] = wake_at
            if phase in _CALM:
                self._calm.add(rollout_id)
            else:
                self._calm.discard(rollout_id)

    def next_at(self) -> datetime | None:
        """When the next one wants to be looked at without news."""
        with self._lock:
            return min(self._wake_at.values(), default=None)
