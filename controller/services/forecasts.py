"""What-if: a rollout played before it starts, over the fleet as it is recorded, or as described.

Reads a bounded number of records and writes nothing. What is not recorded is assumed, and said.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from controller.domain.forecast import (
    BYTES_PER_S,
    DeviceClass,
    Forecast,
    Question,
    forecast,
    parse_fleet,
)
from controller.domain.ladder import Policy, parse_policy
from controller.domain.rollout import Phase, RolloutSpec, parse_rollout_spec
from controller.domain.spec import read_json
from controller.domain.wave import parse_waves
from controller.domain.words import count_of
from controller.errors import InvalidError
from controller.services.context import Ctx, Deps
from controller.services.desired import load_policies
from controller.services.rollout_facts import rules_of
from controller.services.rollout_plans import Ready, draft_rollout
from controller.store import events, ledger, reported, rollouts
from controller.store.devices import find_devices
from controller.store.events import EventRow
from controller.store.samples import list_samples
from controller.store.session import Connection

PRESENCE = timedelta(days=7)
FETCHES = timedelta(days=30)
TRAFFIC = timedelta(hours=1)
EVENTS_MOST = 4000  # of one kind that are read
SAMPLED = 200  # devices of a profile whose traffic is read
ROLLOUTS_MOST = 20  # whose failures are counted
RATE = 1.0  # inferences a second, where none is recorded


@dataclass(frozen=True, slots=True)
class ForecastView:
    """A forecast, the classes it was played over, and what had to be assumed."""

    forecast: Forecast
    question: Question
    notes: tuple[str, ...]


def forecast_rollout(
    deps: Deps,
    ctx: Ctx,
    spec: Mapping[str, object],
    *,
    fails_on_pct: float = 0.0,
    seed: int = 1,
    fleet: str = "",
) -> ForecastView:
    """Play it. `fleet` is a description as JSON; empty: the fleet that the selector picks."""
    if not 0.0 <= fails_on_pct <= 100.0:
        raise InvalidError(f"a version fails on 0 to 100 % of devices, not on {fails_on_pct:g}")
    parsed = parse_rollout_spec(spec)
    notes: tuple[str, ...] = ()
    if fleet:
        with deps.store.read() as conn:
            policies = load_policies(conn, ctx.project, parsed.policy)
        asked = _described(parsed, policies, fleet)
    else:
        with deps.store.read() as conn:
            asked, notes = _recorded(conn, ctx, parsed)
    asked = replace(asked, fails_on_pct=fails_on_pct)
    return ForecastView(forecast(asked, seed), asked, notes)


def _described(spec: RolloutSpec, policies: Mapping[str, Any], fleet: str) -> Question:
    value = read_json(fleet, "the fleet")
    if not isinstance(value, Mapping):
        raise InvalidError("the fleet is no mapping", "it has classes and bytes")
    classes, size = parse_fleet(value)
    total = sum(one.devices for one in classes)
    parsed = [parse_policy(name, one) for name, one in policies.items()]
    fitting = [one for one in parsed if one.model in ("*", spec.model)] or parsed
    return _question(spec, fitting, classes, size, total)


def _question(
    spec: RolloutSpec,
    policies: Sequence[Policy],
    classes: tuple[DeviceClass, ...],
    size: int,
    total: int,
) -> Question:
    return Question(
        classes=classes,
        waves=parse_waves(spec.waves, total, spec.override_first_wave_reason).waves,
        rules=rules_of(policies, spec),
        bytes=size,
        min_inferences=max((one.min_inferences for one in policies), default=200),
        min_s=max((one.min_s for one in policies), default=60.0),
        max_s=max((one.max_s for one in policies), default=1800.0),
    )


# -- from records ----------------------------------------------------------------------------


def _recorded(conn: Connection, ctx: Ctx, spec: RolloutSpec) -> tuple[Question, tuple[str, ...]]:
    draft = draft_rollout(conn, ctx, spec)
    by_profile: dict[str, list[Ready]] = {}
    for one in draft.ready:
        by_profile.setdefault(one.member.subject.profile, []).append(one)
    presence = _presence(conn, ctx)
    speeds = _speeds(conn, ctx, spec.model)
    fails_pct = _fails_pct(conn, ctx, spec.model)
    classes, notes = [], []
    for profile, ready in sorted(by_profile.items()):
        ids = sorted(one.device_id for one in ready)
        away_pct, away_s = _away(conn, ctx, ids, presence)
        rate = _rate(conn, ctx, spec.model, ids[:SAMPLED])
        speed = _median([speeds[one] for one in ids if one in speeds])
        if rate is None:
            notes.append(f"{profile}: no inference of the last hour is recorded, 1 a second taken")
        if speed is None:
            speed = _median(list(speeds.values()))
            known = "that of other profiles" if speed else "1 MB/s"
            notes.append(f"{profile}: no download is recorded, {known} taken")
        classes.append(
            DeviceClass(
                name=profile,
                devices=len(ids),
                away_pct=away_pct,
                away_s=away_s,
                bytes_per_s=speed or BYTES_PER_S,
                inferences_per_s=RATE if rate is None else rate,
                fails_pct=fails_pct,
            )
        )
    policies = [parse_policy(name, one) for name, one in draft.policies.items()]
    size = sum(one.bytes for one in draft.ready) // max(1, len(draft.ready))
    total = len(draft.ready)
    return _question(spec, policies, tuple(classes), size, total), tuple(notes)


def _presence(conn: Connection, ctx: Ctx) -> dict[str, list[EventRow]]:
    found: dict[str, list[EventRow]] = {}
    for row in _events(conn, ctx, ("device_online", "device_offline"), PRESENCE):
        if row.device_id:
            found.setdefault(row.device_id, []).append(row)
    return found


def _events(
    conn: Connection, ctx: Ctx, kinds: Sequence[str], within: timedelta, model: str | None = None
) -> list[EventRow]:
    """Oldest first."""
    found = events.list_events(
        conn, ctx.project, kinds=kinds, since=ctx.now - within, model=model, limit=EVENTS_MOST
    )
    return sorted(found, key=lambda row: row.number)


def _away(
    conn: Connection, ctx: Ctx, ids: Sequence[str], presence: Mapping[str, Sequence[EventRow]]
) -> tuple[float, float]:
    """Share of the time that these are away, in percent, and how long at a time."""
    away_s, times = 0.0, 0
    rows = find_devices(conn, ids)
    oldest = max(ctx.now - PRESENCE, min((row.enrolled_at for row in rows), default=ctx.now))
    if sum(map(len, presence.values())) >= EVENTS_MOST:  # older ones were not read
        oldest = max(oldest, min(said[0].at for said in presence.values()))
    whole_s = max(60.0, (ctx.now - oldest).total_seconds()) * max(1, len(ids))
    for row in rows:
        since: datetime | None = None
        for said in presence.get(row.device_id, ()):
            if said.kind == "device_offline":
                since = said.at
            elif since is not None:
                away_s, times, since = away_s + (said.at - since).total_seconds(), times + 1, None
        if not row.online:
            began = since or row.last_seen_at or ctx.now - PRESENCE
            span_s = min((ctx.now - began).total_seconds(), whole_s / max(1, len(ids)))
            away_s, times = away_s + max(span_s, 60.0), times + 1
    if not times:
        return 0.0, 0.0
    return min(95.0, 100.0 * away_s / whole_s), max(10.0, away_s / times)


def _speeds(conn: Connection, ctx: Ctx, model: str) -> dict[str, float]:
    """Bytes a second of each device's newest download of the model."""
    began: dict[tuple[str, str], datetime] = {}
    took: dict[tuple[str, str], float] = {}
    for row in _events(
        conn, ctx, ("assignment_downloading", "assignment_verified"), FETCHES, model
    ):
        key = (row.rollout_id or "", row.device_id or "")
        if row.kind == "assignment_downloading":
            began[key] = row.at
        elif key in began:
            took[key] = (row.at - began.pop(key)).total_seconds()
    ids = sorted({device for _, device in took})
    rows = reported.list_spoken_of(conn, {rollout for rollout, _ in took}, ids) if took else {}
    speeds: dict[str, float] = {}
    for key, seconds in took.items():
        size = int(rows[key].evidence.get("bytes") or 0) if key in rows else 0
        if size and seconds > 0:
            speeds[key[1]] = size / seconds
    return speeds


