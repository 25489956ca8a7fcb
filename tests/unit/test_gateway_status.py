"""One screen: counts that add up, and a sentence with a way out for each thing that is wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.services.devices import accept_device
from controller.services.status import NEVER_GRACE, ProcessFacts, StatusView, get_status
from controller.services.telemetry import mark_silent_offline, set_online
from controller.store import certificates, devices
from tests.support.gateway import NOW, Desk, open_desk
from tests.support.stores import seed_device

FINE = ProcessFacts("0.1.0", NOW, broker_ok=True, workers=1)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def status(desk: Desk, process: ProcessFacts = FINE) -> StatusView:
    return get_status(desk.deps, desk.ctx(), process)


def seed(desk: Desk, device_id: str, state: str = "ACTIVE", **values: object) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn, device_id, state)
        devices.update_device(conn, device_id, **{"profile": "intel-n100", **values})


def test_an_empty_controller_has_no_problem(desk: Desk) -> None:
    view = status(desk)
    assert view.problems == ()
    assert sum(view.devices.values()) == 0


def test_devices_are_counted_once_each(desk: Desk) -> None:
    seed(desk, "a", online=True)
    seed(desk, "b", last_seen_at=NOW)
    seed(desk, "f")
    for name, state in (("c", "PENDING"), ("d", "RETIRED"), ("e", "QUARANTINED")):
        seed(desk, name, state, online=True)
    assert status(desk).devices == {
        "online": 1,
        "offline": 1,
        "never_connected": 1,
        "pending": 1,
        "retired": 1,
        "quarantined": 1,
    }


def test_each_problem_names_devices_and_the_way_out(desk: Desk) -> None:
    seed(desk, "pi-off", last_seen_at=NOW)
    seed(desk, "pi-new", "PENDING")
    seed(desk, "pi-twin", "QUARANTINED")
    seed(desk, "pi-odd", profile=None, online=True)
    told = status(desk, replace(FINE, broker_ok=False)).problems
    assert len(told) == 5
    for name, way in (
        ("pi-off", "fleetctl device list"),
        ("pi-new", "fleetctl device accept"),
        ("pi-twin", "fleetctl device accept"),
        ("pi-odd", "fleetctl device show"),
    ):
        (sentence,) = [one for one in told if name in one]
        assert way in sentence
    accept_device(desk.deps, desk.ctx(), "pi-new")
    assert not [one for one in status(desk).problems if "pending" in one]


def test_many_devices_are_not_all_named(desk: Desk) -> None:
    for number in range(10):
        seed(desk, f"pi-{number}", last_seen_at=NOW)
    (sentence,) = status(desk).problems
    assert "10 devices are offline" in sentence
    assert sentence.endswith("pi-0, pi-1, pi-2 and 7 more")


def test_a_device_that_never_spoke_is_trouble_only_after_a_while(desk: Desk) -> None:
    seed(desk, "pi-new")
    assert status(desk).problems == ()
    desk.now += 2 * NEVER_GRACE
    (sentence,) = status(desk).problems
    assert sentence == (
        "1 device is enrolled for more than an hour and never connected; start the agent there:"
        " lighterman-agent run: pi-new"
    )


def test_what_runs_is_what_devices_said_last(desk: Desk) -> None:
    said = {"models": [{"model": "digits", "version": "1.0.0", "rung": "heavy"}]}
    seed(desk, "a", online=True, status=said)
    seed(desk, "b", online=True, status=said)
    seed(desk, "c", "RETIRED", status=said)
    assert [(one.model, one.version, one.devices) for one in status(desk).running] == [
        ("digits", "1.0.0", 2)
    ]


def test_an_offline_device_whose_certificate_ends_is_told_in_time(desk: Desk) -> None:
    seed(desk, "pi-old")
    with desk.deps.store.write() as conn:
        certificates.insert_certificate(
            conn,
            serial="1",
            role="device",
            name="pi-old",
            public_key_digest="sha256:0",
            pem=b"",
            not_before=NOW,
            not_after=NOW.replace(day=NOW.day + 2),
            now=NOW,
        )
    assert any("enrol again" in one for one in status(desk).problems)


def test_presence_changes_are_events_and_silence_is_offline(desk: Desk) -> None:
    seed(desk, "a")
    seed(desk, "b")
    assert set_online(desk.deps, desk.ctx(), {"a": True, "b": True, "ghost": True}) == {"a", "b"}
    assert set_online(desk.deps, desk.ctx(), {"a": True}) == frozenset()
    restart = desk.now.replace(minute=desk.now.minute + 5)
    desk.pass_s(310)
    set_online(desk.deps, desk.ctx(), {"a": True})
    assert mark_silent_offline(desk.deps, desk.ctx(), restart) == ["b"]
    assert status(desk).devices["online"] == 1


def test_a_full_disk_is_a_problem_before_anything_fails(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(desk).problems == ()
    free = desk.deps.blobs.free_bytes
    monkeypatch.setattr("controller.blobs.blobs.RESERVE_BYTES", 2 * free)
    (problem,) = status(desk).problems
    assert problem.startswith("the controller's disk is full: ")
    assert "make room in the data directory" in problem
