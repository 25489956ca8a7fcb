"""The agent's only reader of time.

Refuses to be imported by the domain: `now` is an argument there.
"""

import time
from datetime import UTC, datetime


class SystemClock:
    """Real time; satisfies `agent.domain.ports.Clock`."""

    def now(self) -> datetime:
        """Wall time, aware, UTC. May jump when the device's clock is set."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back; meaningful only within this process."""
        return time.monotonic()


def thread_cpu_s() -> float:
    """CPU seconds that the calling thread has used; only differences mean something."""
    return time.thread_time()
