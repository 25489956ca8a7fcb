"""`fleet-sim` against a real controller: what simulated devices do is what a fleet would do."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.domain.rollout import Phase
from controller.services.events import EventFilter, list_events
from controller.store import desired, devices, outbox
from controller.store.outbox import OutboxKind
from tests.support.sim_world import SimWorld, simulated_fleet
from tests.support.wait import wait_for

COUNT = 20
ORDER = ["OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION", "COMMITTED"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SimWorld]:
    with simulated_fleet(tmp_path) as world:
        yield world


def rows(fleet: SimWorld) -> list[devices.DeviceRow]:
    """All devices as stored."""
    with fleet.home.deps.store.read() as conn:
        return devices.list_devices(conn, "default")


def test_every_device_goes_the_whole_way(fleet: SimWorld) -> None:
    fleet.simulate(COUNT)
    fleet.wait_online(COUNT)
    rollout = fleet.bring("1.0.0", 1)
    fleet.wait_phase(rollout, Phase.SUCCEEDED)
    events = list_events(
        fleet.home.deps, fleet.home.ctx(), EventFilter(rollout_id=rollout), limit=10_000
    )
    said: dict[str, list[str]] = {}
    for one in events:
        if one.boot_id:
            said.setdefault(one.device_id or "", []).append(one.details["state"])
    assert len(said) == COUNT
    assert all(states == ORDER for states in said.values()), said
    fetched = {one["device_id"] for one in fleet.happenings("fetched")}
    assert len(fetched) == COUNT

    def applied() -> bool:
        return all(row.applied_generation == 1 and row.status for row in rows(fleet))

    wait_for(applied, 20, "telemetry and applied generations of all")
    assert fleet.stop() == 0
    last = fleet.said()[-1]
    assert last["unacknowledged"] == 0
    assert last["phases"] == {"digits:1.0.0 COMMITTED": COUNT}
    assert "failed" not in last["happened"], fleet.log()
    wait_for(lambda: not any(row.online for row in rows(fleet)), 20, "all to be offline")


def test_a_bad_version_goes_back_by_the_rule_and_halts_the_rollout(fleet: SimWorld) -> None:
    fleet.simulate(COUNT, "--bad-version", "1.1.0")
    fleet.wait_online(COUNT)
    fleet.wait_phase(fleet.bring("1.0.0", 1), Phase.SUCCEEDED)
    rollout = fleet.bring("1.1.0", 2)
    fleet.wait_phase(rollout, Phase.ROLLED_BACK)
    touched = {one["device_id"] for one in fleet.happenings("fetched")
               if one["rollout"] == rollout}  # fmt: skip
    assert len(touched) == 1  # the canary alone
    states = [one["state"] for one in fleet.happenings("reported") if one["rollout"] == rollout]
    assert states[-2:] == ["ROLLING_BACK", "ROLLED_BACK"]
    kinds = Counter(
        one.kind
        for one in list_events(
            fleet.home.deps, fleet.home.ctx(), EventFilter(device_id=touched.pop()), limit=1000
        )
    )
    assert kinds["rolled_back"] == 1
    assert kinds["report_ignored"] == 0


def test_a_manifest_with_a_foreign_signature_is_not_taken(fleet: SimWorld) -> None:
    """Negative control of the verification: the same road, one byte of the signature changed."""
    fleet.simulate(2)
    fleet.wait_online(2)
    deps = fleet.home.deps
    with deps.store.write() as conn:
        manifest = b'{"schema":1}'
        desired.put_desired(
            conn, "sim-00001", 1, {}, manifest, "sha256:00",
            [{"key_id": deps.signer.public_keys()[0].key_id, "signature": "AAAA"}],
            fleet.home.ctx().now,
        )  # fmt: skip
        outbox.append(conn, fleet.home.ctx().now, OutboxKind.DOORBELL, "sim-00001",
                      b'{"generation":1,"manifest_digest":"sha256:00"}', retain=True)  # fmt: skip
    deps.wake()
    wait_for(
        lambda: [one for one in fleet.happenings("failed") if "not signed" in one["detail"]],
        20,
        f"the device to refuse\n{fleet.log()}",
    )
    assert not fleet.happenings("fetched")


def test_a_token_with_too_few_uses_ends_with_its_reason(fleet: SimWorld) -> None:
    fleet.simulate(3, uses=2)
    assert fleet.process is not None
    assert fleet.process.wait(60) == 1
    assert "used up" in fleet.log()


def test_reports_are_sent_again_until_they_are_acknowledged(
    fleet: SimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller loses what it took in for a while: nothing is missing in the end."""
    lost = {"messages": 0}

    def forget(*args: object, **more: object) -> None:
        lost["messages"] += 1
        raise ConnectionError("lost on purpose")

    fleet.simulate(4)
    fleet.wait_online(4)
    with monkeypatch.context() as patched:
        patched.setattr("controller.mqtt.ingest.accept_spools", forget)
        rollout = fleet.bring("1.0.0", 1, ("100%",))
        wait_for(lambda: lost["messages"] >= 1, 30, "something to be lost")
    fleet.wait_phase(rollout, Phase.SUCCEEDED)
