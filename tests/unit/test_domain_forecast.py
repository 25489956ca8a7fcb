"""The forecast: the same seed the same, caps kept, bad versions stopped, large fleets bounded."""

import pytest

from controller.domain.evidence import Rules
from controller.domain.forecast import DeviceClass, Question, forecast, parse_fleet
from controller.domain.rollout import Phase
from controller.domain.wave import parse_waves
from controller.errors import InvalidError

RULES = Rules(
    soak_s=60, min_samples=200, deadline_s=86_400, slow_threshold_ms=100, p95_budget_ms=100
)


def question(devices: int, *, fails_on_pct: float = 0.0, **values: float) -> Question:
    behaves = {"inferences_per_s": 4.0, **values}
    return Question(
        classes=(DeviceClass("gate", devices, **behaves),),
        waves=parse_waves(["1", "10%", "100%"], devices).waves,
        rules=RULES,
        bytes=20_000_000,
        fails_on_pct=fails_on_pct,
    )


def test_a_seed_gives_one_forecast() -> None:
    asked = question(20, away_pct=10, away_s=600)
    assert forecast(asked, 3) == forecast(asked, 3)
    assert forecast(asked, 3) != forecast(asked, 4)


def test_a_good_version_takes_at_least_what_must_pass() -> None:
    found = forecast(question(40))
    assert found.endings == {Phase.SUCCEEDED: found.runs}
    assert found.duration_s is not None
    fetch_s, proof_s = 20 * 0.8, 60.0 + 60.0  # at 1 MB/s; probation and soak
    assert 3 * (fetch_s + proof_s) < found.duration_s.p50 <= found.duration_s.p90 < 3600
    assert found.bytes.p50 == 40 * 20_000_000
    assert sum(found.reached_per_hour) == 40
    assert found.hit.p90 == 0


@pytest.mark.parametrize(("fails_on_pct", "reach"), [(100.0, 1), (30.0, 4)])
def test_a_bad_version_is_stopped_in_the_wave_that_sees_it(fails_on_pct: float, reach: int) -> None:
    found = forecast(question(40, fails_on_pct=fails_on_pct))
    assert found.endings == {Phase.ROLLED_BACK: found.runs}
    assert found.exposed.p50 == reach
    assert 1 <= found.hit.p90 <= found.exposed.p90
    assert all(one.exposed.p90 <= one.cap for one in found.points)


def test_devices_that_are_away_make_it_longer() -> None:
    near = forecast(question(40)).duration_s
    far = forecast(question(40, away_pct=30, away_s=4 * 3600)).duration_s
    assert near is not None
    assert far is not None
    assert far.p50 > 2 * near.p50


def test_silence_comes_to_no_success() -> None:
    found = forecast(question(4, inferences_per_s=0.0))
    assert Phase.SUCCEEDED not in found.endings


def test_a_large_fleet_is_played_by_a_sample() -> None:
    found = forecast(question(1_000_000, fails_on_pct=50.0))
    assert (found.devices, found.runs) == (1_000_000, 10)
    assert found.exposed.p90 <= 100_000  # the second wave


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "no list of classes"),
        ({"classes": [{"name": "a", "devices": 0}]}, "devices is 0"),
        ({"classes": [{"name": "a", "devices": 1, "away": 3}]}, "did you mean away_s"),
        ({"classes": [{"name": "a", "devices": 1, "away_pct": 100}]}, "never there"),
        ({"classes": [3]}, "no mapping"),
    ],
)
def test_a_described_fleet_is_checked(value: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_fleet(value)
    assert said in caught.value.text()