def _fails_pct(conn: Connection, ctx: Ctx, model: str) -> float:
    """Devices that could not take versions which were good, of those that were offered them."""
    offered = failed = 0
    for row in rollouts.list_rollouts(conn, ctx.project, limit=5 * ROLLOUTS_MOST):
        if row.model == model and row.phase is Phase.SUCCEEDED:
            found = ledger.tally(conn, row.rollout_id)
            offered += found.exposed
            failed += sum(n for (_, state), n in found.by_wave.items() if state == "FAILED")
    return 100.0 * failed / offered if offered else 0.0


def _rate(conn: Connection, ctx: Ctx, model: str, ids: Sequence[str]) -> float | None:
    """Inferences a second of a device that infers at all, over what of an hour is recorded."""
    counted: Counter[str] = Counter()
    oldest = ctx.now
    for one in list_samples(conn, device_ids=ids, model=model, since=ctx.now - TRAFFIC):
        counted[one.device_id] += one.histogram.count
        oldest = min(oldest, one.minute_at)
    if not counted:
        return None
    return counted.total() / len(counted) / max(60.0, (ctx.now - oldest).total_seconds())


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def question_text(question: Question) -> str:
    """What was played, in a line."""
    classes = "; ".join(
        f"{one.name} {count_of(one.devices, 'device')}, away {one.away_pct:.0f} %,"
        f" {one.bytes_per_s / 1e6:.2g} MB/s, {one.inferences_per_s:.2g} inferences/s"
        for one in question.classes
    )
    bad = f"; the version fails on {question.fails_on_pct:g} %" if question.fails_on_pct else ""
    return classes + bad
