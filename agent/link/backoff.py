"""How long to wait before the next try: exponential with full jitter, a retry-after honoured.

Refuses to wait itself: the caller waits on something that can be interrupted.
"""

import random


class Backoff:
    """Waits between tries. Full jitter keeps a thousand devices from coming back in one second."""

    def __init__(
        self, base_s: float = 1.0, cap_s: float = 60.0, chance: random.Random | None = None
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._chance = chance or random.Random()
        self._tries = 0

    @property
    def tries(self) -> int:
        """Failures since the last success."""
        return self._tries

    def failed(self, retry_after_s: float = 0.0) -> float:
        """Seconds to wait after one more failure; `retry_after_s` is the least, jitter on top."""
        ceiling = min(self._cap_s, self._base_s * 2.0 ** min(self._tries, 32))
        self._tries += 1
        wait_s = self._chance.uniform(0.0, ceiling)
        if retry_after_s > 0.0:
            wait_s += retry_after_s
        return wait_s

    def succeeded(self) -> None:
        """Start from the beginning again."""
        self._tries = 0

    def spread(self, seconds: float, share: float = 0.2) -> float:
        """`seconds`, moved by up to `share` of it either way."""
        return seconds * self._chance.uniform(1.0 - share, 1.0 + share)
