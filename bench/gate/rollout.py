"""One simulated rollout: the real planner and judge over a drawn fleet, and a ghost that watches.

The driver carries out what the planner says and shows the judge what devices answered. The ghost
counts for itself who was exposed and what was shown, and trusts neither.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from bench.gate.fleet import (
    BUCKETS,
    FIRST,
    STEP_S,
    WINDOW,
    Answers,
    Counts,
    Fleet,
    Floats,
    Mask,
    Version,
    draw_version,
    histogram_of_counts,
)
from bench.gate.outcome import Outcome
from controller.domain.comparison import (
    LEAST_COUNT,
    LEAST_IN_WINDOW,
    Comparison,
    Difference,
    Metric,
    compare,
    first_wave,
    share_difference,
    together,
)
from controller.domain.evidence import Rules, Side, Soak, Trouble, WaveFacts
from controller.domain.health import SOAK_GAP_S, Judgement, judge
from controller.domain.histogram import SCALE
from controller.domain.planner import Facts, PauseReason, Plan, plan
from controller.domain.rollout import OPEN, TERMINAL, AssignmentState, Intent, Phase, Verdict
from controller.domain.wave import DEFAULT_WAVES, parse_waves

A = AssignmentState
STATES = tuple(A)
CODE = {state: number for number, state in enumerate(STATES)}
START = datetime(2026, 11, 24, tzinfo=UTC)
CONTROLS, FIRSTS = 200, 50
PROBATION_COUNT, PROBATION_S, PROBATION_MOST_S = 20, 60.0, 12 * 3600.0
MOST_STEPS = int(24 * 3600 / STEP_S)
SLOWER_PCT, STEPPED_DOWN_PTS = 10.0, 10.0
# These devices may rest for an hour, and their owner knows.
DEADLINE_S = 6 * 3600.0
_WIDTH = 2.0**-SCALE * math.log(2)
_MIDDLES = (np.arange(BUCKETS) + FIRST + 0.5) * _WIDTH


@dataclass(slots=True)
class Ghost:
    """What an observer beside the controller counts."""

    exposed: set[int] = field(default_factory=set)
    over_cap: int = 0
    proven: int = 0  # waves that passed
    silent: int = 0
    decisions: int = 0
    unstable: int = 0


class Rollout:
    """A rollout over a fleet that is drawn from the seed."""

    def __init__(self, seed: int, version: Version | None = None) -> None:
        random = np.random.default_rng(seed)
        self.seed = seed
        self.fleet = fleet = Fleet(random)
        drawn = draw_version(random, np.unique(fleet.profile))
        self.version = drawn if version is None else version
        n = fleet.count
        limit_ms = 1000 * float(np.exp(fleet.base.max())) * float(random.uniform(4, 8))
        self.rules = Rules(
            soak_s=600,
            min_samples=50,
            deadline_s=DEADLINE_S,
            slow_threshold_ms=limit_ms,
            p95_budget_ms=limit_ms,
            slower_pct=SLOWER_PCT,
            stepped_down_pts=STEPPED_DOWN_PTS,
        )
        self.caps = tuple(wave.cumulative for wave in parse_waves(DEFAULT_WAVES, n).waves)
        self.state = np.full(n, CODE[A.PLANNED])
        self.wave = np.zeros(n, dtype=np.int64)
        self.activated = np.full(n, np.inf)
        self.window: Counts = np.zeros((n, BUCKETS), dtype=np.int64)
        self.window_below: Counts = np.zeros(n, dtype=np.int64)
        self.ring = np.zeros((WINDOW, n, BUCKETS), dtype=np.uint16)
        self.ring_below = np.zeros((WINDOW, n), dtype=np.uint16)
        self.first: Counts = self.window  # what they did before the first wave
        self.before: Counts = np.zeros((n, BUCKETS), dtype=np.int64)
        self.before_below: Counts = np.zeros(n, dtype=np.int64)
        self.after: Counts = np.zeros((n, BUCKETS), dtype=np.int64)
        self.after_below: Counts = np.zeros(n, dtype=np.int64)
        self.errors: Counts = np.zeros(n, dtype=np.int64)
        self.errors_before: Counts = np.zeros(n, dtype=np.int64)
        self.window_errors: Counts = np.zeros(n, dtype=np.int64)
        self.ring_errors = np.zeros((WINDOW, n), dtype=np.uint16)
        self.answered: Counts = np.zeros(n, dtype=np.int64)  # by the new version; for the ghost
        self.evidence_at = np.full(n, -1.0)
        self.steps = 0
        self.phase, self.reason, self.current = Phase.PENDING, "", 0
        self.opened_s = self.changed_s = 0.0
        self.soak, self.verdict = Soak(), Verdict.PENDING
        self.errors_in_row = 0
        self.pauses: tuple[PauseReason, ...] = ()
        self.earlier: tuple[Comparison, ...] = ()  # of waves that passed
        self.ghost = Ghost()

    def run(self) -> Outcome:
        """Until it is over, is held for a person, or a day has passed."""
        for _ in range(WINDOW + 5):
            self._answer()
        while self.phase not in TERMINAL and self.phase is not Phase.PAUSED:
            if self.steps > MOST_STEPS:
                break
            self._answer()
            self._devices()
            self._controller()
        return Outcome(
            seed=self.seed,
            kind=self.version.kind,
            size=round(self.version.size, 3),
            devices=self.fleet.count,
            phase=self.phase,
            reason=self.reason,
            hours=round(self.fleet.now_s / 3600, 2),
            exposed=len(self.ghost.exposed),
            cap=self.caps[max(0, self.current - 1)],
            over_cap=self.ghost.over_cap,
            silent_passes=self.ghost.silent,
            decisions=self.ghost.decisions,
            unstable=self.ghost.unstable,
        )

    # -- devices ---------------------------------------------------------------------------------

    def _are(self, *states: AssignmentState) -> Mask:
        return np.isin(self.state, [CODE[state] for state in states])

    def _answer(self) -> None:
        self.fleet.go_on()
        self.steps += 1
        new = self._are(A.ACTIVATED, A.PROBATION, A.COMMITTED)
        limit_s = self.rules.slow_threshold_ms / 1000
        age_s = np.where(new, self.fleet.now_s - np.where(new, self.activated, 0.0), 0.0)
        old = self.fleet.answer(~new, None, age_s, limit_s)
        if not new.any():
            self._remember(old, new)
            return
        answers = self.fleet.answer(new, self.version, age_s, limit_s)
        self._remember(old + answers, new)
        self.after += answers.histograms
        self.after_below += answers.below
        self.errors += answers.errors
        self.answered += answers.histograms.sum(axis=1) + answers.errors
        heard = (answers.histograms.sum(axis=1) + answers.errors) > 0
        self.evidence_at[heard & new] = self.fleet.now_s
        left = new & (answers.slow_rows | self.fleet.leaves(self.version, new, age_s))
        self._set(left, A.ROLLED_BACK)

    def _remember(self, answers: Answers, new: Mask) -> None:
        """The last quarter of an hour of all, and of the untouched what came since."""
        at = self.steps % WINDOW
        self.window += answers.histograms - self.ring[at]
        self.ring[at] = answers.histograms
        self.window_below += answers.below - self.ring_below[at]
        self.ring_below[at] = answers.below
        self.window_errors += answers.errors - self.ring_errors[at]
        self.ring_errors[at] = answers.errors
        untouched = ~new & self._are(A.PLANNED)
        self.after[untouched] += answers.histograms[untouched]
        self.after_below[untouched] += answers.below[untouched]
        self.errors[untouched] += answers.errors[untouched]

    def _set(self, who: Mask, state: AssignmentState) -> None:
        if who.any():
            self.state[who] = CODE[state]
            self.changed_s = self.fleet.now_s

    def _devices(self) -> None:
        """Each step of a device takes a while."""
        dice = self.fleet.random.random(self.fleet.count)
        proving = self._are(A.PROBATION)
        count = self.after.sum(axis=1)
        age_s = self.fleet.now_s - self.activated
        shown = proving & (count >= PROBATION_COUNT) & (age_s >= PROBATION_S)
        ready, offered = self._are(A.STAGED), self._are(A.OFFERED)
        self._set(shown, A.COMMITTED)
        self.activated[ready] = self.fleet.now_s
        self._set(ready, A.PROBATION)
        self._set(offered & (dice < 0.5), A.STAGED)
        self._set(self._are(A.ROLLING_BACK) & (dice < 0.7), A.ROLLED_BACK)

    # -- controller ------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        return self._moment(self.fleet.now_s)

    def _moment(self, seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    def _controller(self) -> None:
        reason = ""
        if self.current and self.phase is Phase.PROGRESSING:
            facts = self._wave_facts()
            found = judge(facts, self.rules, self.now)
            self._watch(facts, found)
            self.soak, self.verdict, reason = found.soak, found.verdict, found.reason
            self.errors_in_row = self.errors_in_row + 1 if found.verdict is Verdict.ERROR else 0
        decided = plan(self._facts(reason), self.now)
        self._carry_out(decided)

    def _wave_facts(self) -> WaveFacts:
        mine = (self.wave == self.current) & ~self._are(A.PLANNED)
        committed = mine & self._are(A.COMMITTED)
        flight = mine & np.isin(self.state, [CODE[one] for one in OPEN])
        counts = self.after.sum(axis=1)
        proving = flight & self._are(A.PROBATION)
        late = self.fleet.now_s - self.activated > PROBATION_MOST_S
        short = committed & (counts + self.errors < self.rules.min_samples)
        heard = float(self.evidence_at[mine].max(initial=-1.0))
        with_past = mine & (self.before.sum(axis=1) > 0)
        untouched = np.flatnonzero(self._are(A.PLANNED))[:CONTROLS]
        settled = not flight.any() and bool(committed.any())
        return WaveFacts(
            opened_at=self._moment(self.opened_s),
            exposed=int(mine.sum()),
            in_flight=int(flight.sum()),
            committed=int(committed.sum()),
            offline=0,
            rolled_back=self._troubles(self._are(A.ROLLED_BACK, A.ROLLING_BACK)),
            starved=self._troubles(proving & late),
            before=self._side(self.before, self.errors_before, with_past),
            same=self._side(self.after, self.errors, with_past),
            after=self._side(self.after, self.errors, mine),
            control=self._side(self.after, self.errors, untouched),
            samples=int((counts + self.errors)[mine].sum()),
            short=tuple(map(str, np.flatnonzero(short))),
            last_evidence_at=None if heard < 0 else self._moment(heard),
            last_change_at=self._moment(max(self.changed_s, self.opened_s)),
            passed=self.verdict is Verdict.PASSED,
            soak=self.soak,
            compared=self._all_compared(np.flatnonzero(mine), untouched) if settled else (),
        )

    def _all_compared(self, mine: Counts, untouched: Counts) -> tuple[Comparison, ...]:
        found = self._compared(mine, untouched)
        found += together(found, self.earlier)
        return found + (self._first_wave(untouched) if self._is_near_pass() else ())

    def _compared(self, mine: Counts, untouched: Counts) -> tuple[Comparison, ...]:
        """What `controller.services.rollout_comparison` does with stored rows."""
        return (
            *compare(Metric.LATENCY, list(self._latencies(mine)), list(self._latencies(untouched))),
            *compare(Metric.STEPPED_DOWN, list(self._shares(mine)), list(self._shares(untouched))),
        )

    def _is_near_pass(self) -> bool:
        return self.current > 1 and self.soak.soaked_s >= self.rules.soak_s - SOAK_GAP_S

    def _first_wave(self, untouched: Counts) -> tuple[Comparison, ...]:
        """Devices of the first wave by their last quarter of an hour."""
        first = np.flatnonzero((self.wave == 1) & self._are(A.COMMITTED))[:FIRSTS]
        return first_wave(
            list(self._latencies(first, self.first, self.window, LEAST_IN_WINDOW)),
            list(self._latencies(untouched, self.first, self.window, LEAST_IN_WINDOW)),
            len(self.caps),
        )

    def _latencies(
        self,
        who: Counts,
        before: Counts | None = None,
        after: Counts | None = None,
        least: int = LEAST_COUNT,
    ) -> Iterator[Difference]:
        """`latency_difference` of many devices at once."""
        was, now = self.before if before is None else before, self.after if after is None else after
        (n, mean, spread), (m, later, wider) = moments(was[who]), moments(now[who])
        noise = spread / np.maximum(n, 1) + wider / np.maximum(m, 1)
        for at, device in enumerate(who):
            if min(n[at], m[at]) >= least:
                profile = f"p{self.fleet.profile[device]}"
                change = float(later[at] - mean[at])
                yield Difference(str(device), profile, change, float(noise[at]))

    def _shares(self, who: Counts) -> Iterator[Difference]:
        whole, later = self.before[who].sum(axis=1), self.after[who].sum(axis=1)
        for at, device in enumerate(who):
            found = share_difference(
                str(device),
                f"p{self.fleet.profile[device]}",
                (int(self.before_below[device]), int(whole[at])),
                (int(self.after_below[device]), int(later[at])),
            )
            if found is not None:
                yield found

    def _troubles(self, who: Mask) -> tuple[Trouble, ...]:
        return tuple(Trouble(f"pi-{at}", "crashed") for at in np.flatnonzero(who))

    def _side(self, histograms: Counts, errors: Counts, who: Mask | Counts) -> Side:
        return Side(histogram_of_counts(histograms[who].sum(axis=0)), int(errors[who].sum()))

    def _facts(self, reason: str) -> Facts:
        codes = np.bincount(self.state, minlength=len(STATES))
        counts = Counter({state: int(codes[CODE[state]]) for state in STATES})
        online = self.fleet.online()
        planned = np.flatnonzero(self._are(A.PLANNED) & online)[:100]
        on = self._are(A.OFFERED, A.STAGED, A.PROBATION, A.COMMITTED)
        live = (self.wave == self.current) & on
        return Facts(
            rollout_id=f"r-{self.seed}",
            phase=self.phase,
            phase_reason=self.reason,
            intent=Intent.RUN,
            intent_by="ana",
            intent_at=START,
            intent_reason="",
            caps=self.caps,
            current_wave=self.current,
            counts=counts,
            exposed=int((self.wave > 0).sum()),
            wave_live=int(live.sum()),
            candidates=tuple(map(str, planned)),
            verdict=self.verdict,
            verdict_reason=reason,
            errors_in_row=self.errors_in_row,
            pause_reasons=self.pauses,
        )

    def _carry_out(self, decided: Plan) -> None:
        if decided.current_wave > self.current:
            self.current, self.opened_s = decided.current_wave, self.fleet.now_s
            self.soak, self.verdict = Soak(), Verdict.PENDING
            if self.current == 1:
                self.first = self.window.copy()
            self._begin(np.flatnonzero(self._are(A.PLANNED)))
        taken = np.array([int(one) for one in decided.take], dtype=np.int64)
        if taken.size:
            self._begin(taken)
            self.state[taken], self.wave[taken] = CODE[A.OFFERED], self.current
            self.changed_s = self.fleet.now_s
            self.ghost.exposed.update(map(int, taken))
        self._set(self._are(*decided.withdraw), A.WITHDRAWN)
        self._set(self._are(*decided.roll_back), A.ROLLING_BACK)
        self.phase, self.reason, self.pauses = decided.phase, decided.reason, decided.pause_reasons
        proven = self.ghost.proven
        self.ghost.over_cap += len(self.ghost.exposed) > self.caps[min(proven, len(self.caps) - 1)]

    def _begin(self, who: Counts) -> None:
        """From now on they are compared with what they did before."""
        self.before[who] = self.window[who]
        self.before_below[who] = self.window_below[who]
        self.errors_before[who] = self.window_errors[who]
        for tally in (self.after, self.after_below, self.errors):
            tally[who] = 0
        self.evidence_at[who] = -1.0

    def _watch(self, facts: WaveFacts, found: Judgement) -> None:
        """The ghost counts for itself, and makes each decision once more from what is stored."""
        if found.verdict in (Verdict.PENDING, self.verdict):
            return
        ghost = self.ghost
        ghost.decisions += 1
        stored = json.loads(json.dumps([facts.to_json(), self.rules.to_json()]))
        again = judge(WaveFacts.from_json(stored[0]), Rules.from_json(stored[1]), self.now)
        ghost.unstable += again != found
        if found.verdict is Verdict.PASSED:
            self.earlier += facts.compared
            ghost.proven = max(ghost.proven, self.current)
            mine = (self.wave == self.current) & self._are(A.COMMITTED)
            shown = (self.answered >= self.rules.min_samples) & (
                self.fleet.now_s - self.activated >= self.rules.soak_s
            )
            ghost.silent += not (mine.any() and shown[mine].all())


def moments(counts: Counts) -> tuple[Counts, Floats, Floats]:
    """Count, mean and variance of ln seconds by row: `comparison.log_moments` of many at once."""
    n = counts.sum(axis=1)
    least = np.maximum(n, 1)
    mean = counts @ _MIDDLES / least
    spread = np.maximum(counts @ _MIDDLES**2 / least - mean**2, 0.0) + _WIDTH**2 / 12
    return n, mean, spread
