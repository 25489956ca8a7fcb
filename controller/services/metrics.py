"""The fleet in numbers, for /metrics: one consistent read, no figure of a single device.

What is counted from events is the same after a restart; see `EventTotals`.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controller.domain.device import DeviceState, parse_profile
from controller.domain.rollout import AssignmentState
from controller.errors import InvalidError
from controller.services.context import Deps
from controller.services.totals import NAME_MAX, OTHER
from controller.store import events, metrics
from controller.store.metrics import CountedEvent, DeviceFact, RolloutFact
from controller.store.session import Connection

SHOWN_ROLLOUTS = 50
SHOWN_FOR = timedelta(days=1)
VERSIONS_PER_MODEL = 10
SILENT_S = (60, 300, 3600, 86400, 604800)
# By name: a label "quantile" is for summaries alone.
QUANTILES = {"median": 0.5, "p95": 0.95, "max": 1.0}
MAX_COUNTED = 2_000
# What devices say, as agents name it; anything else counts as "other".
ROLLBACK_CAUSES = ("slow", "non_finite", "errors", "crash", "load", "ordered")
RUNG_REASONS = ("temperature", "load", "memory", "cpu", "network", "latency", "recovered")
ROLLED_BACK, RUNG_CHANGED = "rolled_back", "rung_changed"


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """Everything that is read from the database. Shares and quantiles are of online devices."""

    devices: Mapping[tuple[str, str, str], int]  # profile, state, presence
    silent: Mapping[tuple[str, int], int]  # profile, at least so many seconds
    temperature_c: Mapping[tuple[str, str], float]  # profile, of QUANTILES
    memory_bytes: Mapping[tuple[str, str], float]
    serving: Mapping[tuple[str, str, str], int]  # model, version, rung
    behind: int
    rollouts: Sequence[RolloutFact]
    rollout_states: Mapping[tuple[str, str], int]
    assignments: Mapping[str, int]
    builds: Mapping[str, int]
    outbox_rows: int
    outbox_age_s: float
    budget_s: Mapping[str, float]
    throttle_c: Mapping[str, float]
    rollbacks: Mapping[tuple[str, str, str], int]  # model, version, cause
    rung_changes: Mapping[tuple[str, str, str, str], int]  # model, from, to, reason


@dataclass(slots=True)
class EventTotals:
    """Counts of events since the database was made: read once, then only what is new.

    Monotonic over restarts, since events are never deleted. One writer numbers them in order, so
    nothing can appear behind the number that was read last.
    """

    _last: int = 0
    _rollbacks: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _changes: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def catch_up(
        self, conn: Connection
    ) -> tuple[Counter[tuple[str, str, str]], Counter[tuple[str, str, str, str]]]:
        """(rollbacks, rung changes) as the transaction sees them."""
        with self._lock:
            newest = events.last_number(conn)
            kinds = (ROLLED_BACK, RUNG_CHANGED)
            # All or nothing: what was read in part would be counted twice the next time.
            fresh = list(metrics.counted_events(conn, kinds, self._last, newest))
            for one in fresh:
                self._count(one)
            self._last = max(self._last, newest)
            return self._rollbacks.copy(), self._changes.copy()

    def _count(self, one: CountedEvent) -> None:
        said = one.details
        if one.kind == ROLLED_BACK:
            cause = _known(said.get("cause", ""), ROLLBACK_CAUSES)
            key = (_short(one.model), _short(one.version), cause)
            full = len(self._rollbacks) >= MAX_COUNTED and key not in self._rollbacks
            self._rollbacks[(OTHER, OTHER, cause) if full else key] += 1
            return
        reason = _known(said.get("cause", ""), RUNG_REASONS)
        rungs = _short(said.get("from", "")), _short(said.get("to", ""))
        change = (_short(one.model), *rungs, reason)
        full = len(self._changes) >= MAX_COUNTED and change not in self._changes
        self._changes[(OTHER, OTHER, OTHER, reason) if full else change] += 1


def _short(name: str) -> str:
    """Names that devices give, as far as they can be names."""
    return name if len(name) <= NAME_MAX else OTHER


def _known(word: str, words: Sequence[str]) -> str:
    return word if word in words else OTHER


def read_fleet(deps: Deps, now: datetime, totals: EventTotals) -> FleetFacts:
    """One read of everything. Raises UnavailableError when the database is away."""
    with deps.store.read() as conn:
        facts = metrics.list_facts(conn)
        shown = metrics.list_shown(conn, now - SHOWN_FOR, SHOWN_ROLLOUTS)
        outbox_rows, oldest = metrics.outbox_backlog(conn)
        rollbacks, changes = totals.catch_up(conn)
        for model, version in metrics.newest_versions(conn, VERSIONS_PER_MODEL):
            for cause in ROLLBACK_CAUSES:  # a rate needs the nought before the first one
                rollbacks.setdefault((model, version, cause), 0)
        budgets, throttles = _limits(metrics.profile_specs(conn))
        online = [fact for fact in facts if fact.online and fact.state == DeviceState.ACTIVE]
        return FleetFacts(
            devices=_presence(facts),
            silent=_silence(facts, now),
            temperature_c=_quantiles(_temperatures(online)),
            memory_bytes=_quantiles(_memory(online, metrics.memory_totals(conn))),
            serving=_serving(online),
            behind=metrics.count_behind(conn),
            rollouts=shown,
            rollout_states=metrics.count_rollout_states(conn, [one.rollout_id for one in shown]),
            assignments=_all_states(metrics.count_assignment_states(conn)),
            builds=metrics.count_build_states(conn),
            outbox_rows=outbox_rows,
            outbox_age_s=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
            budget_s=budgets,
            throttle_c=throttles,
            rollbacks=rollbacks,
            rung_changes=changes,
        )


def _presence(facts: Iterable[DeviceFact]) -> dict[tuple[str, str, str], int]:
    return dict(
        Counter(
            (fact.profile, fact.state.lower(), "online" if fact.online else "offline")
            for fact in facts
        )
    )


def _silence(facts: Iterable[DeviceFact], now: datetime) -> dict[tuple[str, int], int]:
    """Cumulative: who is silent for an hour is silent for a minute too."""
    found: Counter[tuple[str, int]] = Counter()
    for fact in facts:
        if fact.state != DeviceState.ACTIVE:
            continue
        age_s = (now - fact.seen_at).total_seconds()
        for least_s in SILENT_S:
            found[fact.profile, least_s] += age_s >= least_s
    return dict(found)


def _temperatures(facts: Iterable[DeviceFact]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for fact in facts:
        value = fact.status.get("temperature_c")
        if isinstance(value, int | float):
            found.setdefault(fact.profile, []).append(float(value))
    return found


def _memory(facts: Iterable[DeviceFact], totals: Mapping[str, int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for fact in facts:
        share, total = fact.status.get("memory_used_pct"), totals.get(fact.device_id)
        if isinstance(share, int | float) and total:
            found.setdefault(fact.profile, []).append(share / 100.0 * total)
    return found


def _quantiles(values: Mapping[str, list[float]]) -> dict[tuple[str, str], float]:
    """By nearest rank: a value that some device has."""
    found: dict[tuple[str, str], float] = {}
    for profile, some in values.items():
        some.sort()
        for name, quantile in QUANTILES.items():
            rank = max(0, -int(-quantile * len(some) // 1) - 1)
            found[profile, name] = some[rank]
    return found


def _serving(facts: Iterable[DeviceFact]) -> dict[tuple[str, str, str], int]:
    found: Counter[tuple[str, str, str]] = Counter()
    for fact in facts:
        for one in fact.status.get("models") or ():
            if one.get("version"):
                key = (str(one.get("model")), str(one["version"]), str(one.get("rung")))
                full = len(found) >= MAX_COUNTED and key not in found
                found[(OTHER, OTHER, OTHER) if full else key] += 1
    return dict(found)


def _all_states(counts: Mapping[str, int]) -> dict[str, int]:
    return {state.value: counts.get(state.value, 0) for state in AssignmentState}


def _limits(
    specs: Iterable[tuple[str, Mapping[str, object]]],
) -> tuple[dict[str, float], dict[str, float]]:
    budgets: dict[str, float] = {}
    throttles: dict[str, float] = {}
    for name, spec in specs:
        try:
            profile = parse_profile(name, spec)
        except InvalidError:
            continue  # stored by another release: it is no reason to show nothing
        if profile.latency_budget_ms is not None:
            budgets[name] = profile.latency_budget_ms / 1000.0
        if profile.throttle_c is not None:
            throttles[name] = profile.throttle_c
    return budgets, throttles
