"""What the simulated devices do: how fast they infer, and on which of them a version is bad.

Pure: chance comes in as an argument, so that a seed decides everything. Refuses to act.
"""

import random
from dataclasses import dataclass

BAD_FACTOR = 1.4  # a bad version takes so much longer than the policy's threshold


@dataclass(frozen=True, slots=True)
class Script:
    """The parameters of all devices. Times in seconds, shares in percent.

    Service times are `latency_s` moved by up to `jitter_pct` either way. `bad_version` is too slow
    on `slow_share_pct` of the devices (chosen by `seed`) and good on the others.
    """

    seed: int = 0
    inferences_per_s: float = 10.0
    latency_s: float = 0.020
    jitter_pct: float = 20.0
    load_s: float = 0.2
    bad_version: str = ""
    slow_share_pct: float = 100.0

    def chance_of(self, device_id: str) -> random.Random:
        """The source of chance of one device."""
        return random.Random(f"{self.seed}/{device_id}")

    def is_bad(self, device_id: str, version: str) -> bool:
        """Whether this version is too slow on this device."""
        if not self.bad_version or version != self.bad_version:
            return False
        drawn = random.Random(f"{self.seed}/{device_id}/{version}").uniform(0.0, 100.0)
        return drawn < self.slow_share_pct

    def service_s(self, chance: random.Random, *, bad: bool, threshold_s: float) -> float:
        """One service time."""
        moved = 1.0 + chance.uniform(-self.jitter_pct, self.jitter_pct) / 100.0
        if bad:
            return threshold_s * BAD_FACTOR * max(moved, 0.8)
        return self.latency_s * moved

    def loading_s(self, chance: random.Random) -> float:
        """How long loading and warming takes."""
        return self.load_s * (1.0 + chance.uniform(-self.jitter_pct, self.jitter_pct) / 100.0)
