"""Judges a wave by what its devices did: PENDING, PASSED, FAILED, INCONCLUSIVE or ERROR.

Refuses to take silence for health: PASSED needs committed devices, inferences on the new build of
each of them, a soak during which evidence kept arriving, and a tail no worse than before on the
same devices. Decides nothing: `planner` does. Times in seconds unless a name says `_ms`.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controller.domain.histogram import Histogram
from controller.domain.rollout import Verdict
from controller.domain.words import count_of, ms, times_ms

TAIL_FACTOR = 1.5  # worse than before by so much, and over the budget: the version is slower
TAIL_MIN_COUNT = 50  # below, a p95 is little more than a maximum; it waits for the end of the soak
FAULT_PCT = 1.0  # errors and non-finite outputs, of all inferences
FAULT_MIN_COUNT = 3
FAILED_TOLERATED_PCT = 5.0  # devices that could not take it for reasons of their own: full disk ...
SOAK_GAP_S = 30.0  # silence for longer does not count as soak
LOOK_S = 2.0
SILENCE = "nothing is committed by silence"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A device that left the version (or could not take it), and what it says of it."""

    device_id: str
    reason: str = ""
    last_service_s: tuple[float, ...] = ()
    returned_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """Merged figures of a set of devices."""

    histogram: Histogram = field(default_factory=Histogram)
    errors: int = 0
    non_finite: int = 0

    @property
    def inferences(self) -> int:
        """Answered and failed ones together."""
        return self.histogram.count + self.errors

    @property
    def faults(self) -> int:
        """Errors and outputs that are no numbers."""
        return self.errors + self.non_finite


@dataclass(frozen=True, slots=True)
class Soak:
    """How long evidence has arrived since every device of the wave runs the version."""

    soaked_s: float = 0.0
    counted_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class WaveFacts:
    """What is known of one open wave. Counts are devices.

    `before` and `same` speak of the same devices, those that have a past; `after` of all.
    """

    opened_at: datetime
    exposed: int  # offered in this wave, without those that refused
    in_flight: int
    committed: int
    offline: int  # of those in flight
    rolled_back: tuple[Trouble, ...] = ()  # of the whole rollout, not of this wave only
    failed: tuple[Trouble, ...] = ()  # before activation, since the newest acknowledgement
    starved: tuple[Trouble, ...] = ()  # in probation, too few inferences at max_s
    before: Side = field(default_factory=Side)
    same: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)
    control: Side = field(default_factory=Side)  # untouched devices in the same time
    samples: int = 0
    short: tuple[str, ...] = ()  # committed devices with fewer than min_samples inferences
    last_evidence_at: datetime | None = None
    last_change_at: datetime | None = None
    acknowledged_at: datetime | None = None  # a person said RUN after this wave was held
    passed: bool = False  # judged so before: only what is exposed since has to be shown
    unreadable: str = ""  # evidence that could not be read
    soak: Soak = Soak()


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rollout demands."""

    soak_s: float
    min_samples: int
    deadline_s: float
    slow_threshold_ms: float
    p95_budget_ms: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict and why; ``look_at`` is when another look is worth it without news."""

    verdict: Verdict
    reason: str
    soak: Soak
    look_at: datetime | None = None


def judge(facts: WaveFacts, rules: Rules, now: datetime) -> Judgement:
    """Judge one wave. Total: every combination of facts has a verdict."""
    settled = facts.exposed > 0 and facts.in_flight == 0 and facts.committed > 0
    soak = _advance(facts) if settled else Soak()
    found = (
        _unreadable(facts)
        or _returned(facts, rules)
        or _failed(facts)
        or _faulty(facts)
        or _slow(facts, rules, settled)
        or _starved(facts)
        or _silent(facts, rules, now)
    )
    if found is not None:
        verdict, reason = found
        return Judgement(verdict, reason, soak)
    waiting = _waiting(facts, rules, soak)
    if waiting:
        return Judgement(Verdict.PENDING, waiting, soak, now + timedelta(seconds=LOOK_S))
    return Judgement(Verdict.PASSED, _passed(facts, rules, soak), soak)


