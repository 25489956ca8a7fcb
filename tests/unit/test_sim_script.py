"""What simulated devices do follows from the seed alone."""

from agent.sim.script import BAD_FACTOR, Script


def test_nothing_is_bad_without_a_bad_version() -> None:
    assert not Script().is_bad("sim-1", "")
    assert not Script(bad_version="1.1.0").is_bad("sim-1", "1.0.0")


def test_a_share_of_the_devices_is_chosen_by_the_seed() -> None:
    names = [f"sim-{number}" for number in range(2000)]

    def chosen(seed: int, share: float) -> set[str]:
        script = Script(seed=seed, bad_version="1.1.0", slow_share_pct=share)
        return {name for name in names if script.is_bad(name, "1.1.0")}

    assert len(chosen(1, 100.0)) == len(names)
    assert chosen(1, 0.0) == set()
    assert 0.25 < len(chosen(1, 30.0)) / len(names) < 0.35
    assert chosen(1, 30.0) == chosen(1, 30.0)
    assert chosen(1, 30.0) != chosen(2, 30.0)
    assert chosen(1, 10.0) < chosen(1, 30.0)  # a larger share holds the smaller one


def test_service_times_stay_on_their_side_of_the_threshold() -> None:
    script = Script(latency_s=0.02, jitter_pct=20.0)
    chance = script.chance_of("sim-1")
    good = [script.service_s(chance, bad=False, threshold_s=0.1) for _ in range(500)]
    bad = [script.service_s(chance, bad=True, threshold_s=0.1) for _ in range(500)]
    assert 0.016 <= min(good) < max(good) <= 0.024
    assert 0.1 < min(bad) < max(bad) <= 0.1 * BAD_FACTOR * 1.2


def test_two_devices_differ_and_each_repeats() -> None:
    script = Script(seed=3)
    first = [script.chance_of("sim-1").random() for _ in range(2)]
    assert first[0] == first[1]
    assert first[0] != script.chance_of("sim-2").random()
