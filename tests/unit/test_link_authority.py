"""The first connection is authenticated by the fingerprint in the token, or it does not happen."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.link.authority import (
    Endpoint,
    find_authority,
    parse_endpoint,
    parse_token,
    parse_url,
)
from agent.link.errors import EnrolError, LinkFault
from examples.fleet.ports import free_port
from tests.support.link_server import LinkServer, Trust


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(Trust.create())
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("https://fleet.example", "fleet.example", 7444),
        ("https://fleet.example:9000/", "fleet.example", 9000),
        ("https://[::1]:7444", "::1", 7444),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert parse_url(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    ["", "fleet.example", "http://fleet.example", "https://", "https://a:b", "https://u@a",
     "https://a/path", "https://a?x=1", "ftp://a:7444"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(EnrolError, match="not the address"):
        parse_url(text)


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:0", "host:70000", "host:x"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_endpoint(text)


def test_an_endpoint_keeps_its_brackets_on_paper() -> None:
    assert str(parse_endpoint("[::1]:7443")) == "[::1]:7443"


@pytest.mark.parametrize(
    "text", ["", "lm1.", "lm2.ABCDEFGHIJ." + "0" * 64, "lm1.ABCDEFGHIJ." + "0" * 63]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(EnrolError, match="not an enrolment token"):
        parse_token(text)


def test_the_authority_of_the_token_is_found(server: LinkServer) -> None:
    trust = server.trust
    pem = find_authority(Endpoint("127.0.0.1", server.enrol_port), trust.authority.fingerprint)
    assert pem.strip() == trust.authority.certificate_pem.decode().strip()


def test_another_port_of_the_same_controller_is_named(server: LinkServer) -> None:
    there = Endpoint("127.0.0.1", server.port)
    with pytest.raises(EnrolError, match="not the port for enrolment") as caught:
        find_authority(there, server.trust.authority.fingerprint)
    assert str(there) in caught.value.message
    assert caught.value.hint.endswith("--controller https://127.0.0.1:7444")
    # The negative control: of another controller the port does not matter.
    with pytest.raises(EnrolError, match="not the one that made this token"):
        find_authority(there, Trust.create().authority.fingerprint)


def test_a_port_that_speaks_no_grpc_is_named(tmp_path: Path) -> None:
    """The web or the broker: TLS of the same authority, and then silence."""
    trust = Trust.create()
    chain = trust.server.issued.pem + trust.authority.certificate_pem
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(trust.server.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            raw, _ = listener.accept()
            with raw, context.wrap_socket(raw, server_side=True) as tls, suppress(OSError):
                tls.recv(1)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        there = Endpoint("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(EnrolError, match="speaks no gRPC: it is not the port for enrolment"):
            find_authority(there, trust.authority.fingerprint)
        thread.join(10)


def test_another_controller_is_refused(server: LinkServer) -> None:
    other = Trust.create().authority.fingerprint
    with pytest.raises(EnrolError, match="not the one that made this token") as caught:
        find_authority(Endpoint("127.0.0.1", server.enrol_port), other)
    # What was expected, what is there, what to do: nobody has to read the code.
    assert caught.value.hint.splitlines() == [
        f"authority in the token  sha256:{other}",
        f"  authority at the server sha256:{server.trust.authority.fingerprint}",
        "  check the address; or make a token with that controller: fleetctl admin token create",
    ]
    assert caught.value.fault is LinkFault.UNTRUSTED
    assert not caught.value.retryable


def test_nobody_there_can_be_tried_again() -> None:
    with pytest.raises(EnrolError, match="does not answer") as caught:
        find_authority(Endpoint("127.0.0.1", free_port()), "0" * 64, timeout_s=2)
    assert caught.value.retryable
