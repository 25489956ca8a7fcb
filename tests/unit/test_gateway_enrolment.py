"""Enrolment over a real store: one use, one certificate, whatever is repeated and raced."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.domain.device import Capabilities
from controller.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    LightermanError,
    UnauthenticatedError,
)
from controller.services.certificates import check_certificate
from controller.services.devices import accept_device, get_device, list_devices, retire_device
from controller.services.enrolment import Enrolment, EnrolmentRequest, enrol_device
from controller.services.events import EventFilter, list_events
from controller.services.operators import issue_identity
from controller.services.tokens import create_token, list_tokens, revoke_token
from controller.store import devices
from controller.store.outbox import OutboxKind, take
from tests.support.gateway import NOW, Desk, new_csr, open_desk

CSRS = [new_csr()[0] for _ in range(8)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def secret(desk: Desk, **more: object) -> str:
    return create_token(desk.deps, desk.ctx(), **more).text.split(".")[1]  # type: ignore[arg-type]


def enrol(desk: Desk, used: str, csr: bytes = CSRS[0], **more: object) -> Enrolment:
    request = EnrolmentRequest(secret=used, csr_pem=csr, **more)  # type: ignore[arg-type]
    return enrol_device(desk.deps, desk.ctx("enrolment"), request)


def test_a_device_gets_a_certificate_a_profile_and_the_labels_of_its_token(desk: Desk) -> None:
    used = secret(desk, labels={"site": "berlin"})
    facts = Capabilities(arch="x86_64", runtimes={"onnxruntime": "1.32.0"})
    done = enrol(desk, used, device_id="pi-1", capabilities=facts)
    assert (done.device_id, done.pending) == ("pi-1", False)
    check_certificate(desk.deps, desk.ctx(), "device", "pi-1", done.certificate_pem)
    view = get_device(desk.deps, desk.ctx(), "pi-1")
    assert (view.profile, view.labels) == ("generic-x86-64", {"site": "berlin"})
    assert view.certificate_expires_at is not None


def test_a_thousand_replays_from_many_threads_are_one_success(desk: Desk) -> None:
    used = secret(desk)

    def attempt(number: int) -> str:
        try:
            return enrol(desk, used, CSRS[number % len(CSRS)]).device_id
        except DeniedError:
            return ""

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(1000)))
    winners = {name for name in found if name}
    assert len(winners) == 1
    # The key that won gets its answer again, each time; no other key gets any.
    assert sum(1 for name in found if name) == 1000 // len(CSRS)
    assert len(list_devices(desk.deps, desk.ctx())) == 1
    (token,) = list_tokens(desk.deps, desk.ctx())
    assert token.used == 1


def test_a_retry_with_the_same_key_gets_the_same_certificate(desk: Desk) -> None:
    used = secret(desk)
    first = enrol(desk, used)
    desk.pass_s(10 * 86400)  # the token expired meanwhile, the answer was lost on the way
    assert enrol(desk, used) == first


def test_a_token_for_three_is_good_for_three(desk: Desk) -> None:
    used = secret(desk, uses=3)
    for number in range(3):
        enrol(desk, used, CSRS[number])
    with pytest.raises(DeniedError, match=r"used up \(3 of 3\)"):
        enrol(desk, used, CSRS[3])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(uses=st.integers(1, 4), tries=st.lists(st.integers(0, 7), max_size=20))
def test_never_two_certificates_for_one_use(desk: Desk, uses: int, tries: list[int]) -> None:
    used = secret(desk, uses=uses)
    given_to: dict[int, bytes] = {}
    for number in tries:
        try:
            pem = enrol(desk, used, CSRS[number]).certificate_pem
        except DeniedError:
            assert len(given_to) == uses
            assert number not in given_to
            continue
        assert given_to.setdefault(number, pem) == pem
    assert len(given_to) == min(uses, len(set(tries)))


def test_tokens_end(desk: Desk) -> None:
    with pytest.raises(UnauthenticatedError, match="not known"):
        enrol(desk, "A" * 32)
    short = secret(desk, ttl_s=60.0)
    desk.pass_s(61)
    with pytest.raises(DeniedError, match="expired"):
        enrol(desk, short)
    gone = secret(desk)
    revoke_token(desk.deps, desk.ctx(), list_tokens(desk.deps, desk.ctx())[0].token_id)
    with pytest.raises(DeniedError, match="revoked"):
        enrol(desk, gone)
    assert list_devices(desk.deps, desk.ctx()) == []


def test_a_token_bound_to_hardware_is_good_for_no_other(desk: Desk) -> None:
    used = secret(desk, hardware_id="serial-7")
    with pytest.raises(DeniedError, match="other hardware"):
        enrol(desk, used, hardware_id="serial-8")
    assert enrol(desk, used, hardware_id="serial-7").device_id


def test_the_secret_is_stored_nowhere(desk: Desk, tmp_path: Path) -> None:
    used = secret(desk)
    enrol(desk, used)
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("desk.db*"))
    assert b"CERTIFICATE" in stored
    assert used.encode() not in stored


def test_a_pending_device_waits_for_a_person(desk: Desk) -> None:
    done = enrol(desk, secret(desk, pending=True), device_id="pi-1")
    assert done.pending
    assert get_device(desk.deps, desk.ctx(), "pi-1").state == "PENDING"
    assert accept_device(desk.deps, desk.ctx(), "pi-1").state == "ACTIVE"


def test_names_are_unique_across_all_roles(desk: Desk) -> None:
    issue_identity(desk.deps, desk.ctx(), "dash", "consumer")
    with pytest.raises(ConflictError, match="consumer"):
        enrol(desk, secret(desk), device_id="dash")
    enrol(desk, secret(desk), device_id="pi-1")
    with pytest.raises(ConflictError):
        issue_identity(desk.deps, desk.ctx(), "pi-1", "operator")
    for bad in ("controller", "server", "pi/1", "PI", "+", ""):
        with pytest.raises(InvalidError):
            issue_identity(desk.deps, desk.ctx(), bad, "operator")


def test_a_taken_id_stays_taken_until_the_device_is_retired(desk: Desk) -> None:
    enrol(desk, secret(desk), device_id="pi-1")
    again = secret(desk)
    with pytest.raises(ConflictError, match="exists"):
        enrol(desk, again, CSRS[1], device_id="pi-1")
    retire_device(desk.deps, desk.ctx(), "pi-1")
    assert enrol(desk, again, CSRS[1], device_id="pi-1").device_id == "pi-1"
    assert get_device(desk.deps, desk.ctx(), "pi-1").state == "ACTIVE"


def test_a_device_that_enrols_again_was_not_seen_yet(desk: Desk) -> None:
    enrol(desk, secret(desk), device_id="pi-1")
    with desk.deps.store.write() as conn:
        devices.update_device(conn, "pi-1", last_seen_at=NOW)
    retire_device(desk.deps, desk.ctx(), "pi-1")
    assert get_device(desk.deps, desk.ctx(), "pi-1").last_seen_at == NOW
    enrol(desk, secret(desk), CSRS[1], device_id="pi-1")
    assert get_device(desk.deps, desk.ctx(), "pi-1").last_seen_at is None


def test_who_is_retired_says_since_when_and_stays_so(desk: Desk) -> None:
    enrol(desk, secret(desk), device_id="pi-1")
    assert get_device(desk.deps, desk.ctx(), "pi-1").retired_at is None
    first = retire_device(desk.deps, desk.ctx(), "pi-1")
    began = desk.now
    desk.now += timedelta(days=1)
    again = retire_device(desk.deps, desk.ctx(), "pi-1")
    assert first.retired_at == again.retired_at == began
    assert again.retired_by == desk.ctx().actor
    (event,) = list_events(desk.deps, desk.ctx(), EventFilter(kinds=("device_retired",)))
    assert event.at == began
    # Enrolled anew it is not retired any more, and its old end is history.
    enrol(desk, secret(desk), CSRS[1], device_id="pi-1")
    assert get_device(desk.deps, desk.ctx(), "pi-1").retired_at is None


def test_retiring_revokes_and_asks_for_a_kick(desk: Desk) -> None:
    done = enrol(desk, secret(desk), device_id="pi-1")
    retire_device(desk.deps, desk.ctx(), "pi-1")
    with pytest.raises(DeniedError, match="revoked"):
        check_certificate(desk.deps, desk.ctx(), "device", "pi-1", done.certificate_pem)
    with desk.deps.store.read() as conn:
        assert [(row.kind, row.payload) for row in take(conn)] == [(OutboxKind.KICK, b"pi-1")]


def test_a_certificate_of_another_database_is_not_known(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with open_desk(other) as foreign:
        pem = enrol(foreign, secret(foreign), device_id="pi-1").certificate_pem
    with pytest.raises(UnauthenticatedError):
        check_certificate(desk.deps, desk.ctx(), "device", "pi-1", pem)


@pytest.mark.parametrize(
    "bad", [{"uses": 0}, {"ttl_s": 0.0}, {"uses": 2, "hardware_id": "x"}, {"labels": {"all": "x"}}]
)
def test_impossible_tokens_are_refused(desk: Desk, bad: dict[str, object]) -> None:
    with pytest.raises(LightermanError):
        secret(desk, **bad)
