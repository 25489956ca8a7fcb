"""Enrolment: the key never leaves the device, and a kill anywhere costs no token."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from agent.domain.capability import Capabilities
from agent.domain.ports import Identity
from agent.errors import StoreError
from agent.link.enrol import Enrolled, Enrolment, enrol
from agent.link.errors import EnrolError, TrustError
from agent.link.keys import fits_key, read_certificate
from agent.store.identity import FileIdentityStore
from tests.support.link_server import LinkServer, Trust

SEEN = Capabilities("x86_64", "Debian", "test", "", (), {"onnxruntime": "1.32.0"})


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(Trust.create())
    yield made
    made.stop()


def enrol_at(
    server: LinkServer, store: FileIdentityStore, token: str = "", device_id: str = "dev-1"
) -> Enrolled:
    wanted = Enrolment(server.url, token or server.trust.token(), device_id, "serial-1", SEEN)
    return enrol(wanted, store, lambda _: None, tries=2)


def test_a_device_enrols(server: LinkServer, tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path)
    done = enrol_at(server, store)
    asked = server.script.enrolled[0]
    known = store.current()
    assert known == done.identity
    assert (known.device_id, known.project) == ("dev-1", "default")
    assert known.grpc_endpoint == server.grpc_endpoint
    assert known.enroll_endpoint == f"127.0.0.1:{server.enrol_port}"
    assert list(known.signing_keys) == [k.key_id for k in server.trust.signer.public_keys()]
    assert fits_key(known.certificate_pem, known.key_pem)
    assert read_certificate(store.certificate_path()).common_name == "dev-1"
    assert asked.hardware_id == "serial-1"
    assert dict(asked.capabilities.runtimes) == {"onnxruntime": "1.32.0"}
    assert b"PRIVATE" not in asked.SerializeToString()
    assert Path(store.key_path()).stat().st_mode & 0o077 == 0


def test_the_controller_may_give_the_name(server: LinkServer, tmp_path: Path) -> None:
    done = enrol_at(server, FileIdentityStore(tmp_path), device_id="")
    assert done.identity.device_id == "given-1"


def test_a_lost_answer_gives_the_same_certificate(server: LinkServer, tmp_path: Path) -> None:
    server.script.fail_after["Enroll"] = (grpc.StatusCode.UNAVAILABLE, "cut after issuing")
    enrol_at(server, FileIdentityStore(tmp_path))
    first, second = server.script.enrolled
    assert first.csr_pem == second.csr_pem


def test_a_kill_between_issue_and_store_costs_no_token(server: LinkServer, tmp_path: Path) -> None:
    class Killed(FileIdentityStore):
        def keep_next(self, identity: Identity) -> None:
            raise StoreError("killed here")

    with pytest.raises(StoreError):
        enrol_at(server, Killed(tmp_path))
    assert FileIdentityStore(tmp_path).current() is None
    done = enrol_at(server, FileIdentityStore(tmp_path))
    first, second = server.script.enrolled
    assert first.csr_pem == second.csr_pem
    issued = x509.load_pem_x509_certificate(done.identity.certificate_pem)
    assert fits_key(done.identity.certificate_pem, done.identity.key_pem)
    assert issued.serial_number > 0


def test_a_new_key_does_not_get_the_certificate_of_a_used_token(
    server: LinkServer, tmp_path: Path
) -> None:
    enrol_at(server, FileIdentityStore(tmp_path / "a"))
    with pytest.raises(EnrolError, match="used up") as caught:
        enrol_at(server, FileIdentityStore(tmp_path / "b"))
    assert not caught.value.retryable


def test_a_working_identity_is_never_overwritten(server: LinkServer, tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path)
    before = enrol_at(server, store).identity
    other = server.trust.token("Z" * 32)
    with pytest.raises(EnrolError, match="enrolled already, as dev-1"):
        enrol_at(server, store, token=other, device_id="dev-2")
    assert store.current() == before
    assert len(server.script.enrolled) == 1


def test_the_server_has_to_be_of_the_authority_in_the_token(
    server: LinkServer, tmp_path: Path
) -> None:
    foreign = Trust.create().token()
    with pytest.raises(EnrolError, match="not the one that made this token"):
        enrol_at(server, FileIdentityStore(tmp_path), token=foreign)
    assert server.script.enrolled == []


def test_an_answer_for_another_key_is_not_stored(server: LinkServer, tmp_path: Path) -> None:
    foreign = server.trust.device("dev-1").issued.pem

    class Mixed(FileIdentityStore):
        def request(self, purpose: str) -> tuple[bytes, bytes] | None:
            kept = super().request(purpose)
            # The device's own key was lost and replaced: the certificate does not fit it.
            return None if kept is None else (server.trust.device("x").key_pem, kept[1])

    assert foreign
    store = FileIdentityStore(tmp_path)
    server.script.fail_after["Enroll"] = (grpc.StatusCode.PERMISSION_DENIED, "stop here")
    with pytest.raises(EnrolError, match="stop here"):
        enrol_at(server, store)
    with pytest.raises(EnrolError, match="does not belong to the key"):
        enrol_at(server, Mixed(tmp_path))
    assert store.current() is None


def test_a_controller_of_another_protocol_is_named(server: LinkServer, tmp_path: Path) -> None:
    server.script.protocol = 7
    with pytest.raises(EnrolError, match="chose protocol 7, this agent speaks 1 to 1"):
        enrol_at(server, FileIdentityStore(tmp_path))


def test_a_refusal_keeps_the_words_of_the_controller(server: LinkServer, tmp_path: Path) -> None:
    server.script.fail["Enroll"] = (
        grpc.StatusCode.PERMISSION_DENIED,
        "this token has expired\nmake another: fleetctl admin token create",
    )
    with pytest.raises(EnrolError) as caught:
        enrol_at(server, FileIdentityStore(tmp_path))
    assert caught.value.message == "this token has expired"
    assert caught.value.hint == "make another: fleetctl admin token create"


def test_a_busy_controller_is_not_asked_again_before_it_said(
    server: LinkServer, tmp_path: Path
) -> None:
    server.script.fail["Enroll"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
    server.script.retry_after_s = 42.5
    waits: list[float] = []
    wanted = Enrolment(server.url, server.trust.token(), "dev-1", "", SEEN)
    with pytest.raises(EnrolError, match="too many, tried 3 times"):
        enrol(wanted, FileIdentityStore(tmp_path), waits.append, tries=3)
    assert len(waits) == 2
    assert all(42.5 <= wait <= 42.5 + 8 for wait in waits)


def test_signing_keys_have_to_bear_their_own_name() -> None:
    from agent.link.trust import check_keys

    with pytest.raises(TrustError, match="does not fit its own name"):
        check_keys([("0" * 16, b"k" * 32)])
    with pytest.raises(TrustError, match="no signing key"):
        check_keys([])
