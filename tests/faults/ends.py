"""Why a good version did not win: the evidence of each such rollout, kept in a folder, and judged.

A good version may be taken back for what the faults did (its device was killed on trial, a person
would not wait, a disk was full), never without a cause. Refuses to guess: what no fault of this
run explains is UNEXPLAINED, and that breaks the run.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.store.lines import decode_line
from controller.domain.rollout import BY_ORDER, CALLED_BACK
from tests.faults.story import Story
from tests.support.e2e_world import Fleet

CRASHED = "the agent crashed while the version was in probation"
NO_ROOM = ("no room", "the disk of this device is full")
BEFORE, AFTER = timedelta(seconds=5), timedelta(seconds=30)
Json = dict[str, Any]


class Why(StrEnum):
    """What ended the rollout of a good version otherwise than well."""

    KILLED = "killed on trial"
    PERSON = "a person would not wait"
    SUPERSEDED = "superseded"
    DISK_FULL = "disk full"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault as it came: from when until when (wall clock); `until` None: it is not over."""

    kind: str
    device: str
    since: datetime
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class End:
    """One such rollout, why, and the words and times that show it."""

    rollout: str
    version: str
    phase: str
    why: Why
    evidence: str
    folder: str = ""

    def plain(self) -> Json:
        """For JSON."""
        return asdict(self)


def judge(explained: Json, events: Sequence[Json], struck: Sequence[Struck]) -> tuple[Why, str]:
    """From `rollout explain`, the events of the rollout and the faults of the run. Pure.

    A kill excuses only the device that had it, and only between its activation and its return.
    """
    shown = explained["rollout"]
    said = f"{shown['phase']}: {shown['phase_reason']}"
    if "superseded" in shown["phase_reason"]:
        return Why.SUPERSEDED, said
    left = [a for a in explained["assignments"] if a["state"] in ("ROLLED_BACK", "FAILED")]
    own = [a for a in left if not _ordered(a, events)]
    found = [_of_device(one, events, struck) for one in own]
    if any(why is Why.UNEXPLAINED for why, _ in found):
        return Why.UNEXPLAINED, "; ".join(text for _, text in found)
    if shown["intent"] == "ROLL_BACK":
        return Why.PERSON, "; ".join((_asked(events), *(text for _, text in found)))
    if not found:
        return Why.UNEXPLAINED, f"{said}; no device left it by itself"
    return found[0][0], "; ".join(text for _, text in found)


def _ordered(one: Json, events: Sequence[Json]) -> bool:
    """Whether the device only did as it was told: by its record, or by what it said itself."""
    if str(one["reason"]).startswith(CALLED_BACK):
        return True
    said = [
        str(e["reason"])
        for e in events
        if (e["device_id"], e["kind"]) == (one["device_id"], "assignment_rolling_back")
    ]
    return bool(said) and said[-1] in BY_ORDER


def _of_device(one: Json, events: Sequence[Json], struck: Sequence[Struck]) -> tuple[Why, str]:
    device, reason = str(one["device_id"]), str(one["reason"])
    text = f"{device} {one['state'].lower().replace('_', ' ')}: {reason}"
    begun, ended = _trial(device, events)
    if CRASHED in reason and begun and ended:
        for hit in struck:
            if hit.kind == "agent kill -9" and hit.device == device and begun <= hit.since <= ended:
                return Why.KILLED, f"{text}; killed at {hit.since:%H:%M:%S.%f}"
    if any(words in reason for words in NO_ROOM):
        for hit in struck:
            if hit.kind == "disk full" and hit.device == device:
                return Why.DISK_FULL, text
    return Why.UNEXPLAINED, text


def _trial(device: str, events: Sequence[Json]) -> tuple[datetime | None, datetime | None]:
    """From the version's activation to the word that the device leaves it."""
    times: dict[str, datetime] = {}
    for event in events:
        if event["device_id"] == device:
            times.setdefault(str(event["kind"]), datetime.fromisoformat(str(event["at"])))
    begun = times.get("assignment_staged") or times.get("assignment_offered")
    return begun, times.get("assignment_rolling_back") or times.get("assignment_failed")


