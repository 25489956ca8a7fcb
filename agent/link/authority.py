"""Finds the controller's certificate authority by the fingerprint that an enrolment token carries.

Refuses to trust what the server says: of the chain it sends, only the certificate whose sha256 is
in the token counts, and the real connection is then verified against exactly that one.
"""

import contextlib
import hashlib
import re
import socket
import ssl
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.link.errors import EnrolError, LinkFault

DEFAULT_PORT = 7444
_TOKEN = re.compile(r"lm1\.([A-Za-z2-7=]{8,128})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Token:
    """An enrolment token: the secret the controller checks, the CA the device checks."""

    secret: str
    ca_fingerprint: str


def parse_token(text: str) -> Token:
    """Read `lm1.SECRET.FINGERPRINT`; EnrolError says what it should look like."""
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise EnrolError(
            "this is not an enrolment token",
            "it looks like lm1.SECRET.FINGERPRINT; `fleetctl admin token create` shows one once",
            fault=LinkFault.REFUSED,
        )
    return Token(match.group(1), match.group(2))


def parse_url(text: str) -> Endpoint:
    """Read `https://HOST[:7444]`; EnrolError for anything else."""
    parts = urlsplit(text.strip())
    try:
        port = parts.port
    except ValueError:
        port = -1
    if (
        parts.scheme != "https"
        or not parts.hostname
        or port == -1
        or parts.path not in ("", "/")
        or parts.query
        or parts.username
    ):
        raise EnrolError(
            f"{text!r} is not the address of a controller",
            f"it looks like https://fleet.example:{DEFAULT_PORT}",
            fault=LinkFault.REFUSED,
        )
    return Endpoint(parts.hostname, port or DEFAULT_PORT)


def parse_endpoint(text: str) -> Endpoint:
    """Read `HOST:PORT` or `[V6]:PORT`; ValueError for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"not an address: {text!r}")
    return Endpoint(host.removeprefix("[").removesuffix("]"), int(port))


def find_authority(endpoint: Endpoint, fingerprint: str, timeout_s: float = 10.0) -> str:
    """The PEM of the CA whose sha256 is `fingerprint`, from the chain that `endpoint` sends.

    EnrolError when nothing answers, when no certificate of the chain has that fingerprint, or
    when it is that controller, but another of its ports.
    """
    chain, wrong = _received_chain(endpoint, timeout_s)
    for der in chain:
        if hashlib.sha256(der).hexdigest() != fingerprint:
            continue
        if wrong:
            raise EnrolError(
                f"{endpoint} belongs to this controller, but {wrong}: it is not the port for"
                " enrolment",
                f"that is {DEFAULT_PORT} unless `listen.enroll` says another:"
                f" --controller https://{Endpoint(endpoint.host, DEFAULT_PORT)}",
            )
        return ssl.DER_cert_to_PEM_cert(der)
    # The authority comes last in a chain; what stands before says nothing to who compares.
    seen = f"sha256:{hashlib.sha256(chain[-1]).hexdigest()}" if chain else "none"
    raise EnrolError(
        f"the controller at {endpoint} is not the one that made this token, so it was not sent",
        f"authority in the token  sha256:{fingerprint}\n"
        f"  authority at the server {seen}\n"
        "  check the address; or make a token with that controller: fleetctl admin token create",
        fault=LinkFault.UNTRUSTED,
    )


def _received_chain(endpoint: Endpoint, timeout_s: float) -> tuple[list[bytes], str]:
    """The certificates that were shown, and why nobody can enrol there; empty where one can."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # nothing is trusted here but the fingerprint
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout_s) as raw,
            _quiet_close(),
            context.wrap_socket(raw, server_hostname=endpoint.host) as tls,
        ):
            chain = list(_chain_of(tls))
            if tls.selected_alpn_protocol() != "h2":  # its web or its broker
                return chain, "speaks no gRPC"
            return chain, "" if _stays(tls) else "hangs up on a device without a certificate"
    except (OSError, ssl.SSLError) as error:
        raise EnrolError(
            f"controller at {endpoint} does not answer ({reason_of(error)})",
            "check the address, and that `lighterman-controller serve` runs there",
        ) from error


def _stays(tls: ssl.SSLSocket) -> bool:
    # HTTP/2 begins with words of the server; who asks for a certificate hangs up instead, but with
    # TLS 1.3 only when the handshake is over for the client.
    try:
        return tls.recv(1) != b""
    except TimeoutError:
        return True
    except (OSError, ssl.SSLError):
        return False


@contextlib.contextmanager
def _quiet_close() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def _chain_of(tls: ssl.SSLSocket) -> Iterator[bytes]:
    # Public from Python 3.13 on; before, the same list stands behind the private object.
    public = getattr(tls, "get_unverified_chain", None)
    if public is not None:
        yield from public()
        return
    for certificate in tls._sslobj.get_unverified_chain() or ():  # type: ignore[attr-defined]
        yield ssl.PEM_cert_to_DER_cert(certificate.public_bytes())


# What both TLS libraries say of a certificate that is good, but not at this time.
CLOCK_WORDS = {
    "not yet valid": "by this device's clock its certificate is not valid yet",
    "has expired": "by this device's clock its certificate has ended",
}
CLOCK_HINT = (
    "one of the two clocks is wrong: compare `date -u` on this device with the controller's,"
    " then set the wrong one; what is installed is served meanwhile"
)


def clock_words(said: str) -> str:
    """Our words where a TLS library's are about time, else empty."""
    return next((words for mark, words in CLOCK_WORDS.items() if mark in said.lower()), "")


def reason_of(error: BaseException) -> str:
    """The system's words for a failed connection, short."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return clock_words(error.verify_message) or error.verify_message
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "the name is unknown"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
