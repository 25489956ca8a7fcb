"""The main job on real processes: a version goes out in waves, and the next one under load."""

import re

from examples.fleet.clock import wait_until
from tests.support.e2e_jobs import FirstJob
from tests.support.e2e_world import DIGITS, WAVES, Fleet, now


def test_both_recipes_of_both_variants_are_built_with_evidence(
    fleet: Fleet, first: FirstJob
) -> None:
    seen = {(one["profile"], one["variant"], one["recipe"]) for one in first.builds}
    recipes = ("onnxruntime-int8", "onnxruntime-fp32")
    assert seen == {
        (profile, variant, recipe)
        for profile in ("gate", "intel-n100")
        for variant in ("heavy", "light")
        for recipe in recipes
    }
    for one in first.builds:
        figures = one["figures"]
        assert one["state"] in ("passed", "refused"), one
        assert one["reason"] or one["state"] == "passed", one
        assert figures["latency_n"] > 0, one
        assert figures["measured_on"], one
        for name in ("accuracy_pct", "agreement_pct"):
            interval = figures[name]
            # On a busy machine the time for evaluation ends before the rows do.
            assert 32 <= interval["n"] <= first.dataset["evaluation_rows"], one
            assert interval["low"] <= interval["value"] <= interval["high"], one
        assert figures["measured_on_class"] is (one["profile"] == "gate"), one
    passed = {(one["profile"], one["variant"]) for one in first.builds if one["state"] == "passed"}
    assert len(passed) == 4


def test_the_first_version_is_committed_wave_by_wave(fleet: Fleet, first: FirstJob) -> None:
    assert first.watched.code == 0, first.watched.out
    assert first.shown["phase"] == "SUCCEEDED"
    assert [wave["verdict"] for wave in first.shown["waves"]] == ["PASSED"] * 3
    assert [wave["cumulative"] for wave in first.shown["waves"]] == [1, 2, 4]
    assert [wave["states"] for wave in first.shown["waves"]] == [
        {"COMMITTED": 1}, {"COMMITTED": 1}, {"COMMITTED": 2},
    ]  # fmt: skip
    assert first.answering == dict.fromkeys(fleet.agents, "1.0.0")


def test_a_plan_promises_nothing_that_was_not_computed(fleet: Fleet, first: FirstJob) -> None:
    assert first.plan["devices"] == 4
    assert first.plan["profiles"] == {"gate": 2, "intel-n100": 2}
    assert [wave["cumulative"] for wave in first.plan["waves"]] == [1, 2, 4]
    assert first.plan["unready"] == []
    assert first.plan["bytes"] > 0
    assert not re.search(r"\bp90\b|about \d+ (min|h)|halted after", first.plan_text)


def test_a_wrong_count_starts_nothing(fleet: Fleet, first: FirstJob) -> None:
    assert first.wrong_count.code != 0
    assert "4" in first.wrong_count.err
    started = [one for one in fleet.ctl.items("rollout", "list") if one["spec"]["model"] == DIGITS]
    assert {one["created_at"] for one in started}
    assert min(started, key=lambda one: one["created_at"])["rollout_id"] == first.rollout


def test_no_request_fails_while_every_device_swaps_under_load(fleet: Fleet) -> None:
    version = fleet.push_digits()
    builds = fleet.build(DIGITS, version)
    assert all(one["cached"] for one in builds), "the same weights were compiled twice"
    since = now()
    rollout = fleet.bring(DIGITS, version, WAVES)
    fleet.wait_running(version)
    assert fleet.failed(since) == []
    assert fleet.saw(version, since) == set(fleet.agents)
    assert fleet.facts("rollout", rollout)["exposed"][0].startswith("4 of 4 devices (cap 4)")
    waves = fleet.show(rollout)["waves"]
    for wave in waves:
        assert wave["p95_before_s"] is not None, "nothing from before on the same devices"
        assert wave["p95_after_s"] is not None
        assert wave["samples"] >= 10 * wave["devices"]
    device = fleet.facts("device", "gate-1")
    assert device["runs"][0].startswith(f"{DIGITS}:{version} heavy"), device
    assert any(text.startswith(f"{version}: rollout {rollout}") for text in device["version"])


def test_what_went_out_is_what_status_shows(fleet: Fleet) -> None:
    version = fleet.runs("gate-1")[0]

    def shown() -> bool:
        status = fleet.ctl.json("status")
        running = {(one["model"], one["version"]): one["devices"] for one in status["running"]}
        return bool(running.get((DIGITS, version)) == 4 and status["devices"]["online"] == 4)

    wait_until(shown, 20, f"status to show four devices on {version}", every_s=0.5)
    status = fleet.ctl.json("status")
    assert (status["problems"], status["broker_ok"], status["worker_count"]) == ([], True, 1)
