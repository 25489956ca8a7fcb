"""What may go wrong in a seed's world, and what is drawn for it. Each can be left out."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from random import Random

# In which way a version is bad; empty: it is good.
HOWS = ("", "", "slow", "slow on some", "slow later", "crashes", "refuses", "errors", "heavier")
# A rollout of these must not succeed where the version answered anywhere.
NEVER_GOOD = ("slow", "crashes", "refuses", "errors")
MODELS = ("digits", "plates")
_SIZES = (6, 6, 6, 6, 10, 10, 10, 16)
_LARGE = {499: 100, 999: 1000}  # seeds in every thousand with many devices


@dataclass(frozen=True, slots=True)
class Faults:
    """Size and weather of a world; 0: the seed draws it."""

    devices: int = 0
    steps: int = 32
    kills: bool = True  # of the controller, within transactions and after them
    power: bool = True  # cuts, between any two acts of a device too
    network: bool = True  # lost, late, repeated and shuffled messages; sites cut off
    brokers: bool = True  # that forget what they kept
    disks: bool = True
    silence: bool = True  # nights and dead cameras
    heat: bool = True  # slows a device down, and is no fault of its version
    clocks: bool = True  # of the controller, that step
    people: bool = True  # who pause, resume, abort and roll back at random
    versions: int = 2  # of each model, beside the two that are good
    models: int = 0

    def drawn(self, seed: int) -> "Faults":
        """With everything decided."""
        random = Random(f"size {seed}")
        devices = _LARGE.get(seed % 1000) or random.choice(_SIZES)
        models = random.choice((1, 1, 2))
        steps = self.steps if devices < 100 else min(self.steps, 12)
        return replace(
            self, devices=self.devices or devices, models=self.models or models, steps=steps
        )

    def simpler(self) -> Iterator["Faults"]:
        """Each with one thing less."""
        for one in fields(self):
            if getattr(self, one.name) is True:
                yield replace(self, **{one.name: False})
        if self.models > 1:
            yield replace(self, models=1)
        if self.devices > 2:
            yield replace(self, devices=self.devices // 2)
        if self.steps > 12:
            yield replace(self, steps=self.steps // 2)
        if self.versions > 1:
            yield replace(self, versions=1)

    def text(self) -> str:
        """What is left of them, for people."""
        on = [one.name for one in fields(self) if getattr(self, one.name) is True]
        models = f"{self.models} models" if self.models > 1 else "1 model"
        what = ", ".join(on) or "no faults"
        return f"{self.devices} devices, {models}, {self.steps} steps, {what}"
