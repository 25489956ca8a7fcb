"""The doctor on its roads: whose certificate is wrong, how, what to do. Real handshakes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from agent.doctor_road import Traveller, look_at_broker, look_at_controller
from agent.domain.ports import Identity
from agent.finding import Finding, Verdict
from agent.store.identity import FileIdentityStore
from controller.trust.authority import Authority
from controller.trust.names import Role, Subject
from controller.trust.signing import Signer
from examples.fleet.ports import free_port
from tests.support.link_server import HOSTS, LinkServer, Trust, now

HOUR = timedelta(hours=1)
ANEW = "lighterman-agent enroll --controller https://127.0.0.1:7444 --token TOKEN"

Change = Callable[[Identity], Identity]


def trust_with(begins: timedelta, hosts: tuple[str, ...] = HOSTS) -> Trust:
    """An authority whose server certificate begins then, and lives for an hour."""
    authority = Authority.create(now() - 48 * HOUR)
    server = authority.new_identity(Subject(Role.SERVER, "server"), now() + begins, 3600, hosts)
    return Trust(authority, server, Signer.create())


@contextmanager
def serving(trust: Trust) -> Iterator[LinkServer]:
    server = LinkServer(trust)
    try:
        yield server
    finally:
        server.stop()


def device_of(server: LinkServer, root: Path, change: Change = lambda i: i) -> Traveller:
    """A device that enrolled there; `change` is what went wrong since."""
    mine = server.trust.device("dev-1")
    identity = Identity(
        device_id="dev-1", project="default", certificate_pem=mine.issued.pem,
        key_pem=mine.key_pem, ca_pem=server.trust.authority.certificate_pem, signing_keys={},
        grpc_endpoint=server.grpc_endpoint, mqtt_endpoint=server.grpc_endpoint,
    )  # fmt: skip
    store = FileIdentityStore(root / "identity")
    store.keep_next(change(identity))
    store.promote()
    kept = store.current()
    assert kept is not None
    return Traveller(kept, root, now())


def with_certificate_of(authority: Authority, begins: timedelta) -> Change:
    made = authority.new_identity(Subject(Role.DEVICE, "dev-1"), now() + begins, 3600)
    return lambda i: replace(i, certificate_pem=made.issued.pem, key_pem=made.key_pem)


def both(who: Traveller) -> list[Finding]:
    return [look_at_controller(who), look_at_broker(who)]


def test_negative_control_a_sound_device_is_taken(tmp_path: Path) -> None:
    with serving(Trust.create()) as server:
        found = both(device_of(server, tmp_path))
    assert [f.verdict for f in found] == [Verdict.OK, Verdict.OK]
    assert found[0].text == f"{server.grpc_endpoint} answers and takes this device"


@pytest.mark.parametrize(
    ("code", "said", "verdict", "todo"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "the certificate of dev-1 was revoked at noon\nreason: "
         "stolen", Verdict.PROBLEM, ANEW),
        (grpc.StatusCode.UNAUTHENTICATED, "the certificate of dev-1 ended at noon",
         Verdict.PROBLEM, ANEW),
        (grpc.StatusCode.PERMISSION_DENIED, "device dev-1 is in quarantine\nfleetctl device accept"
         " dev-1 lets it back in", Verdict.PROBLEM, "fleetctl device accept dev-1 lets it"),
        (grpc.StatusCode.FAILED_PRECONDITION, "device dev-1 is pending\nan operator lets it in",
         Verdict.NOTE, "an operator lets it in"),
        (grpc.StatusCode.UNAVAILABLE, "no", Verdict.PROBLEM, "controller's log"),
    ],
)  # fmt: skip
def test_the_controllers_own_words_come_with_what_to_do(
    tmp_path: Path, code: grpc.StatusCode, said: str, verdict: Verdict, todo: str
) -> None:
    with serving(Trust.create()) as server:
        who = device_of(server, tmp_path)
        server.script.fail["GetDesired"] = (code, said)
        found = look_at_controller(who)
        assert server.script.hellos == [], "a second boot id would look like a stolen identity"
    assert (found.what, found.verdict) == ("controller", verdict)
    assert said.partition("\n")[0] in found.text
    assert "reason: stolen" not in said or "reason: stolen" in found.text
    assert todo in found.todo


@pytest.mark.parametrize(
    ("kept", "told"), [("fleet.example:17444", "fleet.example:17444"), ("", "127.0.0.1:7444")]
)
def test_it_enrols_anew_where_it_enrolled(tmp_path: Path, kept: str, told: str) -> None:
    with serving(Trust.create()) as server:
        who = device_of(server, tmp_path, lambda i: replace(i, enroll_endpoint=kept))
        server.script.fail["GetDesired"] = (grpc.StatusCode.PERMISSION_DENIED, "it was revoked")
        found = look_at_controller(who)
    assert f"enroll --controller https://{told} --token TOKEN" in found.todo


def test_an_expired_certificate_is_not_blamed_on_the_network(tmp_path: Path) -> None:
    with serving(trust_with(-HOUR / 2)) as server:
        ended = with_certificate_of(server.trust.authority, -2 * HOUR)
        found = both(device_of(server, tmp_path, ended))
    for one in found:
        assert one.verdict is Verdict.PROBLEM
        assert one.text.endswith("does not take this device's certificate: it has expired")
        assert ANEW in one.todo


def test_a_controller_that_was_set_up_anew_is_told_by_its_authority(tmp_path: Path) -> None:
    foreign = Authority.create(now())
    with serving(Trust.create()) as server:
        other = replace(device_of(server, tmp_path / "a").identity, ca_pem=foreign.certificate_pem)
        found = both(device_of(server, tmp_path / "b", lambda _: other))
    for one in found:
        assert "shows a certificate of another authority than this device's" in one.text
        assert "is it the right controller?" in one.todo
        assert ANEW in one.todo


def test_a_certificate_of_another_authority_is_not_taken(tmp_path: Path) -> None:
    with serving(Trust.create()) as server:
        stranger = with_certificate_of(Authority.create(now()), -HOUR / 2)
        found = both(device_of(server, tmp_path, stranger))
    for one in found:
        assert one.verdict is Verdict.PROBLEM
        assert "this device's certificate" in one.text
        assert ANEW in one.todo


@pytest.mark.parametrize(
    ("begins", "text", "todo"),
    [
        (24 * HOUR, "begins later", "set the clock of this device"),
        (-24 * HOUR, "has ended", "check the clock"),
    ],
)
def test_a_wrong_clock_is_named(tmp_path: Path, begins: timedelta, text: str, todo: str) -> None:
    with serving(trust_with(begins)) as server:
        found = both(device_of(server, tmp_path))
    for one in found:
        assert one.text.startswith("this device's clock says 20")
        assert text in one.text
        assert todo in one.todo


def test_a_certificate_for_other_names_is_named(tmp_path: Path) -> None:
    with serving(trust_with(-HOUR / 2, ("fleet.example",))) as server:
        found = both(device_of(server, tmp_path))
    for one in found:
        assert "is for other names" in one.text
        assert "`advertise`" in one.todo


def test_nobody_there_is_a_matter_of_the_network(tmp_path: Path) -> None:
    with serving(Trust.create()) as server:
        who = device_of(server, tmp_path)
    nobody = replace(who.identity, grpc_endpoint=f"127.0.0.1:{free_port()}")
    found = look_at_controller(replace(who, identity=nobody))
    assert "does not answer (connection refused)" in found.text
    assert "check the network" in found.todo
