"""A certificate is renewed without ever being without one that worked."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from agent.domain.capability import Capabilities
from agent.domain.ports import Identity
from agent.link.authority import Endpoint
from agent.link.backoff import Backoff
from agent.link.channel import Credentials
from agent.link.client import ControllerClient
from agent.link.errors import LinkError, TrustError
from agent.link.keys import fits_key, read_certificate
from agent.link.renewal import credentials_of, renew, renewal_due_at
from agent.store.identity import FileIdentityStore
from tests.support.link_server import LinkServer, Trust, now

SEEN = Capabilities("x86_64", "", "", "", ())


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(Trust.create())
    yield made
    made.stop()


class Device:
    """An enrolled device and its calls."""

    def __init__(self, server: LinkServer, root: Path) -> None:
        self.endpoint = Endpoint("127.0.0.1", server.port)
        self.store = FileIdentityStore(root)
        made = server.trust.device("dev-1")
        keys = {k.key_id: k.public_key for k in server.trust.signer.public_keys()}
        self.store.keep_next(
            Identity(
                "dev-1", "default", made.issued.pem, made.key_pem,
                server.trust.authority.certificate_pem, keys, server.grpc_endpoint, "127.0.0.1:1",
            )
        )  # fmt: skip
        self.store.promote()
        self.first = self.current()
        self.client = ControllerClient(self.endpoint, credentials_of(self.first))
        self.proven: list[bytes] = []

    def current(self) -> Identity:
        found = self.store.current()
        assert found is not None
        return found

    def prove(self, credentials: Credentials) -> None:
        client = ControllerClient(self.endpoint, credentials)
        try:
            client.hello("0000000001-00000000", SEEN, 0)
        finally:
            client.close()
        self.proven.append(credentials.certificate_pem)

    def renew(self) -> Identity:
        return renew(self.store, self.client.renew, self.prove)


@pytest.fixture
def device(server: LinkServer, tmp_path: Path) -> Iterator[Device]:
    made = Device(server, tmp_path)
    yield made
    made.client.close()


def test_a_new_key_and_certificate_take_over_once_they_worked(device: Device) -> None:
    renewed = device.renew()
    assert renewed == device.current()
    assert renewed.key_pem != device.first.key_pem
    assert fits_key(renewed.certificate_pem, renewed.key_pem)
    assert device.proven == [renewed.certificate_pem]
    assert device.store.next() is None
    device.client.use(credentials_of(renewed))
    device.client.hello("0000000001-00000000", SEEN, 0)


def test_the_old_one_stays_until_the_new_one_worked(server: LinkServer, device: Device) -> None:
    server.script.fail["Hello"] = (grpc.StatusCode.UNAVAILABLE, "away")
    with pytest.raises(LinkError):
        device.renew()
    assert device.current() == device.first
    del server.script.fail["Hello"]
    renewed = device.renew()
    assert device.current() == renewed
    assert len(server.script.renewed) == 1, "the certificate that waited was used"


def test_a_lost_answer_asks_again_with_the_same_key(server: LinkServer, device: Device) -> None:
    answers: list[bytes] = []

    def lose_first(csr_pem: bytes) -> tuple[bytes, bytes]:
        answers.append(csr_pem)
        if len(answers) == 1:
            raise LinkError("cut after issuing")
        return device.client.renew(csr_pem)

    for _ in range(2):
        try:
            renew(device.store, lose_first, device.prove)
        except LinkError:
            assert device.current() == device.first
    assert answers[0] == answers[1]
    assert device.current() != device.first


def test_a_candidate_that_is_refused_for_good_is_replaced(
    server: LinkServer, device: Device
) -> None:
    server.script.fail["Hello"] = (grpc.StatusCode.PERMISSION_DENIED, "revoked")
    with pytest.raises(LinkError, match="revoked"):
        device.renew()
    with pytest.raises(LinkError, match="revoked"):
        device.renew()
    assert device.current() == device.first
    del server.script.fail["Hello"]
    device.renew()
    assert len(server.script.renewed) == 2


def test_a_certificate_for_another_key_is_refused(server: LinkServer, device: Device) -> None:
    foreign = server.trust.device("dev-1").issued.pem
    with pytest.raises(TrustError, match="does not belong to the key"):
        renew(device.store, lambda _: (foreign, b""), device.prove)
    assert device.current() == device.first
    assert device.store.next() is None


def test_it_is_due_around_two_thirds_of_its_life(device: Device) -> None:
    path = device.store.certificate_path()
    facts = read_certificate(path)
    life = (facts.not_after - facts.not_before).total_seconds()
    shares = set()
    for _ in range(50):
        due = renewal_due_at(path, Backoff())
        share = (due - facts.not_before).total_seconds() / life
        assert 2 / 3 - 0.051 <= share <= 2 / 3 + 0.051
        shares.add(round(share, 4))
    assert len(shares) > 20, "not all devices at the same moment"
    assert facts.not_before < now() < facts.not_after


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="is no certificate"):
        read_certificate(str(path))
