"""What goes wrong, where, when and for how long: all of it follows from a seed. Pure.

Refuses what is beyond the promise: one fault at a time per device, the controller and its broker
are given time to come back before they are hit again.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """A fault."""

    PARTITION = "partition"
    CLOSED_DOOR = "closed door"
    HALF_OPEN = "half open"
    SLOW_LINK = "slow link"
    CUTS = "cuts"
    EDGE_LINK = "edge link"
    AGENT_KILL = "agent kill -9"
    DISK_FULL = "disk full"
    BROKER_KILL = "broker kill -9"
    CONTROLLER_KILL = "controller kill -9"


OF_THE_CENTRE = (Kind.BROKER_KILL, Kind.CONTROLLER_KILL)
# Kind, how often against the others, shortest and longest in seconds.
_TABLE: tuple[tuple[Kind, int, float, float], ...] = (
    (Kind.PARTITION, 5, 2.0, 15.0),
    (Kind.CLOSED_DOOR, 2, 2.0, 10.0),
    (Kind.HALF_OPEN, 3, 3.0, 12.0),
    (Kind.SLOW_LINK, 4, 5.0, 20.0),
    (Kind.CUTS, 3, 5.0, 15.0),
    (Kind.EDGE_LINK, 2, 2.0, 8.0),
    (Kind.AGENT_KILL, 5, 0.0, 4.0),
    (Kind.DISK_FULL, 2, 5.0, 15.0),
    (Kind.BROKER_KILL, 2, 0.0, 0.0),
    (Kind.CONTROLLER_KILL, 2, 0.0, 8.0),
)
_CENTRE_REST_S = 25.0
_NEXT_S = (1.0, 4.0)
LONG_AWAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them: seconds from the start of its stretch; `chance` is its own, 0 to 1."""

    at_s: float
    kind: Kind
    device: str
    for_s: float
    chance: float

    def __str__(self) -> str:
        where = f" on {self.device}" if self.device else ""
        return f"{self.kind}{where} for {self.for_s:.1f} s"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def stretches(
    seed: int, seconds: float, devices: Sequence[str], disk: Sequence[str], calm_every_s: float
) -> list[list[Fault]]:
    """Faults between calm points. `disk` devices have a disk that can be filled.

    Long runs have the controller away for a minute once.
    """
    count = max(1, round(seconds / calm_every_s))
    found = []
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        long_away = seconds >= 300 and number == count // 2
        found.append(_stretch(chance, seconds / count, devices, disk, long_away=long_away))
    return found


def illnesses(seed: int, kinds: Sequence[str]) -> Iterator[str]:
    """What ails one version after the other, empty for a good one; without an end.

    Of each two in a row one is bad, and each kind comes once before any comes again: so many kinds
    are through after twice as many versions, however slow the machine is.
    """
    chance = random.Random(f"{seed}/operator")
    dealt: list[str] = []
    while True:
        if not dealt:
            dealt = sorted(kinds)
            chance.shuffle(dealt)
        two = ["", dealt.pop()]
        chance.shuffle(two)
        yield from two


def _stretch(
    chance: random.Random,
    seconds: float,
    devices: Sequence[str],
    disk: Sequence[str],
    *,
    long_away: bool,
) -> list[Fault]:
    busy_until = dict.fromkeys((*devices, "", "edge"), 0.0)
    found = []
    at_s = chance.uniform(*_NEXT_S)
    while at_s < seconds - 1.0:
        fault = _one(chance, at_s, devices, disk)
        place = "edge" if fault.kind is Kind.EDGE_LINK else fault.device
        if busy_until[place] <= at_s:
            # A calm point ends what is not over.
            fits = at_s + LONG_AWAY_S < seconds
            if fault.kind is Kind.CONTROLLER_KILL and long_away and fits:
                fault = Fault(at_s, fault.kind, "", LONG_AWAY_S, fault.chance)
                long_away = False
            rest_s = _CENTRE_REST_S if fault.kind in OF_THE_CENTRE else 2.0
            busy_until[place] = at_s + fault.for_s + rest_s
            found.append(fault)
        at_s += chance.uniform(*_NEXT_S)
    if long_away:
        until = LONG_AWAY_S + _CENTRE_REST_S
        found = [f for f in found if f.kind not in OF_THE_CENTRE or f.at_s > until]
        found.append(Fault(0.5, Kind.CONTROLLER_KILL, "", LONG_AWAY_S, 0.5))
    return sorted(found, key=lambda one: one.at_s)


def _one(chance: random.Random, at_s: float, devices: Sequence[str], disk: Sequence[str]) -> Fault:
    table = [row for row in _TABLE if row[0] is not Kind.DISK_FULL or disk]
    kind, _, least, most = chance.choices(table, [row[1] for row in table])[0]
    device = ""
    if kind is Kind.DISK_FULL:
        device = chance.choice(disk)
    elif kind is not Kind.EDGE_LINK and kind not in OF_THE_CENTRE:
        device = chance.choice(devices)
    return Fault(round(at_s, 3), kind, device, round(chance.uniform(least, most), 3),
                 round(chance.random(), 6))  # fmt: skip
