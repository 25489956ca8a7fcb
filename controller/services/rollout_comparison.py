"""Witnesses for the judge: how each device of a wave changed, and each untouched one meanwhile.

Reads what is stored of both; compares and decides nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.domain.comparison import (
    LEAST_COUNT,
    LEAST_IN_WINDOW,
    Comparison,
    Difference,
    Metric,
    compare,
    first_wave,
    latency_difference,
    share_difference,
)
from controller.domain.histogram import Histogram, merged
from controller.domain.rollout import AssignmentState
from controller.services.rollout_orders import BASELINE
from controller.store import assignments, devices
from controller.store.assignments import AssignmentRow
from controller.store.rollouts import RolloutRow
from controller.store.samples import SampleRow, is_of_build, list_samples
from controller.store.session import Connection

CONTROLS = 200
WITNESSES = 200  # of a profile in a wave: more would prove no more that matters
FIRSTS = 50  # devices of the first wave that are looked at again


@dataclass(frozen=True, slots=True)
class Untouched:
    """Devices of the rollout that were offered nothing yet; rows of local builds, by device."""

    before: Mapping[str, list[SampleRow]]  # in the time of the baselines
    since: Mapping[str, list[SampleRow]]  # since the wave was opened
    profiles: Mapping[str, str]


def find_untouched(conn: Connection, rollout: RolloutRow, opened_at: datetime) -> Untouched:
    """At most `CONTROLS` of them, in the order of the rollout."""
    rows = assignments.list_assignments(
        conn,
        rollout.rollout_id,
        states=[AssignmentState.PLANNED],
        limit=CONTROLS,
        with_previous=False,
    )
    ids = [row.device_id for row in rows]
    before: dict[str, list[SampleRow]] = {}
    since: dict[str, list[SampleRow]] = {}
    if not ids:
        return Untouched(before, since, {})
    start = opened_at - BASELINE
    for one in list_samples(conn, device_ids=ids, model=rollout.model, since=start):
        if is_of_build(one):
            late = one.minute_at + timedelta(minutes=1) > opened_at
            (since if late else before).setdefault(one.device_id, []).append(one)
    profiles = {row.device_id: row.profile or "" for row in devices.find_devices(conn, ids)}
    return Untouched(before, since, profiles)


def compare_wave(
    mine: Iterable[AssignmentRow], after: Mapping[str, list[SampleRow]], untouched: Untouched
) -> tuple[Comparison, ...]:
    """Every metric of which enough was seen."""
    known = [(row, after.get(row.device_id, [])) for row in _witnesses(mine)]
    tops = Counter(
        row.baseline["top"] for row, _ in known if row.baseline and row.baseline.get("top")
    )
    top = tops.most_common(1)[0][0] if tops else ""
    others = {one: _same_version(untouched, one) for one in untouched.since}
    latency = compare(
        Metric.LATENCY,
        _given(_latency(row, rows) for row, rows in known),
        _given(
            latency_difference(one, untouched.profiles[one], _histogram(was), _histogram(now))
            for one, (was, now) in others.items()
        ),
    )
    stepped = compare(
        Metric.STEPPED_DOWN,
        _given(_stepped(row, rows) for row, rows in known),
        _given(
            share_difference(
                one, untouched.profiles[one], _below(_rungs(was), top), _below(_rungs(now), top)
            )
            for one, (was, now) in others.items()
            if top in _rungs([*was, *now])
        ),
    )
    return (*latency, *stepped)


def _witnesses(mine: Iterable[AssignmentRow]) -> Iterator[AssignmentRow]:
    """Of each profile the first so many with a past: a look's work does not grow with waves."""
    taken: Counter[str] = Counter()
    for row in mine:
        profile = str((row.baseline or {}).get("profile") or "")
        if row.baseline and taken[profile] < WITNESSES:
            taken[profile] += 1
            yield row


def compare_first_wave(
    conn: Connection, rollout: RolloutRow, looks: int, untouched: Untouched, now: datetime
) -> tuple[Comparison, ...]:
    """The first wave's devices by their last quarter of an hour: what grows has grown on them."""
    listed = assignments.list_assignments(
        conn,
        rollout.rollout_id,
        wave=1,
        states=[AssignmentState.COMMITTED],
        limit=FIRSTS,
        with_previous=False,
    )
    first = {row.device_id: row for row in listed if row.baseline and row.offered_at}
    begun = min((row.offered_at for row in first.values() if row.offered_at), default=None)
    if begun is None or not untouched.since:
        return ()
    recent = now - BASELINE
    after = _by_device(conn, rollout, list(first), since=recent, version=rollout.version)
    was = _by_device(conn, rollout, list(untouched.since), since=begun - BASELINE, until=begun)
    changed = _given(
        _latency(row, after.get(one, []), LEAST_IN_WINDOW) for one, row in first.items()
    )
    others = []
    for one, rows in untouched.since.items():
        late = [row for row in (*untouched.before.get(one, ()), *rows) if row.minute_at >= recent]
        version = rows[-1].version
        others.append(
            latency_difference(
                one,
                untouched.profiles[one],
                _histogram(row for row in was.get(one, ()) if row.version == version),
                _histogram(row for row in late if row.version == version),
                LEAST_IN_WINDOW,
            )
        )
    return first_wave(changed, _given(others), looks)


def _by_device(
    conn: Connection,
    rollout: RolloutRow,
    device_ids: list[str],
    *,
    since: datetime,
    until: datetime | None = None,
    version: str | None = None,
) -> dict[str, list[SampleRow]]:
    found: dict[str, list[SampleRow]] = {}
    for one in list_samples(
        conn,
        device_ids=device_ids,
        model=rollout.model,
        version=version,
        since=since,
        until=until,
    ):
        if is_of_build(one):
            found.setdefault(one.device_id, []).append(one)
    return found


def _latency(
    row: AssignmentRow, rows: list[SampleRow], least: int = LEAST_COUNT
) -> Difference | None:
    known = row.baseline or {}
    return latency_difference(
        row.device_id,
        str(known.get("profile") or ""),
        Histogram.from_json(known["histogram"]),
        _histogram(rows),
        least,
    )


def _stepped(row: AssignmentRow, rows: list[SampleRow]) -> Difference | None:
    known = row.baseline or {}
    top = known.get("top")
    if not top:  # of before, or the versions have not the same heaviest rung
        return None
    return share_difference(
        row.device_id,
        str(known.get("profile") or ""),
        _below(Counter(known["rungs"]), top),
        _below(_rungs(rows), top),
    )


def _same_version(untouched: Untouched, device_id: str) -> tuple[list[SampleRow], list[SampleRow]]:
    """What the device did with what it runs now; what else it ran is no witness."""
    now = untouched.since[device_id]
    version = now[-1].version
    was = untouched.before.get(device_id, [])
    return (
        [row for row in was if row.version == version],
        [row for row in now if row.version == version],
    )


def _rungs(rows: Iterable[SampleRow]) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in rows:
        found[row.rung] += row.histogram.count
    return found


def _below(rungs: Counter[str], top: str) -> tuple[int, int]:
    """How many answers came of another rung than the heaviest, and how many there were."""
    whole = rungs.total()
    return whole - rungs[top], whole


def _histogram(rows: Iterable[SampleRow]) -> Histogram:
    return merged(row.histogram for row in rows)


def _given(found: Iterable[Difference | None]) -> list[Difference]:
    return [one for one in found if one is not None]
