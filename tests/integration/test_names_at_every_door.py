"""A name outside `[a-z0-9-]{1,63}` is refused at every door with the allowed form, and is nowhere.

Doors: enrolment by RPC, by the agent's command and by the name in a request for a certificate; the
issue of operators; labels of a token; a topic.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from controller.mqtt.client import Outgoing
from controller.store.tables import certificate, device, event, operator, token
from controller.trust.authority import read_certificate
from lighterman.v1 import device_pb2, enrollment_pb2, fleet_pb2, topics
from tests.support.agent_world import AgentProcess
from tests.support.gateway import Running, new_csr, running
from tests.support.wait import wait_for

BAD = (
    "A", "a b", "a_b", "a.b", "a/b", "a+b", "#", "+", "a\n", "\x00", "..", "ä", "٣", "a" * 64,
    "$SYS", "%c", "controller", "server", "all",
)  # fmt: skip
FORM = "names are 1 to 63 of a-z, 0-9 and -"
RESERVED = "is reserved for the controller itself"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("names")) as started:
        yield started


def stored(home: Running) -> list[str]:
    with home.deps.store.read() as conn:
        tables = (device, certificate, operator, token, event)
        return [repr(row) for table in tables for row in conn.execute(select(table))]


def new_token(home: Running) -> str:
    made = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10)
    return str(made.token)


def refused(call: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    assert isinstance(call.value, grpc.Call)
    assert call.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return call.value.details() or ""


@pytest.mark.parametrize("name", BAD)
def test_no_device_enrols_under_it(home: Running, name: str) -> None:
    secret = new_token(home)
    before = stored(home)
    with pytest.raises(grpc.RpcError) as caught:
        home.enrol(name, secret)
    told = refused(caught)
    assert FORM in told or RESERVED in told
    assert stored(home) == before
    assert home.enrol("", secret).device_id, "the token was not used up"


@pytest.mark.parametrize("name", ["A B", "a/b", "controller"])
def test_the_agent_says_the_allowed_form(home: Running, tmp_path: Path, name: str) -> None:
    agent = AgentProcess(tmp_path / "agent", name)
    said = agent.enrol(f"https://{home.listening.enroll}", new_token(home))
    assert said.returncode == 1
    assert said.stderr.startswith("error: ")
    assert FORM in said.stderr or RESERVED in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("name", ["controller", "#", "other-device"])
def test_what_a_certificate_request_calls_itself_counts_for_nothing(
    home: Running, name: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    uri = x509.UniformResourceIdentifier("urn:lighterman:operator:root")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    answer = home.enrolment().Enroll(
        enrollment_pb2.EnrollRequest(
            protocol_min=1, protocol_max=1, token_secret=new_token(home).split(".")[1],
            csr_pem=request,
        ),
        timeout=10,
    )  # fmt: skip
    subject_of = read_certificate(answer.certificate_pem).subject
    assert subject_of is not None
    assert (subject_of.role, subject_of.name) == ("device", answer.device_id)
    assert name not in (answer.device_id, *x509_names(answer.certificate_pem))


def x509_names(pem: bytes) -> list[str]:
    found = x509.load_pem_x509_certificate(pem).subject
    return [str(attribute.value) for attribute in found]


@pytest.mark.parametrize("name", ["A", "a b", "a/b", "ä", "x" * 64, "controller"])
def test_no_operator_is_issued_under_it(home: Running, tmp_path: Path, name: str) -> None:
    before = stored(home)
    done = subprocess.run(
        [
            sys.executable, "-m", "controller", "operator", "issue", name,
            "--data-dir", str(home.folder), "--out", str(tmp_path / "x.json"),
        ],
        env={n: v for n, v in os.environ.items() if not n.startswith("LIGHTERMAN_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert FORM in done.stderr or RESERVED in done.stderr
    assert not (tmp_path / "x.json").exists()
    assert stored(home) == before


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "profile", "device", "all", "x" * 64, "ä", "a=b"]
)
def test_no_token_gives_such_labels(home: Running, name: str) -> None:
    before = stored(home)
    with pytest.raises(grpc.RpcError) as caught:
        home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(labels={name: "x"}), timeout=10)
    assert "label" in refused(caught)
    assert stored(home) == before


@pytest.mark.parametrize("name", ["A", "a b", "ä", "a" * 64, "..", "%c"])
def test_a_topic_of_such_a_name_is_counted_and_ignored(home: Running, name: str) -> None:
    """Published by the controller's own right: devices cannot even speak there."""
    side = home.controller._side
    counted, before = side.ingest.counts["malformed"], stored(home)
    envelope = device_pb2.Envelope(protocol=1, boot_id="1-a", seq=1)
    envelope.event.kind = "boot"
    for suffix in (topics.UP_EVENT, topics.UP_PRESENCE):
        payload = envelope.SerializeToString()
        side.client.publish(Outgoing(topics.device(name, suffix), payload, retain=False))
    wait_for(lambda: side.ingest.counts["malformed"] == counted + 2, 20, "both to be counted")
    assert stored(home) == before


def test_negative_control_a_good_name_passes_every_door(home: Running, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "agent", "a-good-name-1")
    assert agent.enrol(f"https://{home.listening.enroll}", new_token(home)).returncode == 0
    assert new_csr()[0].startswith(b"-----BEGIN")
    labelled = fleet_pb2.CreateTokenRequest(labels={"site": "berlin"})
    assert home.fleet().CreateToken(labelled, timeout=10).token