_Found = tuple[Verdict, str] | None


def _unreadable(facts: WaveFacts) -> _Found:
    if not facts.unreadable:
        return None
    return Verdict.ERROR, f"evidence cannot be read: {facts.unreadable}"


def _returned(facts: WaveFacts, rules: Rules) -> _Found:
    if not facts.rolled_back:
        return None
    first, more = facts.rolled_back[0], len(facts.rolled_back) - 1
    reason = returned_text(first, rules.slow_threshold_ms)
    return Verdict.FAILED, reason + (f", and {count_of(more, 'device')} more" if more else "")


def returned_text(trouble: Trouble, slow_threshold_ms: float) -> str:
    """Why a device left the version, with its figures."""
    times = trouble.last_service_s
    if times and all(time * 1000 > slow_threshold_ms for time in times):
        figures = times_ms(times)
        what = (
            f"{count_of(len(times), 'inference')} in a row over {slow_threshold_ms:g} ms"
            f" on {trouble.device_id} ({figures})"
        )
    else:
        what = f"{trouble.device_id} left it: {trouble.reason or 'no reason given'}"
    if trouble.returned_in_s is None:
        return what
    seconds = trouble.returned_in_s
    took = f"{seconds:.1f} s" if seconds >= 0.1 else f"{ms(seconds * 1000, 2)} ms"
    return f"{what}, device returned by itself in {took}"


def _failed(facts: WaveFacts) -> _Found:
    if not facts.failed:
        return None
    count, first = len(facts.failed), facts.failed[0]
    text = f"{first.device_id}: {first.reason or 'no reason given'}"
    if facts.committed == 0 and facts.in_flight == 0:
        return Verdict.FAILED, f"no device of the wave could take it ({count} tried), {text}"
    if count * 100 <= FAILED_TOLERATED_PCT * facts.exposed:
        return None
    return (
        Verdict.ERROR,
        f"{count_of(count, 'device')} of {facts.exposed} could not take it, {text}",
    )


def _faulty(facts: WaveFacts) -> _Found:
    after, before = facts.after, facts.before
    if after.faults < FAULT_MIN_COUNT or after.faults * 100 <= FAULT_PCT * after.inferences:
        return None
    rate = after.faults / after.inferences
    if before.inferences and rate <= 2 * before.faults / before.inferences:
        return None
    return Verdict.FAILED, (
        f"{after.faults} of {after.inferences} inferences failed or gave no numbers"
        f" ({100 * rate:.1f} %), before {before.faults} of {before.inferences}"
    )


def _slow(facts: WaveFacts, rules: Rules, settled: bool) -> _Found:
    after = facts.after.histogram.quantile(0.95)
    count = facts.after.histogram.count
    enough = count >= TAIL_MIN_COUNT or (settled and facts.samples >= rules.min_samples)
    budget_s = rules.p95_budget_ms / 1000
    if after is None or not enough or after <= budget_s:
        return None
    over = f"p95 {ms(after * 1000, 2)} ms over the budget of {rules.p95_budget_ms:g} ms (n={count})"
    before = facts.before.histogram.quantile(0.95)
    same = facts.same.histogram.quantile(0.95)
    accepted = facts.acknowledged_at is not None
    known = facts.before.histogram.count >= TAIL_MIN_COUNT
    if before is None or same is None or not known or same <= budget_s:
        if accepted:
            return None
        return Verdict.INCONCLUSIVE, f"{over}, and too little from before to compare with"
    if same <= TAIL_FACTOR * before:
        return None
    text = f"{over}, {ms(before * 1000, 2)} → {ms(same * 1000, 2)} ms on the same devices"
    control = facts.control.histogram
    meanwhile = control.quantile(0.95)
    if meanwhile is not None and control.count >= TAIL_MIN_COUNT and meanwhile * TAIL_FACTOR > same:
        if accepted:
            return None
        return Verdict.INCONCLUSIVE, (
            f"{text}; untouched devices show {ms(meanwhile * 1000, 2)} ms at the same time,"
            " so it may not be the version"
        )
    return Verdict.FAILED, text


