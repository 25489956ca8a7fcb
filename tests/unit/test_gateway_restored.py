"""A database that was restored from a backup: its devices have followed orders that it forgot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.domain.device import Capabilities
from controller.services.desired import AHEAD_MOST, change_desired
from controller.services.device_sessions import HelloFacts, greet_device
from controller.services.reports import DeviceEnvelope, EventBody, accept_reports
from controller.store.devices import raise_applied
from controller.store.events import list_events
from tests.support.gateway import Desk, open_desk
from tests.support.stores import PROJECT, seed_device


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def order(desk: Desk, applied: int | None = None) -> int:
    """The generation of the next order for pi-1, which says what it has applied."""
    with desk.deps.store.write() as conn:
        if applied is not None:
            raise_applied(conn, "pi-1", applied)
        return change_desired(conn, desk.deps, desk.ctx(), "pi-1", "digits", {"version": "1.0.0"})


def test_orders_go_on_above_what_a_device_has_followed(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert [order(desk), order(desk, applied=1)] == [1, 2]  # as ever: one more
    assert [order(desk, applied=9), order(desk), order(desk, applied=11)] == [10, 11, 12]


def test_a_device_without_a_desired_state_may_have_followed_some(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert order(desk, applied=5) == 6


def test_a_device_that_claims_a_number_out_of_reach_is_not_followed(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert order(desk, applied=AHEAD_MOST + 1) == 1
    assert order(desk, applied=2**62) == 2


# ---- reports that were acknowledged and are not in the restored database -------------------------

BOOT = "0000000001-aaaa"


def say(desk: Desk, *numbers: int, acknowledged: int = 0) -> int:
    """Events of these numbers; gives how far they are stored then."""
    entries = [DeviceEnvelope(BOOT, n, EventBody("boot"), acknowledged) for n in numbers]
    (ack,) = accept_reports(desk.deps, desk.ctx("pi-1"), "pi-1", entries).acks
    return ack.seq


def stored(desk: Desk) -> list[int]:
    with desk.deps.store.read() as conn:
        rows = list_events(conn, PROJECT, device_id="pi-1", limit=100)
    return [row.seq for row in rows if row.boot_id == BOOT and row.seq is not None]


def gaps(desk: Desk) -> list[str]:
    with desk.deps.store.read() as conn:
        rows = list_events(conn, PROJECT, kinds=("reports_forgotten",), limit=100)
    return [str(row.details["reports"]) for row in rows]


def hello(desk: Desk, *boots: str) -> tuple[tuple[str, int], ...]:
    facts = HelloFacts(1, 1, BOOT, Capabilities(), 0, boots)
    return greet_device(desk.deps, desk.ctx("pi-1"), "pi-1", facts).stored


@pytest.fixture
def restored(desk: Desk) -> Desk:
    """It knows 1 and 2 of the boot; the device was acknowledged up to 5."""
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert say(desk, 1, 2) == 2
    return desk


def test_what_was_forgotten_is_an_event_and_the_log_goes_on_behind_it(restored: Desk) -> None:
    assert hello(restored, BOOT, "0000000000-old") == ((BOOT, 2), ("0000000000-old", 0))
    assert say(restored, 6, 7) == 2, "nobody said that the gap can never be filled"
    assert gaps(restored) == []
    assert say(restored, 6, 7, acknowledged=5) == 7
    assert stored(restored) == [1, 2, 6, 7]
    assert gaps(restored) == ["3 to 5"]
    assert say(restored, 6, 7, acknowledged=5) == 7  # once more, as messages are
    assert say(restored, 8) == 8
    assert gaps(restored) == ["3 to 5"]


def test_a_message_on_its_way_is_no_gap(restored: Desk) -> None:
    """The negative controls: what a device still holds is waited for."""
    assert say(restored, 4, acknowledged=2) == 2  # 3 was sent and comes again
    assert say(restored, 9, acknowledged=5) == 2  # 6 is not acknowledged
    assert say(restored, 2**60, acknowledged=2**60 - 1) == 2  # no number that can be kept
    assert say(restored, 3, acknowledged=2) == 3
    assert gaps(restored) == []


def test_a_boot_that_the_database_never_heard_of_is_taken_from_where_it_is(restored: Desk) -> None:
    entry = DeviceEnvelope("0000000002-bbbb", 31, EventBody("boot"), 30)
    (ack,) = accept_reports(restored.deps, restored.ctx("pi-1"), "pi-1", [entry]).acks
    assert ack.seq == 31
    assert gaps(restored) == ["1 to 30"]
