"""Judges a wave by what its devices did: PENDING, PASSED, FAILED, INCONCLUSIVE or ERROR.

Refuses to take silence for health: PASSED needs committed devices, inferences on the new build of
each of them, a soak during which evidence kept arriving, and a tail no worse than before on the
same devices. Beside the absolute limits stand relative ones: against the same devices before and
against untouched ones meanwhile, by tests that a look every two seconds does not wear out (see
`comparison` and `sequential`). Decides nothing: `planner` does. Times in seconds unless a name says
`_ms`.
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controller.domain.comparison import ALL_WAVES, Comparison, Metric
from controller.domain.evidence import OnInconclusive, Rules, Side, Soak, Trouble, WaveFacts, Worse
from controller.domain.rollout import Verdict
from controller.domain.sequential import share_bounds
from controller.domain.words import count_of, ms, times_ms

TAIL_FACTOR = 1.5  # worse than before by so much, and over the budget: the version is slower
TAIL_MIN_COUNT = 50  # below, a p95 is little more than a maximum; it waits for the end of the soak
FAULT_PCT = 1.0  # errors and non-finite outputs, of all inferences
FAULT_MIN_COUNT = 3
FAILED_TOLERATED_PCT = 5.0  # devices that could not take it for reasons of their own: full disk ...
# The chance that a wave of a version like the one before is ever stopped by one kind of comparison.
ALPHA = 0.002
DOUBT_ALPHA = 0.02  # and that it is held though it is not proven to be over its limit
SHARE_FACTOR = 2.0  # more faults than before by so much, proven ...
SHARE_LEAST_PCT = 0.1  # ... and more than so many of all inferences
MORE_SOAK, MORE_SOAK_S = 3.0, 600.0  # what is over a limit, unproven, is watched so much longer
SOAK_GAP_S = 30.0  # silence for longer does not count as soak
LOOK_S = 2.0
SILENCE = "nothing is committed by silence"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict and why; ``look_at`` is when another look is worth it without news."""

    verdict: Verdict
    reason: str
    soak: Soak
    look_at: datetime | None = None


def judge(facts: WaveFacts, rules: Rules, now: datetime) -> Judgement:
    """Judge one wave. Total: every combination of facts has a verdict."""
    found = _judge(facts, rules, now)
    if found.verdict is not Verdict.INCONCLUSIVE:
        return found
    if rules.on_inconclusive is OnInconclusive.PAUSE:
        return found
    reason = f"{found.reason}; inconclusive, and the policy says to roll back then"
    return replace(found, verdict=Verdict.FAILED, reason=reason)


def _judge(facts: WaveFacts, rules: Rules, now: datetime) -> Judgement:
    settled = facts.exposed > 0 and facts.in_flight == 0 and facts.committed > 0
    soak = _advance(facts) if settled else Soak()
    found = (
        _unreadable(facts)
        or _returned(facts, rules)
        or _failed(facts)
        or _faulty(facts)
        or _more_faulty(facts)
        or _slow(facts, rules, settled)
        or _worse(facts, rules)
        or _starved(facts)
        or _silent(facts, rules, now)
    )
    if found is not None:
        verdict, reason = found
        return Judgement(verdict, reason, soak)
    waiting = _waiting(facts, rules, soak)
    doubt = "" if waiting or facts.passed else _doubt(facts, rules)
    if doubt and facts.acknowledged_at is None:
        if soak.soaked_s < max(MORE_SOAK * rules.soak_s, MORE_SOAK_S):
            waiting = f"{doubt}: watched for longer, {soak.soaked_s:.0f} s"
        elif _doubt(facts, rules, DOUBT_ALPHA):
            told = f"{doubt}, and longer waiting did not tell"
            return Judgement(Verdict.INCONCLUSIVE, told, soak)
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
    known = before.faults / before.inferences if before.inferences else 0.0
    meanwhile = facts.control.faults / max(1, facts.control.inferences)
    if rate <= 2 * known or _share(after)[0] <= max(known, meanwhile):
        return None  # what is usual explains it, by its size or by chance
    return Verdict.FAILED, (
        f"{after.faults} of {after.inferences} inferences failed or gave no numbers"
        f" ({100 * rate:.1f} %), before {before.faults} of {before.inferences}"
    )