def _asked(events: Sequence[Json]) -> str:
    waits = [str(e["reason"]) for e in events if e["kind"] == "rollout_phase"]
    return f"rolled back by a person; it had said: {waits[-2] if len(waits) > 1 else '–'}"


# -- keeping -------------------------------------------------------------------------------------


def keep(fleet: Fleet, story: Story, struck: Sequence[Struck], rollout: str) -> End:
    """Ask `explain`, write all that tells why into a folder, and judge."""
    folder = fleet.root / "ended-otherwise" / rollout
    folder.mkdir(parents=True, exist_ok=True)
    explained = fleet.ctl.json("rollout", "explain", rollout)
    events = fleet.events("--rollout", rollout)
    why, evidence = judge(explained, events, struck)
    shown = explained["rollout"]
    end = End(rollout, shown["spec"]["version"], shown["phase"], why, evidence, str(folder))
    _write(folder / "rollout-explain.txt", fleet.ctl.run("rollout", "explain", rollout).out)
    _write(folder / "rollout-explain.json", explained)
    _write(folder / "events.json", events)
    since = datetime.fromisoformat(shown["created_at"]) - BEFORE
    until = datetime.fromisoformat(shown["finished_at"]) + AFTER
    told = [f"{at:%H:%M:%S.%f}  {text}" for at, text in story.told if since <= at <= until]
    _write(folder / "faults.txt", "\n".join(told))
    for one in explained["assignments"]:
        if one["state"] in ("ROLLED_BACK", "FAILED", "ROLLING_BACK"):
            _keep_device(fleet, story, folder / one["device_id"], rollout, (since, until))
    _write(folder / "why.json", end.plain())
    return end


def _keep_device(
    fleet: Fleet, story: Story, folder: Path, rollout: str, window: tuple[datetime, datetime]
) -> None:
    """What the device says, its log, its journal and what it answered at that time."""
    name = folder.name
    folder.mkdir(exist_ok=True)
    agent = fleet.agents[name]
    _write(folder / "explain.txt", fleet.ctl.run("device", "explain", name).out)
    _write(folder / "events.json", fleet.events("--device", name))
    log = agent.log.read_text(encoding="utf-8", errors="replace").splitlines()
    _write(folder / "agent.log", "\n".join(log_between(log, *window)))
    data = (agent.state_dir / "journal").read_bytes()
    (folder / "journal").write_bytes(data)
    _write(folder / "journal.txt", "\n".join(_journal_lines(data, rollout)))
    cameras = [c for (d, _), c in fleet.cameras.items() if d == name]
    cameras += [c for d, c in fleet.closed if d == name]
    answers = sorted((a for c in cameras for a in c.answers()), key=lambda a: a.sent_at)
    lines = [
        f"{story.wall(a.sent_at):%H:%M:%S.%f}  {1000 * a.took_s:8.1f} ms "
        f" {a.version} {a.rung} {a.error}".rstrip()
        for a in answers
        if window[0] <= story.wall(a.sent_at) <= window[1]
    ]
    _write(folder / "answers.txt", "\n".join(lines))


def log_between(lines: Iterable[str], since: datetime, until: datetime) -> list[str]:
    """Lines of an agent's log in UTC; one without a time belongs to the line before it."""
    found, inside = [], False
    for line in lines:
        try:
            at = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
            inside = since <= at <= until
        except ValueError:
            pass
        if inside:
            found.append(line)
    return found


def _journal_lines(data: bytes, rollout: str) -> list[str]:
    """Each state of the model while it had this order, as far as the journal still knows it."""
    found = []
    for line in data.splitlines():
        try:
            record = decode_line(line)
        except ValueError:
            continue
        value = record.get("value", {})
        if record.get("kind") != "model" or rollout not in json.dumps(value):
            continue
        slots = {k: (value.get(k) or {}).get("release", {}).get("version") for k in
                 ("current", "previous", "staged")}  # fmt: skip
        found.append(
            f"{record['n']:5} {value['phase']:12} order {(value['order'] or {}).get('rollout')}"
            f" {slots} counted {value['counted']} in {value['elapsed_s']:.1f} s,"
            f" restarts {value['restarts']}, latched {value['latched']}: {value['reason']}"
        )
    return found


def _write(path: Path, what: object) -> None:
    text = what if isinstance(what, str) else json.dumps(what, indent=2)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
