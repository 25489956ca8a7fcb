"""The judge: five verdicts, each with its evidence; silence never passes."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from controller.domain.comparison import Comparison, Metric
from controller.domain.evidence import OnInconclusive, Rules, Side, Soak, Trouble, WaveFacts, Worse
from controller.domain.health import SOAK_GAP_S, Judgement, judge
from controller.domain.histogram import Histogram, histogram_of
from controller.domain.rollout import Verdict

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
RULES = Rules(soak_s=30, min_samples=20, deadline_s=600, slow_threshold_ms=100, p95_budget_ms=100)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def side(ms: float, count: int = 100, **more: int) -> Side:
    return Side(histogram_of([ms / 1000] * count), **more)


HEALTHY = WaveFacts(
    opened_at=ago(300),
    exposed=3,
    in_flight=0,
    committed=3,
    offline=0,
    before=side(41),
    same=side(38),
    after=side(38),
    samples=100,
    last_evidence_at=ago(1),
    last_change_at=ago(100),
    soak=Soak(29.5, ago(3)),
)


def look(**changes: object) -> Judgement:
    changes.setdefault("same", changes.get("after", HEALTHY.after))
    facts, rules = replace(HEALTHY, **changes), RULES  # type: ignore[arg-type]
    found = judge(facts, rules, NOW)
    stored = json.loads(json.dumps([facts.to_json(), rules.to_json()]))
    again = judge(WaveFacts.from_json(stored[0]), Rules.from_json(stored[1]), NOW)
    assert again == found, "a stored decision comes out otherwise"
    return found


def test_a_healthy_wave_passes_with_its_figures() -> None:
    found = look()
    assert found.verdict is Verdict.PASSED
    assert found.reason == "100 of 60 samples, p95 44 → 40 ms, soaked 32 s"


def test_a_device_that_left_fails_it_with_the_row_that_decided() -> None:
    times = (0.131, 0.118, 0.124, 0.140, 0.122)
    found = look(rolled_back=(Trouble("rpi5-0007", "slow", times, 0.2),))
    assert found.verdict is Verdict.FAILED
    assert found.reason == (
        "5 inferences in a row over 100 ms on rpi5-0007 (131 118 124 140 122),"
        " device returned by itself in 0.2 s"
    )


@pytest.mark.parametrize("in_flight", [0, 2])
@pytest.mark.parametrize("samples", [0, 1000])
def test_a_device_that_left_fails_it_whatever_else_is_seen(in_flight: int, samples: int) -> None:
    left = (Trouble("pi-1", "crashed"), Trouble("pi-2", "crashed"))
    found = look(rolled_back=left, in_flight=in_flight, samples=samples)
    assert (found.verdict, found.reason) == (
        Verdict.FAILED,
        "pi-1 left it: crashed, and 1 device more",
    )


def test_a_tail_over_budget_and_worse_than_before_fails_it() -> None:
    found = look(after=side(160))
    assert found.verdict is Verdict.FAILED
    assert found.reason == (
        "p95 161 ms over the budget of 100 ms (n=100), 44 → 161 ms on the same devices"
    )


def test_a_tail_over_budget_that_was_so_before_passes() -> None:
    assert look(before=side(150), after=side(160)).verdict is Verdict.PASSED


def test_a_tail_worse_than_before_but_inside_the_budget_passes() -> None:
    found = look(before=side(20), after=side(80))
    assert found.verdict is Verdict.PASSED
    assert "(4.0 times, inside the budget of 100 ms)" in found.reason
    assert "times" not in look(before=side(60), after=side(80)).reason
    few = look(before=side(20, 3), after=side(80))  # three say nothing of a tail
    assert "times" not in few.reason


def test_a_policy_may_take_back_what_the_figures_cannot_tell() -> None:
    facts = replace(HEALTHY, after=side(160), same=side(160), control=side(170))
    strict = replace(RULES, on_inconclusive=OnInconclusive.ROLL_BACK)
    assert judge(facts, RULES, NOW).verdict is Verdict.INCONCLUSIVE
    found = judge(facts, strict, NOW)
    assert found.verdict is Verdict.FAILED
    assert found.reason.endswith("inconclusive, and the policy says to roll back then")
    assert Rules.from_json(json.loads(json.dumps(strict.to_json()))) == strict


def test_a_tail_that_the_untouched_devices_show_too_is_for_a_person() -> None:
    found = look(after=side(160), control=side(170))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "may not be the version" in found.reason
    assert (
        look(after=side(160), control=side(170), acknowledged_at=ago(1)).verdict is Verdict.PASSED
    )


def test_a_tail_over_budget_without_a_past_is_for_a_person() -> None:
    assert look(before=Side(), after=side(160)).verdict is Verdict.INCONCLUSIVE


def test_a_tail_of_new_devices_is_not_measured_by_the_past_of_others() -> None:
    found = look(after=side(160), same=side(38))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "too little from before" in found.reason


def test_a_short_tail_waits_for_the_end_of_the_wave() -> None:
    found = look(after=side(160, 10), samples=10, in_flight=1, committed=2)
    assert found.verdict is Verdict.PENDING


def test_faults_worse_than_before_fail_it() -> None:
    found = look(after=side(38, 90, errors=6, non_finite=4))
    assert found.verdict is Verdict.FAILED
    assert "10 of 96 inferences failed or gave no numbers" in found.reason
    as_before = side(41, 90, errors=10)
    assert look(before=as_before, after=side(38, 90, errors=10)).verdict is Verdict.PASSED


def test_starved_probation_is_for_a_person() -> None:
    found = look(in_flight=1, committed=2, starved=(Trouble("pi-3", "4 of 200 inferences"),))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason.endswith("pi-3: 4 of 200 inferences; nothing is committed by silence")
    agent = "starved: 4 of 200 inferences in 40 s; nothing is committed by silence"
    found = look(in_flight=1, committed=2, starved=(Trouble("pi-3", agent),))
    assert found.reason.count("nothing is committed by silence") == 1


def test_no_evidence_until_the_deadline_is_for_a_person() -> None:
    silent = {
        "opened_at": ago(700),
        "last_evidence_at": None,
        "last_change_at": ago(650),
        "after": Side(),
        "samples": 0,
        "short": ("pi-1",),
    }
    assert look(**silent).verdict is Verdict.INCONCLUSIVE
    assert look(**silent, acknowledged_at=ago(5)).verdict is Verdict.PENDING
    assert look(**silent, exposed=0, committed=0).verdict is Verdict.PENDING


def test_failed_devices() -> None:
    failed = (Trouble("pi-1", "disk full"),)
    assert look(failed=failed, committed=0, exposed=1).verdict is Verdict.FAILED
    found = look(failed=failed, committed=2)
    assert (found.verdict, found.reason) == (
        Verdict.ERROR,
        "1 device of 3 could not take it, pi-1: disk full",
    )
    tolerated = look(failed=failed, committed=39, exposed=40, samples=1000)
    assert tolerated.verdict is Verdict.PASSED
    assert "1 device could not take it" in tolerated.reason


def test_evidence_that_cannot_be_read_is_an_error() -> None:
    assert look(unreadable="histogram says 3 values").verdict is Verdict.ERROR


def test_the_soak_runs_only_while_evidence_arrives() -> None:
    start = look(soak=Soak())
    assert (start.verdict, start.soak) == (Verdict.PENDING, Soak(0.0, ago(1)))
    same = look(soak=Soak(10, ago(1)))
    assert (same.verdict, same.soak) == (Verdict.PENDING, Soak(10, ago(1)))
    gap = look(soak=Soak(0, ago(500)))
    assert gap.soak == Soak(SOAK_GAP_S, ago(1))
    assert look(in_flight=1, committed=2).soak == Soak()  # a late joiner starts it anew


def test_a_wave_that_passed_is_not_undone_by_silence() -> None:
    quiet = {"last_evidence_at": ago(5000), "last_change_at": ago(6000), "opened_at": ago(9000)}
    assert look(**quiet).verdict is Verdict.INCONCLUSIVE
    assert look(**quiet, passed=True, soak=Soak(30, ago(5000))).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("exposed", "in_flight", "short", "evidence", "soaked", "count", "silence"),
    list(
        product((0, 3), (0, 1), ((), ("pi-1",)), (None, 1.0), (0.0, 40.0), (0, 100), (10.0, 700.0))
    ),
)
def test_nothing_passes_that_was_not_shown(
    exposed: int,
    in_flight: int,
    short: tuple[str, ...],
    evidence: float | None,
    soaked: float,
    count: int,
    silence: float,
) -> None:
    """Every combination of what may be missing: PASSED only where nothing is."""
    found = look(
        exposed=exposed,
        in_flight=in_flight,
        committed=exposed - in_flight if exposed else 0,
        short=short,
        last_evidence_at=None if evidence is None else ago(evidence),
        soak=Soak(soaked, ago(1)),
        after=side(38, count) if count else Side(Histogram()),
        samples=count,
        opened_at=ago(silence),
        last_change_at=ago(silence),
    )
    complete = exposed and not in_flight and not short and evidence is not None and soaked >= 30
    assert (found.verdict is Verdict.PASSED) == bool(complete)
    assert found.reason


# ---- beside before and untouched devices -------------------------------------------------------

GATED = replace(RULES, slower_pct=10.0, stepped_down_pts=10.0)


def slower(pct: float, spread: float = 0.01, controls: int = 40) -> Comparison:
    return Comparison(Metric.LATENCY, "", math.log1p(pct / 100), spread**2, 12, controls)


def gated(found: Comparison, rules: Rules = GATED, **changes: object) -> Judgement:
    facts = replace(HEALTHY, compared=(found,), **changes)  # type: ignore[arg-type]
    stored = json.loads(json.dumps([facts.to_json(), rules.to_json()]))
    verdict = judge(facts, rules, NOW)
    assert judge(WaveFacts.from_json(stored[0]), Rules.from_json(stored[1]), NOW) == verdict
    return verdict


def test_slower_inside_the_budget_is_stopped_where_the_owner_set_a_limit() -> None:
    found = gated(slower(25))
    assert (found.verdict, found.reason) == (
        Verdict.FAILED,
        "latency +25.0 % (+20 to +30) on 12 devices beside 40 untouched ones,"
        " over the limit of 10 %",
    )
    assert gated(slower(25), RULES).verdict is Verdict.PASSED, "the control: no limit"
    held = gated(slower(25), replace(GATED, worse=Worse.HOLD))
    assert held.verdict is Verdict.INCONCLUSIVE
    accepted = gated(slower(25), replace(GATED, worse=Worse.HOLD), acknowledged_at=ago(1))
    assert accepted.verdict is Verdict.PASSED


def test_a_pass_tells_how_it_compares() -> None:
    found = gated(slower(1.5))
    assert found.verdict is Verdict.PASSED
    assert found.reason.endswith("latency +1.5 % (-3 to +6) on 12 devices beside 40 untouched ones")


def test_where_nobody_is_untouched_a_person_decides() -> None:
    found = gated(slower(40, controls=0))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "no untouched device is left" in found.reason
    assert gated(slower(40, controls=0), acknowledged_at=ago(1)).verdict is Verdict.PASSED


def test_a_doubt_is_watched_for_longer_and_then_for_a_person() -> None:
    doubt = slower(20, spread=0.045)
    found = gated(doubt)
    assert (found.verdict, found.look_at is None) == (Verdict.PENDING, False)
    assert "over the limit of 10 %, not proven: watched for longer" in found.reason
    waited = gated(doubt, soak=Soak(600, ago(1)))
    assert waited.verdict is Verdict.INCONCLUSIVE
    assert "longer waiting did not tell" in waited.reason
    assert gated(doubt, acknowledged_at=ago(1)).verdict is Verdict.PASSED
    assert gated(doubt, passed=True).verdict is Verdict.PASSED
    chance = slower(13, spread=0.08)
    assert gated(chance).verdict is Verdict.PENDING
    assert gated(chance, soak=Soak(600, ago(1))).verdict is Verdict.PASSED, "more devices tell"


def test_more_answers_of_the_light_rung_stop_it() -> None:
    pushed = Comparison(Metric.STEPPED_DOWN, "pi", 0.45, 0.03**2, 8, 30, 2)
    found = gated(pushed)
    assert found.verdict is Verdict.FAILED
    assert found.reason.startswith("answers below the heaviest rung +45.0 points (")
    assert "on 8 devices of pi beside 30 untouched ones, over the limit of 10 points" in (
        found.reason
    )


def test_a_few_faults_that_are_usual_are_waited_for() -> None:
    usual = side(41, 12_000, errors=16)
    few = side(38, 242, errors=3)
    assert look(before=usual, after=few).verdict is Verdict.PASSED
    assert look(before=side(41, 50), control=usual, after=few).verdict is Verdict.PASSED
    assert look(before=usual, after=side(38, 480, errors=12)).verdict is Verdict.FAILED
    assert look(before=side(41, 12_000), after=few).verdict is Verdict.FAILED


def test_few_faults_that_are_proven_more_than_before_fail_it() -> None:
    """Under the absolute limit of one percent, but before and elsewhere there were none."""
    few = side(38, 20_000, errors=120)
    calm = side(41, 20_000)
    found = look(after=few, same=few, before=calm, control=calm)
    assert found.verdict is Verdict.FAILED
    assert found.reason.startswith("120 of 20,120 inferences failed or gave no numbers, before 0")
    everywhere = look(after=few, same=few, before=calm, control=few)
    assert everywhere.verdict is Verdict.PASSED, "untouched devices have them too"
    assert look(after=few, same=few, before=Side(), control=Side()).verdict is Verdict.PASSED
    rare = side(38, 20_000, errors=20)  # a tenth of a percent
    assert look(after=rare, same=rare, before=calm, control=calm).verdict is Verdict.PASSED
