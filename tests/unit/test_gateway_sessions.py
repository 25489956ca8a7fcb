"""What an enrolled device asks: hello, clones, renewal, and only its own builds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.domain.device import Capabilities
from controller.errors import (
    DeniedError,
    InvalidError,
    LightermanError,
    NotFoundError,
    RefusedError,
)
from controller.services.certificates import check_certificate
from controller.services.device_sessions import (
    HelloFacts,
    check_live_boot,
    fetch_desired,
    greet_device,
    open_build,
    renew_certificate,
)
from controller.services.devices import (
    accept_device,
    get_device,
    label_devices,
    list_devices,
    retire_device,
)
from controller.store.desired import put_desired
from controller.trust.authority import read_certificate
from tests.support.gateway import Desk, new_csr, open_desk
from tests.support.stores import digest, seed_device

PI = Capabilities(
    arch="aarch64", device_model="Raspberry Pi 5 Model B", runtimes={"onnxruntime": "1.32.0"}
)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            seed_device(conn, "pi-1")
            seed_device(conn, "pi-2")
        yield opened


def hello(desk: Desk, boot_id: str, low: int = 1, high: int = 1, applied: int = 0) -> None:
    facts = HelloFacts(low, high, boot_id, PI, applied)
    greet_device(desk.deps, desk.ctx("pi-1"), "pi-1", facts)


def state(desk: Desk, device_id: str = "pi-1") -> str:
    return get_device(desk.deps, desk.ctx(), device_id).state


def test_hello_matches_a_profile_by_what_the_device_reports(desk: Desk) -> None:
    hello(desk, "1-a", applied=3)
    view = get_device(desk.deps, desk.ctx(), "pi-1")
    assert (view.profile, view.applied_generation) == ("raspberry-pi-5", 3)
    assert view.capabilities == PI


@pytest.mark.parametrize(("low", "high"), [(2, 3), (0, 0)])
def test_without_a_common_protocol_both_ranges_are_named(desk: Desk, low: int, high: int) -> None:
    with pytest.raises(RefusedError, match=rf"speaks {low} to {high}, the controller 1 to 1"):
        hello(desk, "1-a", low, high)


def test_newer_boots_and_repeated_hellos_are_fine(desk: Desk) -> None:
    for boot_id in ("1-a", "1-a", "2-b", "10-c", "10-c"):
        hello(desk, boot_id)
    assert state(desk) == "ACTIVE"


@pytest.mark.parametrize("clone", ["6-x", "5-b"])
def test_an_older_or_equal_boot_that_speaks_again_is_a_clone(desk: Desk, clone: str) -> None:
    hello(desk, "6-a")
    with pytest.raises(DeniedError) as caught:
        hello(desk, clone)
    assert "two holders of one identity" in caught.value.text()
    assert state(desk) == "QUARANTINED"
    with pytest.raises(DeniedError, match="quarantine"):
        fetch_desired(desk.deps, desk.ctx(), "pi-1")
    accept_device(desk.deps, desk.ctx(), "pi-1")
    hello(desk, "7-a")
    assert state(desk) == "ACTIVE"


def test_a_late_message_of_an_ended_boot_is_no_clone(desk: Desk) -> None:
    hello(desk, "1-a")
    hello(desk, "2-b")
    assert not check_live_boot(desk.deps, desk.ctx(), "pi-1", "1-a")
    assert state(desk) == "ACTIVE"
    assert check_live_boot(desk.deps, desk.ctx(), "pi-1", "2-b")
    desk.pass_s(11)
    assert not check_live_boot(desk.deps, desk.ctx(), "pi-1", "1-a")
    assert state(desk) == "QUARANTINED"


def test_a_pending_device_may_greet_and_nothing_else(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn, "new", "PENDING")
    view = greet_device(desk.deps, desk.ctx(), "new", HelloFacts(1, 1, "1-a", PI, 0))
    assert view.pending
    with pytest.raises(RefusedError) as caught:
        fetch_desired(desk.deps, desk.ctx(), "new")
    assert "fleetctl device accept new" in caught.value.text()


def test_a_retired_device_is_denied(desk: Desk) -> None:
    retire_device(desk.deps, desk.ctx(), "pi-1")
    with pytest.raises(DeniedError, match="retired"):
        hello(desk, "1-a")


def give(desk: Desk, device_id: str, generation: int, build: str) -> None:
    entry = {"ladder": [{"target": {"digest": build}}, {"rung": "off", "target": None}]}
    with desk.deps.store.write() as conn:
        put_desired(
            conn,
            device_id,
            generation,
            {"digits": entry},
            b"{}",
            digest("{}"),
            [{"key_id": "k", "signature": "AA=="}],
            desk.now,
        )


def test_a_device_fetches_its_own_builds_and_no_other(desk: Desk) -> None:
    mine = desk.deps.blobs.put_bytes(b"mine" * 1000)
    theirs = desk.deps.blobs.put_bytes(b"theirs")
    give(desk, "pi-1", 1, mine)
    give(desk, "pi-2", 1, theirs)
    length, chunks = open_build(desk.deps, desk.ctx(), "pi-1", mine, 3996, frozenset())
    assert (length, b"".join(chunks)) == (4000, b"mine")
    for digest_of in (theirs, digest("none"), "", "sha256:../../etc/passwd"):
        with pytest.raises(DeniedError):
            open_build(desk.deps, desk.ctx(), "pi-1", digest_of, 0, frozenset())
    for offset in (-1, 4001):
        with pytest.raises(InvalidError):
            open_build(desk.deps, desk.ctx(), "pi-1", mine, offset, frozenset())


def test_a_device_without_an_order_has_generation_0(desk: Desk) -> None:
    assert fetch_desired(desk.deps, desk.ctx(), "pi-1").generation == 0


def test_a_renewal_is_repeatable_and_the_old_certificate_still_works(desk: Desk) -> None:
    first_csr, second_csr = new_csr()[0], new_csr()[0]
    first = renew_certificate(desk.deps, desk.ctx(), "pi-1", first_csr)
    assert renew_certificate(desk.deps, desk.ctx(), "pi-1", first_csr) == first
    desk.pass_s(20 * 86400)
    second = renew_certificate(desk.deps, desk.ctx(), "pi-1", second_csr)
    assert second != first
    for pem in (first, second):
        check_certificate(desk.deps, desk.ctx(), "device", "pi-1", pem)
    assert read_certificate(second).not_after > read_certificate(first).not_after
    desk.pass_s(11 * 86400)
    with pytest.raises(LightermanError, match="ended"):
        check_certificate(desk.deps, desk.ctx(), "device", "pi-1", first)


def test_labels_select_and_reserved_names_are_refused(desk: Desk) -> None:
    count = label_devices(desk.deps, desk.ctx(), device_ids=["pi-1"], values={"site": "berlin"})
    assert count == 1
    assert [v.device_id for v in list_devices(desk.deps, desk.ctx(), "site=berlin")] == ["pi-1"]
    assert [v.device_id for v in list_devices(desk.deps, desk.ctx(), "!site")] == ["pi-2"]
    label_devices(desk.deps, desk.ctx(), selector="all", remove=["site"])
    assert list_devices(desk.deps, desk.ctx(), "site") == []
    for name in ("profile", "device", "arch", "all", "", "a=b", "-x"):
        with pytest.raises(InvalidError):
            label_devices(desk.deps, desk.ctx(), device_ids=["pi-1"], values={name: "x"})
    with pytest.raises(NotFoundError, match="no device pi-3"):
        label_devices(desk.deps, desk.ctx(), device_ids=["pi-3"], values={"a": "b"})


def test_the_first_error_of_a_labelling_changes_no_device(desk: Desk) -> None:
    with pytest.raises(NotFoundError):
        label_devices(desk.deps, desk.ctx(), device_ids=["pi-1", "zz"], values={"a": "b"})
    assert list_devices(desk.deps, desk.ctx(), "a") == []