def _more_faulty(facts: WaveFacts) -> _Found:
    """Faults too few for the absolute limit, but proven more than before and than elsewhere."""
    sides = [side for side in (facts.before, facts.control) if side.inferences >= TAIL_MIN_COUNT]
    if not sides or facts.after.faults < FAULT_MIN_COUNT:
        return None
    least, _ = _share(facts.after)
    most = max(_share(side)[1] for side in sides)
    if least <= max(SHARE_FACTOR * most, SHARE_LEAST_PCT / 100):
        return None
    told = ", ".join(
        f"{name} {side.faults} of {side.inferences:,}"
        for name, side in (("before", facts.before), ("untouched devices", facts.control))
        if side.inferences
    )
    return Verdict.FAILED, (
        f"{facts.after.faults} of {facts.after.inferences:,} inferences failed or gave no numbers,"
        f" {told}: at least {100 * least:.2f} % against at most {100 * most:.2f} %"
    )


def _share(side: Side) -> tuple[float, float]:
    """Where the share of faults lies, at every look at once."""
    return share_bounds(min(side.faults, side.inferences), side.inferences, ALPHA / 2)


def _worse(facts: WaveFacts, rules: Rules) -> _Found:
    """Proven worse than a relative limit: by comparison with before and with untouched devices."""
    for one in facts.compared:
        limit = _limit(one, rules)
        if limit is None or not one.is_above(limit, ALPHA):
            continue
        text = f"{compared_text(one)}, over the limit of {_limit_text(one, rules)}"
        if one.controls and rules.worse is Worse.ROLL_BACK:
            return Verdict.FAILED, text
        if facts.acknowledged_at is not None:
            continue
        if not one.controls:
            text += "; no untouched device is left to compare with, so it may not be the version"
        return Verdict.INCONCLUSIVE, text
    return None


def _doubt(facts: WaveFacts, rules: Rules, alpha: float = 1.0) -> str:
    """A comparison that is over its limit without being proven; empty: none.

    With an `alpha` only where it is proven at that level that the version is worse at all: what may
    as well be chance is for the next wave, in which more devices tell.
    """
    for one in facts.compared:
        limit = _limit(one, rules)
        if limit is None or one.estimate <= limit or one.wave > 0:
            continue
        if alpha == 1.0 or one.is_above(0.0, alpha):
            return f"{compared_text(one)}, over the limit of {_limit_text(one, rules)}, not proven"
    return ""


def _limit(one: Comparison, rules: Rules) -> float | None:
    """The limit in the comparison's own unit."""
    if one.metric is Metric.LATENCY:
        return None if rules.slower_pct is None else math.log1p(rules.slower_pct / 100)
    return None if rules.stepped_down_pts is None else rules.stepped_down_pts / 100


def _limit_text(one: Comparison, rules: Rules) -> str:
    if one.metric is Metric.LATENCY:
        return f"{rules.slower_pct:g} %"
    return f"{rules.stepped_down_pts:g} points"


def compared_text(one: Comparison) -> str:
    """A comparison in words, with the interval that holds at every look."""
    low, high = one.interval(ALPHA)
    if one.metric is Metric.LATENCY:
        mid, low, high = (100 * math.expm1(value) for value in (one.estimate, low, high))
        text = f"latency {mid:+.1f} % ({low:+.0f} to {high:+.0f})"
    else:
        mid, low, high = (100 * value for value in (one.estimate, low, high))
        text = f"answers below the heaviest rung {mid:+.1f} points ({low:+.0f} to {high:+.0f})"
    of = f" of {one.profile}" if one.profile else ""
    of += f" of wave {one.wave} by now" if one.wave > 0 else ""
    of += " of all waves" if one.wave == ALL_WAVES else ""
    beside = f" beside {count_of(one.controls, 'untouched one')}" if one.controls else ""
    return f"{text} on {count_of(one.devices, 'device')}{of}{beside}"


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
    parts += [
        compared_text(one)
        for one in facts.compared
        if not one.profile and not one.wave and _limit(one, rules) is not None
    ]
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
