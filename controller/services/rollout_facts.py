"""Gathers what the judge and the planner look at. Reads only, decides nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from controller.domain.comparison import together
from controller.domain.evidence import OnInconclusive, Rules, Side, Soak, Trouble, WaveFacts, Worse
from controller.domain.health import SOAK_GAP_S
from controller.domain.histogram import Histogram, merged
from controller.domain.ladder import Policy
from controller.domain.planner import Facts
from controller.domain.rollout import (
    LIVE,
    OPEN,
    AssignmentState,
    Intent,
    Phase,
    RolloutSpec,
    Verdict,
    parse_rollout_spec,
)
from controller.errors import InvalidError
from controller.services.decisions import compared_before
from controller.services.rollout_comparison import (
    compare_first_wave,
    compare_wave,
    find_untouched,
)
from controller.store import assignments, devices, ledger
from controller.store.assignments import AssignmentRow
from controller.store.rollouts import RolloutRow
from controller.store.samples import SampleRow, is_of_build, list_samples
from controller.store.session import Connection
from controller.store.waves import WaveRow

_A = AssignmentState
# In one transaction: few enough that news is heard between, and first offers go out early.
CANDIDATES = 100
LOOKED_UP = 500  # devices short of inferences whose orders are read
_ON_THE_WAY = OPEN - {_A.PLANNED}
_LEFT = frozenset({_A.ROLLING_BACK, _A.ROLLED_BACK})


def wave_facts(
    conn: Connection,
    rollout: RolloutRow,
    wave: WaveRow,
    now: datetime,
    before: Sequence[WaveRow] = (),
) -> WaveFacts:
    """What is known of the newest open wave; `before` are those that passed before it.

    Unreadable evidence is said, never skipped.
    """
    opened_at = wave.opened_at or now
    mine = [
        row
        for row in assignments.list_assignments(
            conn, rollout.rollout_id, wave=wave.number, with_previous=False
        )
        if row.exposed
    ]
    acknowledged_at = _acknowledged(rollout, wave)
    since = acknowledged_at or opened_at
    in_flight = [row for row in mine if row.state in _ON_THE_WAY]
    committed = [row for row in mine if row.state is _A.COMMITTED]
    facts = WaveFacts(
        opened_at=opened_at,
        exposed=len(mine),
        in_flight=len(in_flight),
        committed=len(committed),
        offline=_count_offline(conn, rollout, in_flight),
        rolled_back=_left(conn, rollout.rollout_id),
        failed=_failed(mine, since),
        starved=_starved(in_flight, since),
        last_change_at=max((row.updated_at for row in mine), default=None),
        acknowledged_at=acknowledged_at,
        passed=wave.verdict is Verdict.PASSED,
        soak=_soak(wave.evidence),
    )
    try:
        facts = _with_samples(conn, rollout, facts, mine, committed)
        earlier = compared_before(before)
        more = together(facts.compared, earlier)
        facts = replace(facts, compared=(*facts.compared, *more))
        return _with_first_wave(conn, rollout, wave, facts, now)
    except InvalidError as error:
        return replace(facts, unreadable=error.text())


def _failed(rows: Iterable[AssignmentRow], since: datetime) -> tuple[Trouble, ...]:
    """Those that could not take it, by what was said after `since`."""
    return tuple(
        _trouble(row)
        for row in rows
        if row.state is _A.FAILED and row.activated_at is None and row.updated_at > since
    )


def _starved(rows: Iterable[AssignmentRow], since: datetime) -> tuple[Trouble, ...]:
    return tuple(
        _trouble(row) for row in rows if row.evidence.get("starved") and row.updated_at > since
    )


def _with_samples(
    conn: Connection,
    rollout: RolloutRow,
    facts: WaveFacts,
    mine: list[AssignmentRow],
    committed: list[AssignmentRow],
) -> WaveFacts:
    spec = parse_rollout_spec(rollout.spec)
    heard = _after(conn, rollout, mine, facts.opened_at)
    # What a remote rung answered shows that the device is alive, and nothing of the new build.
    after = {device: [one for one in rows if is_of_build(one)] for device, rows in heard.items()}
    inferences = Counter(
        {
            row.device_id: max(
                sum(one.histogram.count + one.errors for one in after.get(row.device_id, ())),
                0 if _ran_it_before(row) else int(row.evidence.get("inferences") or 0),
            )
            for row in mine
        }
    )
    short = [row.device_id for row in committed if inferences[row.device_id] < spec.min_samples]
    gone = _gone_on(conn, rollout, short)
    seen = [row for rows in after.values() for row in rows]
    untouched = find_untouched(conn, rollout, facts.opened_at)
    return replace(
        facts,
        before=_before(mine),
        same=_side(one for row in mine if row.baseline for one in after.get(row.device_id, ())),
        after=_side(seen),
        control=_side(row for rows in untouched.since.values() for row in rows),
        compared=compare_wave(mine, after, untouched),
        samples=sum(inferences.values()),
        committed=facts.committed - len(gone),
        short=tuple(one for one in short if one not in gone),
        last_evidence_at=max(
            (one.last_at for rows in heard.values() for one in rows), default=None
        ),
    )


def _gone_on(conn: Connection, rollout: RolloutRow, device_ids: list[str]) -> frozenset[str]:
    """Those that are ordered something newer: they will show no more of this version.

    They count as committed no longer, so a wave of them alone is not proven.
    """
    known = devices.list_desired(conn, device_ids[:LOOKED_UP])
    entries = {one: models.get(rollout.model) for one, (_, models) in known.items()}
    return frozenset(
        one
        for one, entry in entries.items()
        if entry is not None and entry["rollout"] != rollout.rollout_id
    )


def _with_first_wave(
    conn: Connection, rollout: RolloutRow, wave: WaveRow, facts: WaveFacts, now: datetime
) -> WaveFacts:
    """Once before a later wave passes, not at every look: it reads more than other looks do."""
    soak_s = parse_rollout_spec(rollout.spec).soak_s
    waiting = facts.in_flight or not facts.committed or facts.short or facts.passed
    if wave.number < 2 or waiting or facts.soak.soaked_s < soak_s - SOAK_GAP_S:
        return facts
    looks = len(parse_rollout_spec(rollout.spec).waves)
    untouched = find_untouched(conn, rollout, facts.opened_at)
    found = compare_first_wave(conn, rollout, looks, untouched, now)
    return replace(facts, compared=(*facts.compared, *found))


def rules_of(policies: Sequence[Policy], spec: RolloutSpec) -> Rules:
    """What the rollout demands, with the loosest tail budget among its policies.

    Of the limits of comparisons, which not every policy has, the strictest.
    """
    limits = [policy.gate for policy in policies]
    compared = [one for one in limits if (one.slower_pct, one.stepped_down_pts) != (None, None)]
    holds = [gate.worse is Worse.HOLD for gate in compared]
    unsure = {gate.on_inconclusive for gate in limits}
    return Rules(
        soak_s=spec.soak_s,
        min_samples=spec.min_samples,
        deadline_s=spec.deadline_s,
        slow_threshold_ms=min((p.slow_threshold_ms for p in policies), default=100.0),
        p95_budget_ms=max((p.thresholds["p95_budget_ms"] for p in policies), default=100.0),
        slower_pct=_strictest(gate.slower_pct for gate in limits),
        stepped_down_pts=_strictest(gate.stepped_down_pts for gate in limits),
        worse=Worse.HOLD if holds and all(holds) else Worse.ROLL_BACK,
        on_inconclusive=OnInconclusive.ROLL_BACK
        if OnInconclusive.ROLL_BACK in unsure
        else OnInconclusive.PAUSE,
    )


def _strictest(limits: Iterable[float | None]) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def plan_facts(
    conn: Connection, rollout: RolloutRow, waves: list[WaveRow], verdict: Verdict, reason: str
) -> Facts:
    """What the planner looks at."""
    tally = ledger.tally(conn, rollout.rollout_id)
    by_wave = tally.by_wave
    counts: Counter[AssignmentState] = Counter()
    for (_, state), count in by_wave.items():
        counts[state] += count
    alive = LIVE | _ON_THE_WAY
    going = rollout.phase in (Phase.PENDING, Phase.PROGRESSING) and rollout.intent is Intent.RUN
    # Only at the end is it worth asking who went on to a newer version, or refused last.
    at_end = not any(counts[one] for one in OPEN)
    gone = ledger.taken_over(conn, rollout.rollout_id) if at_end else []
    evidence = waves[rollout.current_wave - 1].evidence if rollout.current_wave else {}
    look = evidence.get("next_look_at")
    return Facts(
        rollout_id=rollout.rollout_id,
        phase=rollout.phase,
        phase_reason=rollout.phase_reason,
        intent=rollout.intent,
        intent_by=rollout.intent_by,
        intent_at=rollout.intent_at,
        intent_reason=rollout.intent_reason,
        caps=tuple(wave.cumulative for wave in waves),
        current_wave=rollout.current_wave,
        counts=counts,
        exposed=tally.exposed,
        wave_live=sum(
            count
            for (number, state), count in by_wave.items()
            if number == rollout.current_wave and state in alive
        )
        - sum(number == rollout.current_wave for number, _ in gone),
        candidates=tuple(ledger.candidates(conn, rollout.rollout_id, CANDIDATES))
        if going or rollout.phase is Phase.PAUSED
        else (),
        verdict=verdict,
        verdict_reason=reason,
        look_at=None if look is None else datetime.fromisoformat(look),
        errors_in_row=int(evidence.get("errors_in_row") or 0),
        pause_reasons=rollout.pause_reasons,
        not_returned=tally.not_returned,
        taken_over=len(gone),
        superseded=_superseded(conn, rollout.rollout_id, counts, gone),
        refused=ledger.refused_reason(conn, rollout.rollout_id)
        if at_end and counts[_A.REFUSED]
        else "",
    )


def _superseded(
    conn: Connection,
    rollout_id: str,
    counts: Mapping[AssignmentState, int],
    gone: list[tuple[int, str]],
) -> str:
    """By what: devices on their way to it, or those that had it and went on; empty for neither."""
    if counts[_A.SUPERSEDED]:
        return ledger.superseded_reason(conn, rollout_id)
    return f"superseded by {gone[-1][1]}" if gone else ""


def _acknowledged(rollout: RolloutRow, wave: WaveRow) -> datetime | None:
    """When a person said RUN after this wave was held; None where nobody did."""
    held = wave.evidence.get("held_at")
    if held is None or rollout.intent is not Intent.RUN:
        return None
    return rollout.intent_at if rollout.intent_at > datetime.fromisoformat(held) else None


def _soak(evidence: Mapping[str, Any]) -> Soak:
    until = evidence.get("counted_until")
    return Soak(
        float(evidence.get("soaked_s") or 0.0),
        None if until is None else datetime.fromisoformat(until),
    )


def _count_offline(conn: Connection, rollout: RolloutRow, rows: list[AssignmentRow]) -> int:
    return devices.count_offline(conn, rollout.project, [row.device_id for row in rows])


def _left(conn: Connection, rollout_id: str) -> tuple[Trouble, ...]:
    """Devices that left the version or could not even go back, in the order it happened."""
    rows = assignments.list_assignments(
        conn, rollout_id, states=_LEFT | {_A.FAILED}, with_previous=False
    )
    left = [row for row in rows if row.state in _LEFT or row.activated_at is not None]
    return tuple(_trouble(row) for row in sorted(left, key=lambda row: row.updated_at))


def _trouble(row: AssignmentRow) -> Trouble:
    returned = row.evidence.get("rolled_back_in_s")
    times = row.evidence.get("last_service_s") or ()
    return Trouble(
        device_id=row.device_id,
        reason=row.reason,
        last_service_s=tuple(float(time) for time in times),
        returned_in_s=float(returned) if returned and row.state is _A.ROLLED_BACK else None,
    )


def _after(
    conn: Connection, rollout: RolloutRow, rows: list[AssignmentRow], opened_at: datetime
) -> dict[str, list[SampleRow]]:
    """Samples of the new version since its offer, by device.

    Rows are of whole minutes. The one of the offer counts where the version came by it; where it
    ran before, that minute holds answers of before.
    """
    offered = {
        row.device_id: (row.offered_at or opened_at)
        + (timedelta(minutes=1) if _ran_it_before(row) else timedelta())
        for row in rows
    }
    if not offered:
        return {}
    found: dict[str, list[SampleRow]] = {}
    for sample in list_samples(
        conn,
        device_ids=list(offered),
        model=rollout.model,
        version=rollout.version,
        since=opened_at,
    ):
        if sample.minute_at + timedelta(minutes=1) > offered[sample.device_id]:
            found.setdefault(sample.device_id, []).append(sample)
    return found


def _ran_it_before(row: AssignmentRow) -> bool:
    """Whether the device ran this very version when it was offered: its own count began earlier."""
    return row.previous_version == row.version


def _before(rows: list[AssignmentRow]) -> Side:
    """What the same devices did before their offers."""
    known = [row.baseline for row in rows if row.baseline]
    return Side(
        merged(Histogram.from_json(one["histogram"]) for one in known),
        sum(int(one["errors"]) for one in known),
        sum(int(one["non_finite"]) for one in known),
    )


def _side(rows: Iterable[SampleRow]) -> Side:
    listed = list(rows)
    return Side(
        merged(row.histogram for row in listed),
        sum(row.errors for row in listed),
        sum(row.non_finite for row in listed),
    )
