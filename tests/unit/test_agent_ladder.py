"""Rung choices as traces: readings over time in, moves out."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.desired import RungKind, RungSpec
from agent.domain.ladder import (
    ChangeKind,
    LadderState,
    Pressure,
    begin_ladder,
    choose_rung,
    is_pressured,
    position_of,
    step_down,
)
from agent.domain.policy import LadderPolicy
from agent.domain.probation import LadderPosition, Trial

POLICY = LadderPolicy()
HEAVY = RungSpec("heavy", RungKind.LOCAL)
MIDDLE = RungSpec("middle", RungKind.LOCAL)
LIGHT = RungSpec("light", RungKind.LOCAL)
EDGE = RungSpec("edge", RungKind.REMOTE, endpoint="grpc://edge:8001")
OFF = RungSpec("off", RungKind.OFF)
TWO = (HEAVY, LIGHT)
CALM = Pressure(
    p95_s=0.030, queue_age_s=0.0, temperature_c=50, memory_pct=40, cpu_pct=30, starved=False
)
GOOD = replace(CALM, link_rtt_s=0.010, link_loss_pct=0.0)
CUT = replace(CALM, link_loss_pct=100.0)
HOT = replace(CALM, temperature_c=81.5)
Move = tuple[float, str, ChangeKind]


def trace(
    readings: Iterable[tuple[float, Pressure]],
    rungs: tuple[RungSpec, ...] = TWO,
    trial: Trial = Trial.COMMITTED,
    state: LadderState | None = None,
    policy: LadderPolicy = POLICY,
) -> list[Move]:
    """Feed a reading each second for so many seconds; gives (second, rung, kind) of each move."""
    state = state or begin_ladder(rungs, 0.0)
    now, moves = 0.0, []
    for seconds, pressure in readings:
        for _ in range(round(seconds)):
            choice = choose_rung(state, pressure, policy, rungs, now, trial)
            state = choice.state
            if choice.change is not None:
                assert choice.change.to_rung == state.rung != choice.change.from_rung
                moves.append((now, state.rung, choice.change.kind))
            assert choice.reason
            assert choice.wake_at is None or choice.wake_at > now
            now += 1.0
    return moves


def test_it_starts_on_the_heaviest_local_rung() -> None:
    assert begin_ladder((EDGE, HEAVY, LIGHT), 0.0).rung == "heavy"
    assert trace([(100, CALM)]) == []


SIGNALS: dict[ChangeKind, tuple[Pressure, Pressure, Pressure]] = {
    # kind: just below the threshold to leave, at it, between the two thresholds
    ChangeKind.TEMPERATURE: (
        replace(CALM, temperature_c=79.9),
        replace(CALM, temperature_c=80.0),
        replace(CALM, temperature_c=75.0),
    ),
    ChangeKind.MEMORY: (
        replace(CALM, memory_pct=91.9),
        replace(CALM, memory_pct=92.0),
        replace(CALM, memory_pct=86.0),
    ),
    ChangeKind.CPU: (
        replace(CALM, cpu_pct=94.9),
        replace(CALM, cpu_pct=95.0),
        replace(CALM, cpu_pct=81.0),
    ),
    ChangeKind.LOAD: (
        replace(CALM, queue_age_s=0.49),
        replace(CALM, queue_age_s=0.50),
        replace(CALM, queue_age_s=0.40),
    ),
    ChangeKind.LATENCY: (
        replace(CALM, p95_s=0.100),
        replace(CALM, p95_s=0.101),
        replace(CALM, p95_s=0.080),
    ),
}


@pytest.mark.parametrize("kind", SIGNALS)
def test_each_signal_steps_down_after_its_dwell_and_back_after_the_longer_one(
    kind: ChangeKind,
) -> None:
    below, at, between = SIGNALS[kind]
    assert trace([(60, below)]) == []
    assert trace([(3, at), (60, below)]) == []
    assert trace([(4, at)]) == [(3.0, "light", kind)]
    # Between the thresholds nothing moves, however long.
    assert trace([(4, at), (500, between)]) == [(3.0, "light", kind)]
    assert trace([(4, at), (60, CALM)]) == [
        (3.0, "light", kind),
        (34.0, "heavy", ChangeKind.RECOVERED),
    ]


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_single_calm_reading_restarts_the_dwell(kind: ChangeKind) -> None:
    _, at, _ = SIGNALS[kind]
    assert trace([(3, at), (1, CALM), (3, at), (1, CALM)]) == []
    # And one bad reading restarts the way up.
    moves = trace([(4, at), (29, CALM), (1, SIGNALS[kind][2]), (29, CALM)])
    assert moves == [(3.0, "light", kind)]


@pytest.mark.parametrize("kind", SIGNALS)
def test_without_sensors_nothing_ever_triggers(kind: ChangeKind) -> None:
    assert trace([(500, Pressure())]) == []
    # A sensor that goes away does not keep the device on the light rung.
    down = trace([(4, SIGNALS[kind][1]), (60, Pressure())])
    assert down[-1] == (34.0, "heavy", ChangeKind.RECOVERED)


def test_heat_goes_step_by_step_and_turns_off_last() -> None:
    rungs = (HEAVY, MIDDLE, LIGHT, OFF)
    assert trace([(13, HOT)], rungs) == [
        (3.0, "middle", ChangeKind.TEMPERATURE),
        (7.0, "light", ChangeKind.TEMPERATURE),
        (11.0, "off", ChangeKind.TEMPERATURE),
    ]
    back = trace([(13, HOT), (200, CALM)], rungs)[3:]
    assert [m[1] for m in back] == ["light", "middle", "heavy"]
    assert all(kind is ChangeKind.RECOVERED for _, _, kind in back)


@pytest.mark.parametrize("kind", [ChangeKind.CPU, ChangeKind.LOAD, ChangeKind.LATENCY])
def test_slowness_never_turns_a_model_off(kind: ChangeKind) -> None:
    assert trace([(100, SIGNALS[kind][1])], (LIGHT, OFF)) == []


def test_heat_is_named_before_slowness() -> None:
    both = replace(HOT, p95_s=0.2, queue_age_s=9.0, cpu_pct=100)
    assert trace([(4, both)]) == [(3.0, "light", ChangeKind.TEMPERATURE)]


@pytest.mark.parametrize(
    ("kind", "moves"),
    [
        (ChangeKind.TEMPERATURE, True),
        (ChangeKind.MEMORY, True),
        (ChangeKind.CPU, False),
        (ChangeKind.LOAD, False),
        (ChangeKind.LATENCY, False),
    ],
)
def test_in_probation_heat_and_memory_move_the_rung_and_nothing_else(
    kind: ChangeKind, moves: bool
) -> None:
    assert bool(trace([(60, SIGNALS[kind][1])], trial=Trial.PROBATION)) is moves


REMOTE_FIRST = (EDGE, HEAVY, LIGHT)


def test_the_remote_rung_is_used_while_its_link_is_good() -> None:
    assert trace([(31, GOOD)], REMOTE_FIRST) == [(30.0, "edge", ChangeKind.RECOVERED)]
    moves = trace([(31, GOOD), (20, CUT), (200, GOOD)], REMOTE_FIRST)
    assert moves[:2] == [
        (30.0, "edge", ChangeKind.RECOVERED),
        (34.0, "heavy", ChangeKind.NETWORK),
    ]
    assert moves[2][1:] == ("edge", ChangeKind.RECOVERED)
    # The link came back 17 s later; after a step up that did not last it waits twice as long.
    assert moves[2][0] == 51.0 + 60.0


@pytest.mark.parametrize(
    "link",
    [
        replace(CALM, link_rtt_s=0.160, link_loss_pct=0.0),
        replace(CALM, link_rtt_s=0.010, link_loss_pct=20.0),
        CUT,
    ],
)
def test_a_bad_link_leaves_the_remote_rung(link: Pressure) -> None:
    state = LadderState("edge", 0.0)
    assert trace([(4, link)], REMOTE_FIRST, state=state) == [(3.0, "heavy", ChangeKind.NETWORK)]


def test_an_unmeasured_or_middling_link_is_not_taken_and_not_left() -> None:
    middling = replace(CALM, link_rtt_s=0.100, link_loss_pct=5.0)
    for reading in (CALM, middling, CUT):
        assert trace([(200, reading)], REMOTE_FIRST) == []
    for reading in (CALM, middling):
        assert trace([(200, reading)], REMOTE_FIRST, state=LadderState("edge", 0.0)) == []


def test_the_network_counts_only_for_the_remote_rung() -> None:
    assert trace([(200, CUT)], TWO) == []
    assert trace([(200, CUT)], REMOTE_FIRST) == []


def test_heat_does_not_leave_the_remote_rung_and_may_go_to_it() -> None:
    hot_good = replace(GOOD, temperature_c=85)
    assert trace([(200, hot_good)], REMOTE_FIRST, state=LadderState("edge", 0.0)) == []
    assert trace([(4, hot_good)], (HEAVY, EDGE, LIGHT)) == [(3.0, "edge", ChangeKind.TEMPERATURE)]
    assert trace([(4, HOT)], (HEAVY, EDGE, LIGHT)) == [(3.0, "light", ChangeKind.TEMPERATURE)]


def test_a_remote_rung_in_last_place_falls_back_to_the_lightest_local_one() -> None:
    rungs = (HEAVY, LIGHT, EDGE)
    moves = trace([(4, CUT)], rungs, state=LadderState("edge", 0.0))
    assert moves == [(3.0, "light", ChangeKind.NETWORK)]


def test_in_probation_no_remote_rung_answers() -> None:
    assert trace([(200, GOOD)], REMOTE_FIRST, Trial.PROBATION) == []
    moves = trace([(1, GOOD)], REMOTE_FIRST, Trial.PROBATION, LadderState("edge", 0.0))
    assert moves == [(0.0, "heavy", ChangeKind.NETWORK)]


def test_flapping_waits_longer_each_time_and_forgets_after_a_good_while() -> None:
    """Heavy is too slow under this load, light is fast: it must not move every half minute."""
    state, now, moves = begin_ladder(TWO, 0.0), 0.0, []
    while now < 4000:
        slow = replace(CALM, p95_s=0.150 if state.rung == "heavy" else 0.030)
        choice = choose_rung(state, slow, POLICY, TWO, now)
        state = choice.state
        if choice.change:
            moves.append((now, state.rung))
        now += 1.0
    ups = [at for at, rung in moves if rung == "heavy"]
    downs = [at for at, rung in moves if rung == "light"]
    waits = [up - down for down, up in zip(downs, ups, strict=False)]
    assert waits[0] == pytest.approx(31, abs=2)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(30 * 32, abs=2)
    # A step up that lasts is no flapping: the next step down starts from the beginning.
    assert state.backoff == 5
    rested = LadderState("light", 0.0, backoff=5)
    calm = trace([(3000, CALM), (4, SIGNALS[ChangeKind.CPU][1]), (60, CALM)], state=rested)
    assert calm[-1][0] - calm[-2][0] <= 32


def test_a_short_step_up_tells_how_long_the_next_one_waits() -> None:
    state = LadderState("heavy", 0.0, stepped_up=True)
    choice = step_down(state, TWO, POLICY, "5 inferences in a row over 100 ms", 4.0)
    assert choice.change is not None
    assert choice.change.reason.endswith("the next step up waits 60 s")
    assert choice.change.kind is ChangeKind.LATENCY


def test_the_rollback_rule_steps_down_at_once_and_only_among_local_rungs() -> None:
    rungs = (EDGE, HEAVY, LIGHT, OFF)
    for start, to in (("edge", "heavy"), ("heavy", "light")):
        choice = step_down(LadderState(start, 0.0), rungs, POLICY, "slow", 1.0)
        assert choice.state.rung == to
    stay = step_down(LadderState("light", 0.0), rungs, POLICY, "slow", 1.0)
    assert (stay.change, stay.state.rung) == (None, "light")
    lonely = step_down(LadderState("edge", 0.0), (HEAVY, EDGE), POLICY, "slow", 1.0)
    assert lonely.state.rung == "heavy"


def test_a_rung_that_is_gone_is_left_at_once() -> None:
    choice = choose_rung(LadderState("heavy", 0.0), CALM, POLICY, (LIGHT,), 1.0)
    assert choice.change is not None
    assert (choice.state.rung, choice.change.kind) == ("light", ChangeKind.MEMORY)


def test_it_says_when_to_ask_again() -> None:
    choice = choose_rung(begin_ladder(TWO, 0.0), HOT, POLICY, TWO, 10.0)
    assert choice.wake_at == 13.0
    assert "81.5 °C ≥ 80" in choice.reason


def test_positions_and_the_pressure_mark() -> None:
    rungs = (EDGE, HEAVY, LIGHT, OFF)
    assert [position_of(r.name, rungs) for r in rungs[:3]] == [
        LadderPosition.REMOTE,
        LadderPosition.LOCAL,
        LadderPosition.LOWEST_LOCAL,
    ]
    assert not is_pressured(CALM, POLICY)
    assert not is_pressured(Pressure(), POLICY)
    # A busy CPU alone is no excuse: the slow model itself may be what keeps it busy.
    assert not is_pressured(replace(CALM, cpu_pct=100), POLICY)
    for pressed in (HOT, replace(CALM, throttled=True), replace(CALM, starved=True)):
        assert is_pressured(pressed, POLICY)


READING = st.builds(
    Pressure,
    p95_s=st.sampled_from([None, 0.03, 0.09, 0.2]),
    queue_age_s=st.sampled_from([None, 0.0, 1.0]),
    temperature_c=st.sampled_from([None, 50.0, 77.0, 85.0]),
    memory_pct=st.sampled_from([None, 50.0, 95.0]),
    cpu_pct=st.sampled_from([None, 50.0, 99.0]),
    link_rtt_s=st.sampled_from([None, 0.01, 0.1, 0.3]),
    link_loss_pct=st.sampled_from([None, 0.0, 100.0]),
)


def check_moves(choose: Callable[..., object], readings: list[tuple[float, Pressure]]) -> None:
    """No two moves closer than the shorter dwell; never off by slowness; always a known rung."""
    rungs = (EDGE, HEAVY, LIGHT, OFF)
    now, state, last = 0.0, begin_ladder(rungs, 0.0), 0.0
    for step, pressure in readings:
        now += step
        choice = choose(state, pressure, POLICY, rungs, now)
        state = choice.state  # type: ignore[attr-defined]
        change = choice.change  # type: ignore[attr-defined]
        assert state.rung in {r.name for r in rungs}
        if change is not None:
            assert now - last >= POLICY.dwell_down_s
            if state.rung == "off":
                assert change.kind in (ChangeKind.TEMPERATURE, ChangeKind.MEMORY)
            last = now


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 40.0), READING), max_size=60))
def test_any_weather_moves_with_dwell(readings: list[tuple[float, Pressure]]) -> None:
    check_moves(choose_rung, readings)


def test_without_dwell_the_same_check_fails() -> None:
    hasty = replace(POLICY, dwell_down_s=0.0)

    def choose(state: LadderState, pressure: Pressure, _: LadderPolicy, *rest: object) -> object:
        return choose_rung(state, pressure, hasty, *rest)  # type: ignore[arg-type]

    with pytest.raises(AssertionError):
        check_moves(choose, [(1.0, HOT)] * 10)
