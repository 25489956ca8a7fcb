"""The rollback rule at the host: real slow, poisoned and crashing models, traces of all cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from agent.domain import probation
from agent.domain.ladder import Pressure
from agent.domain.ports import Decision, InferResult
from agent.domain.probation import Cause, RollBack, StepDown, Trial
from agent.errors import InferenceError
from tests.support.serving import (
    Bench,
    ScriptedClock,
    ScriptedRuntime,
    crashing,
    not_a_number,
    products_for,
    scaled,
    slow,
    values,
)

GOOD = {"heavy": scaled(2.0), "light": scaled(3.0)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.host.close()


def cause_of(decision: Decision) -> Cause:
    assert isinstance(decision.verdict, RollBack)
    return decision.verdict.cause


# -- real models -----------------------------------------------------------------------------------


def test_an_honestly_slow_version_is_left_before_its_sixth_inference(bench: Bench) -> None:
    good = bench.serve("1.0.0", GOOD)
    bad = bench.load("1.1.0", {"heavy": slow(5.0, products_for(0.2)), "light": scaled(6.0)})
    # Requests kept coming while it was loaded: its first inference follows no idle gap.
    bench.infer()
    row = probation.begin(bench.clock.monotonic())
    bench.host.swap("photo", bad.slot_id, Trial.PROBATION, row, good.slot_id)
    answers: list[InferResult] = []
    while not bench.decisions and len(answers) < 12:
        answers.append(bench.infer())
    assert [a.version for a in answers] == ["1.1.0"] * 5
    # The very request that decided got the answer it asked for.
    assert [values(a)[0] for a in answers] == [5.0] * 5
    assert min(a.service_s for a in answers) > 0.1
    (decision,) = bench.decisions
    assert (decision.slot_id, decision.swapped_to) == (bad.slot_id, good.slot_id)
    assert cause_of(decision) is Cause.SLOW
    assert "5 inferences in a row over 100 ms" in decision.verdict.reason
    assert decision.done_in_s < 0.2
    assert bench.infer().version == "1.0.0"
    serving = bench.host.serving("photo")
    assert serving is not None
    assert (serving.trial, serving.slot_id) == (Trial.COMMITTED, good.slot_id)


def test_outputs_that_are_no_numbers_count_as_slow(bench: Bench) -> None:
    good = bench.serve("1.0.0", GOOD)
    bad = bench.load("1.1.0", {"heavy": not_a_number()})
    bench.infer()
    row = probation.begin(bench.clock.monotonic())
    bench.host.swap("photo", bad.slot_id, Trial.PROBATION, row, good.slot_id)
    versions = [bench.infer().version for _ in range(6)]
    assert versions == ["1.1.0"] * 5 + ["1.0.0"]
    assert cause_of(bench.decisions[0]) is Cause.NON_FINITE
    poisoned = [w for w in bench.host.take_windows() if w.version == "1.1.0"]
    assert [(w.service.count, w.non_finite) for w in poisoned] == [(5, 5)]


def test_a_crash_in_probation_goes_back_at_once_and_fails_no_request(bench: Bench) -> None:
    good = bench.serve("1.0.0", GOOD)
    bench.serve("1.1.0", {"heavy": crashing()}, Trial.PROBATION, good)
    assert bench.infer(0.0, 0.0, 0.0, 0.0).version == "1.1.0"
    answer = bench.infer()
    assert (answer.version, values(answer)[0]) == ("1.0.0", 2.0)
    (decision,) = bench.decisions
    assert cause_of(decision) is Cause.CRASH
    assert decision.swapped_to == good.slot_id
    assert bench.infer(0.0, 0.0, 0.0, 0.0).version == "1.0.0"


def test_a_crash_of_a_committed_version_is_answered_by_its_lowest_rung(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": crashing(), "middle": crashing(), "light": scaled(3.0)})
    bench.infer(0.0, 0.0, 0.0, 0.0)
    for _ in range(4):
        answer = bench.infer()
        assert (answer.rung, values(answer)[0]) == ("light", 3.0)
        assert bench.decisions == []
    assert bench.infer().rung == "light"
    (decision,) = bench.decisions
    assert isinstance(decision.verdict, StepDown)
    assert decision.swapped_to == "middle"
    errors = {w.rung: w.errors for w in bench.host.take_windows()}
    assert errors == {"heavy": 5, "light": 0}


def test_a_request_that_every_version_fails_is_no_proof_against_the_new_one(bench: Bench) -> None:
    good = bench.serve("1.0.0", {"heavy": crashing()})
    bench.serve("1.1.0", {"heavy": crashing(), "light": crashing()}, Trial.PROBATION, good)
    bench.infer(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(InferenceError, match=r"photo:1\.1\.0 rung 'heavy' failed"):
        bench.infer()
    assert bench.decisions == []


def test_without_a_previous_version_a_crash_is_told_once_and_the_light_rung_answers(
    bench: Bench,
) -> None:
    bench.serve("1.0.0", {"heavy": crashing(), "light": scaled(3.0)}, Trial.PROBATION)
    for _ in range(8):
        assert bench.infer().rung == "light"
    (decision,) = bench.decisions
    assert cause_of(decision) is Cause.CRASH
    assert decision.swapped_to is None


# -- traces of all cases ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    trial: Trial
    hot: bool
    gaps: bool
    starved: bool
    previous_slow: bool
    latched: bool

    @property
    def excused(self) -> bool:
        return self.hot or self.gaps or self.starved

    def expected(self) -> list[type]:
        """What the host may decide over a long trace, from the words of the rule."""
        if self.excused:
            return []
        if self.trial is Trial.PROBATION:
            # Back; the previous one is committed and latched: it steps down, and then stays.
            return [RollBack, StepDown] if self.previous_slow else [RollBack]
        # Committed: down first; the slow lowest rung goes back once, unless it did before.
        return [StepDown] if self.latched else [StepDown, RollBack]


CASES = [
    Case(trial, *marks)
    for trial in Trial
    for marks in product((False, True), repeat=5)
    # Only what is committed can be latched.
    if trial is Trial.COMMITTED or not marks[-1]
]


def play(case: Case, folder: Path) -> tuple[Bench, list[type]]:
    """Serve a version that is slow on all rungs for forty inferences."""
    clock = ScriptedClock()
    runtime = ScriptedRuntime(clock)
    bench = Bench(folder, clock=clock, open_backend=runtime.open, thread_cpu=clock.thread_cpu)
    before = b"0.150" if case.previous_slow else b"0.020"
    first = bench.serve("1.0.0", {"heavy": b"old-heavy " + before, "light": b"old-light " + before})
    bench.infer()
    bench.serve(
        "1.1.0",
        {"heavy": b"new-heavy 0.150", "light": b"new-light 0.150"},
        case.trial,
        first if case.trial is Trial.PROBATION else None,
    )
    if case.latched:
        made = bench.host.serving("photo")
        assert made is not None
        bench.host.settle("photo", made.slot_id, latched=True)
    bench.host.feel(Pressure(temperature_c=85.0 if case.hot else 50.0))
    runtime.cpu_share = 0.3 if case.starved else 1.0
    for _ in range(40):
        bench.infer()
        clock.wait(3.0 if case.gaps else 0.1)
    return bench, [type(d.verdict) for d in bench.decisions]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case, tmp_path: Path) -> None:
    bench, decided = play(case, tmp_path)
    assert decided == case.expected()
    serving = bench.host.serving("photo")
    assert serving is not None
    back = case.trial is Trial.PROBATION and not case.excused
    assert serving.version == ("1.0.0" if back else "1.1.0")


def test_rule_negative_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that forgets the marks must be caught by the cases above."""
    observe = probation.observe

    def careless(state, sample, policy):  # type: ignore[no-untyped-def]
        unmarked = type(sample)(sample.at_s, sample.service_s, sample.ok, sample.non_finite)
        return observe(state, unmarked, policy)

    monkeypatch.setattr(probation, "observe", careless)
    wrong = []
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        if play(case, folder)[1] != case.expected():
            wrong.append(case)
    assert wrong == [case for case in CASES if (case.hot or case.starved) and not case.gaps]


