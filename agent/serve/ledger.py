"""What was asked of this agent and how it ended, over every road: outcomes and statistics.

One lock, held for some additions. Refuses to know a road, and to grow: of old versions the one that
was idle longest is forgotten.
"""

import threading
from collections import Counter
from dataclasses import dataclass, replace

from agent.domain.ports import Clock, InferResult

# Of how many versions statistics are kept.
_KEPT = 64


@dataclass(slots=True)
class Statistics:
    """Sums of one version since the start. Times are seconds, `last_at` is Unix time (0: never).

    `inferences` counts the rows of batches, `success` requests, `executions` runs of the runtime,
    of which one may be for several requests. `infer_s` is the runtime alone.
    """

    model: str
    version: str
    inferences: int = 0
    success: int = 0
    executions: int = 0
    failed: int = 0
    success_s: float = 0.0
    failed_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    last_at: float = 0.0

    def durations(self) -> dict[str, tuple[int, int]]:
        """Count and nanoseconds together, by the names of the protocol's statistics.

        What was neither queue nor runtime counts as input; there is no cache.
        """
        rest_s = max(0.0, self.success_s - self.queue_s - self.infer_s)
        return {
            "success": (self.success, _ns(self.success_s)),
            "fail": (self.failed, _ns(self.failed_s)),
            "queue": (self.success, _ns(self.queue_s)),
            "compute_input": (self.success, _ns(rest_s)),
            "compute_infer": (self.success, _ns(self.infer_s)),
            "compute_output": (self.success, 0),
            "cache_hit": (0, 0),
            "cache_miss": (0, 0),
        }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


class Ledger:
    """Counts for every road together."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._sums: dict[tuple[str, str], Statistics] = {}

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Requests since the start, by model and outcome."""
        with self._lock:
            return dict(self._outcomes)

    def count(self, model: str, outcome: str) -> None:
        """A request that no version is to blame for."""
        with self._lock:
            self._outcomes[model, outcome] += 1

    def answered(self, model: str, result: InferResult, since_s: float) -> None:
        """A request that came at `since_s` (monotonic) was inferred."""
        now = self._clock.monotonic()
        with self._lock:
            self._outcomes[model, "ok"] += 1
            sums = self._of(model, result.version)
            sums.success += 1
            sums.inferences += result.rows
            sums.executions += result.executions
            sums.success_s += now - since_s
            sums.queue_s += result.queue_s
            sums.infer_s += result.service_s
            sums.last_at = now

    def failed(self, model: str, version: str, outcome: str, since_s: float) -> None:
        """A request that came at `since_s` was not answered by the version it was for."""
        now = self._clock.monotonic()
        with self._lock:
            self._outcomes[model, outcome] += 1
            sums = self._of(model, version)
            sums.failed += 1
            sums.failed_s += now - since_s

    def statistics(self, model: str, version: str) -> Statistics:
        """The sums of one version; all 0 when nobody asked it anything yet."""
        now, wall = self._clock.monotonic(), self._clock.now().timestamp()
        with self._lock:
            found = self._sums.get((model, version))
            if found is None:
                return Statistics(model, version)
            return replace(found, last_at=found.last_at and wall - (now - found.last_at))

    def _of(self, model: str, version: str) -> Statistics:
        found = self._sums.get((model, version))
        if found is None:
            found = self._sums[model, version] = Statistics(model, version)
            while len(self._sums) > _KEPT:
                del self._sums[min(self._sums, key=lambda one: self._sums[one].last_at)]
        return found
