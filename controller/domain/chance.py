"""Chance from a seed: the same seed, the same draws, on every machine.

The domain has no source of chance of its own; whoever wants draws brings a seed. Not for secrets.
The generator is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014).
"""

import math

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


class Chance:
    """A stream of draws."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = (seed * _GAMMA + 0x1234567) & _MASK

    def share(self) -> float:
        """Even in [0, 1)."""
        self._state = state = (self._state + _GAMMA) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((state ^ (state >> 31)) >> 11) / (1 << 53)

    def between(self, least: float, most: float) -> float:
        """Even in [least, most)."""
        return least + (most - least) * self.share()

    def wait(self, mean: float) -> float:
        """Exponential: how long until something that happens every `mean` on average."""
        return -mean * math.log(1.0 - self.share())

    def is_hit(self, pct: float) -> bool:
        """Whether something of this chance happens."""
        return self.share() * 100.0 < pct
