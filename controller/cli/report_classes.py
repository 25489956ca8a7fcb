"""Which classes of a version lose by its builds, for the table and the page of `build report`.

Says of every class its n and interval: few rows prove little, and of many classes some seem to lose
by chance alone. Asks nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controller.cli import units
from lighterman.v1 import fleet_pb2

MOST = 5  # classes of a build; the JSON has more
NAME_CHARS = 20
LOSES, UNPROVEN = "loses", "may be chance"


@dataclass(frozen=True, slots=True)
class ClassLine:
    """One class of one build."""

    build: str
    name: str
    source: str
    value: str
    change: str
    n: str
    word: str


def class_lines(
    builds: Sequence[fleet_pb2.Build], labels: Sequence[str], most: int = MOST
) -> list[ClassLine]:
    """The classes that each build answers worse than its source, those that lose most first.

    Builds that several profiles share are named once.
    """
    found: list[ClassLine] = []
    seen: set[str] = set()
    several = len({item.variant for item in builds}) > 1
    for item in builds:
        if item.build_id in seen:
            continue
        seen.add(item.build_id)
        name = f"{item.variant} {item.recipe}" if several else item.recipe
        losing = [one for one in item.figures.classes if one.delta_pts.value < 0]
        found += [_line(name, one, labels) for one in losing[:most]]
    return found


def class_legend(builds: Sequence[fleet_pb2.Build]) -> str:
    """What the words mean, and of how many classes one speaks."""
    judged = max((item.figures.classes_judged for item in builds), default=0)
    return (
        f"{LOSES}: beyond chance, with all {judged:,} classes of the rows"
        f" considered; {UNPROVEN}: n rows cannot tell"
    )


def _line(build: str, one: fleet_pb2.ClassChange, labels: Sequence[str]) -> ClassLine:
    label = labels[one.label] if one.label < len(labels) else ""
    named = label[:NAME_CHARS] if label and label != str(one.label) else ""
    change = one.delta_pts
    low, high = units.signed(change.low), units.signed(change.high)
    return ClassLine(
        build,
        f"{one.label} {named}".strip(),
        f"{one.source_pct:.1f}",
        f"{one.value_pct:.1f}",
        f"{units.signed(change.value)} ({low}…{high})",
        f"{change.n:,}",
        LOSES if one.loses else UNPROVEN,
    )