def test_a_fast_inference_proves_itself_though_it_waited_for_a_cpu(tmp_path: Path) -> None:
    clock = ScriptedClock()
    runtime = ScriptedRuntime(clock)
    bench = Bench(tmp_path, clock=clock, open_backend=runtime.open, thread_cpu=clock.thread_cpu)
    bench.serve("1.0.0", {"heavy": b"h 0.050"}, Trial.PROBATION)
    runtime.cpu_share = 0.3
    for _ in range(4):
        bench.infer()
    serving = bench.host.serving("photo")
    assert serving is not None
    # All but the first, which came after an idle gap.
    assert serving.row.counted == 3


def test_one_that_uses_its_cpu_too_long_is_not_excused_by_waiting(tmp_path: Path) -> None:
    clock = ScriptedClock()
    runtime = ScriptedRuntime(clock)
    bench = Bench(tmp_path, clock=clock, open_backend=runtime.open, thread_cpu=clock.thread_cpu)
    good = bench.serve("1.0.0", {"heavy": b"old 0.020"})
    bench.infer()
    bench.serve("1.1.0", {"heavy": b"new 0.300"}, Trial.PROBATION, good)
    # 120 ms of CPU in 300 ms: slow by itself, whatever else ran.
    runtime.cpu_share = 0.4
    for _ in range(5):
        bench.infer()
    assert [type(d.verdict) for d in bench.decisions] == [RollBack]


def test_what_the_old_version_still_finishes_says_nothing_about_the_new_one(
    tmp_path: Path,
) -> None:
    clock = ScriptedClock()
    runtime = ScriptedRuntime(clock)
    bench = Bench(tmp_path, clock=clock, open_backend=runtime.open, thread_cpu=clock.thread_cpu)
    good = bench.serve("1.0.0", {"heavy": b"old 0.020", "light": b"old-light 0.010"})
    bench.infer()
    bench.serve("1.1.0", {"heavy": b"new 0.150"}, Trial.PROBATION, good)
    for _ in range(4):
        bench.infer()
    bench.host.swap("photo", good.slot_id, Trial.COMMITTED, probation.begin(clock.seconds), None)
    serving = bench.host.serving("photo")
    assert serving is not None
    assert serving.row.row == ()
    bench.infer()
    assert bench.decisions == []
