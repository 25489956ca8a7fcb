"""What devices say of builds, and which of it is stale by now. Weighs nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.domain.device import Capabilities
from controller.domain.tournament import Measured, stale
from controller.store import devices, tunings
from controller.store.session import Connection
from controller.store.tunings import ChoiceRow


@dataclass(frozen=True, slots=True)
class Word:
    """What one device measured of one build; ``stale`` says why it does not count any more."""

    device_id: str
    measured: Measured
    measured_at: datetime
    stale: str = ""


def words_of(conn: Connection, project: str, build_ids: Sequence[str]) -> dict[str, list[Word]]:
    """By build, what devices say that are enrolled; which of it is stale is found out now."""
    said = tunings.measurements_of(conn, project, build_ids)
    ids = sorted({row.device_id for rows in said.values() for row in rows})
    there = {
        row.device_id
        for row in devices.list_devices(conn, project, tuple(ids), with_status=False)
        if row.state == "ACTIVE"
    }
    told = devices.capabilities_of(conn, ids)
    found: dict[str, list[Word]] = {}
    for build_id, rows in said.items():
        for row in rows:
            measured = Measured.from_json(row.figures)
            now = Capabilities.from_json(told.get(row.device_id, {}))
            why = stale(measured, now) if row.device_id in there else "it is no active device"
            word = Word(row.device_id, measured, row.measured_at, why if measured.ok else "")
            found.setdefault(build_id, []).append(word)
    return found


@dataclass(slots=True)
class Told:
    """What is said of builds as profiles see them; read once for a list of them."""

    words: dict[str, list[Word]]
    profile_of: dict[str, str | None]
    choices: dict[tuple[str, str], dict[str, ChoiceRow]]

    def of(self, build_id: str, profile: str) -> tuple[Word, ...]:
        """A device speaks for the profile that it has."""
        said = self.words.get(build_id, ())
        return tuple(one for one in said if self.profile_of.get(one.device_id) == profile)

    def rung(self, model: str, version: str, profile: str, build_id: str) -> str:
        """Its place in the ladder that a person chose, ``2 of 3``; empty where it has none."""
        choice = self.choices.get((model, version), {}).get(profile)
        if choice is None or build_id not in choice.build_ids:
            return ""
        return f"{choice.build_ids.index(build_id) + 1} of {len(choice.build_ids)}"


def told_of(
    conn: Connection, project: str, build_ids: Sequence[str], versions: Iterable[tuple[str, str]]
) -> Told:
    """What devices say of these builds, and the ladders chosen for these versions."""
    words = words_of(conn, project, build_ids)
    ids = tuple(sorted({one.device_id for said in words.values() for one in said}))
    rows = devices.list_devices(conn, project, ids, with_status=False) if ids else []
    return Told(
        words,
        {row.device_id: row.profile for row in rows},
        {one: tunings.choices_of(conn, project, *one) for one in set(versions)},
    )