def _starved(facts: WaveFacts) -> _Found:
    if not facts.starved:
        return None
    first, count = facts.starved[0], len(facts.starved)
    said = first.reason or "no traffic"
    if SILENCE not in said:  # most devices say so themselves
        said += f"; {SILENCE}"
    return Verdict.INCONCLUSIVE, (
        f"{count_of(count, 'device')} in probation with too few inferences;"
        f" {first.device_id}: {said}"
    )


def _silent(facts: WaveFacts, rules: Rules, now: datetime) -> _Found:
    if facts.exposed == 0:  # nothing at risk, nothing a person could decide
        return None
    if facts.passed and facts.in_flight == 0:
        return None
    moments = (
        facts.opened_at,
        facts.last_evidence_at,
        facts.last_change_at,
        facts.acknowledged_at,
    )
    latest = max(moment for moment in moments if moment is not None)
    silence_s = (now - latest).total_seconds()
    if silence_s < rules.deadline_s:
        return None
    return Verdict.INCONCLUSIVE, (
        f"no evidence for {silence_s:.0f} s (deadline {rules.deadline_s:g} s):"
        f" {_standing(facts)}, {facts.samples} of {count_of(_needed(facts, rules), 'sample')}"
    )


def _waiting(facts: WaveFacts, rules: Rules, soak: Soak) -> str:
    """What is still missing for PASSED; empty: nothing."""
    if facts.exposed == 0:
        return "no device has it yet"
    if facts.in_flight:
        return _standing(facts)
    if facts.committed == 0:
        return "no device of the wave runs it"
    if facts.short:
        return (
            f"{facts.samples} of {count_of(_needed(facts, rules), 'sample')},"
            f" {count_of(len(facts.short), 'device')} short of {rules.min_samples},"
            f" first {facts.short[0]}"
        )
    if facts.last_evidence_at is None:
        return "no evidence on the new build yet"
    if soak.soaked_s < rules.soak_s:
        return f"soaking, {soak.soaked_s:.0f} of {rules.soak_s:g} s with evidence"
    return ""


def _passed(facts: WaveFacts, rules: Rules, soak: Soak) -> str:
    parts = [f"{facts.samples} of {count_of(_needed(facts, rules), 'sample')}"]
    after = facts.after.histogram.quantile(0.95)
    before = facts.before.histogram.quantile(0.95)
    if after is not None:
        was = f"{ms(before * 1000, 2)} → " if before is not None else ""
        parts.append(f"p95 {was}{ms(after * 1000, 2)} ms" + _slower(facts, rules))
    parts.append(f"soaked {soak.soaked_s:.0f} s")
    if facts.failed:
        parts.append(f"{count_of(len(facts.failed), 'device')} could not take it")
    return ", ".join(parts)


def _slower(facts: WaveFacts, rules: Rules) -> str:
    """A pass that a person should read: much slower than before, but inside the budget."""
    before = facts.before.histogram.quantile(0.95)
    same = facts.same.histogram.quantile(0.95)
    known = min(facts.before.histogram.count, facts.same.histogram.count) >= TAIL_MIN_COUNT
    if before is None or same is None or not known or same <= TAIL_FACTOR * before:
        return ""
    return f" ({same / before:.1f} times, inside the budget of {rules.p95_budget_ms:g} ms)"


def _advance(facts: WaveFacts) -> Soak:
    """Soak runs by the time stamps of evidence, so it stands still in silence."""
    latest = facts.last_evidence_at
    if latest is None:
        return facts.soak
    until = facts.soak.counted_until
    if until is None:
        return Soak(0.0, latest)
    if latest <= until:
        return facts.soak
    gap_s = (latest - until).total_seconds()
    return Soak(facts.soak.soaked_s + min(gap_s, SOAK_GAP_S), latest)


def _standing(facts: WaveFacts) -> str:
    text = f"{facts.committed} of {facts.exposed} committed, {facts.in_flight} on the way"
    return text + (f" ({facts.offline} offline)" if facts.offline else "")


def _needed(facts: WaveFacts, rules: Rules) -> int:
    return rules.min_samples * max(1, facts.committed + facts.in_flight)
