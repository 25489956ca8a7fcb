"""The doctor's look at the roads: does the other side answer, and does it take this device?

A handshake first, since only there the TLS library says what is wrong with whose certificate; then
one real question to the controller. Refuses to say hello: to the controller that would be another
start of this device beside the running one, which is what a stolen identity looks like.
"""

import contextlib
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.domain.ports import Identity
from agent.finding import Finding, Verdict
from agent.link.authority import DEFAULT_PORT, parse_endpoint, reason_of
from agent.link.keys import read_certificate
from agent.store.identity import FileIdentityStore

HANDSHAKE_S = 5.0
ASK_S = 10.0
# OpenSSL's numbers of what is wrong with the certificate that the other side shows.
_NOT_YET_VALID, _EXPIRED, _HOSTNAME, _IP_ADDRESS = 9, 10, 62, 64


@dataclass(frozen=True, slots=True)
class Traveller:
    """Who is on the road: an enrolled device, its state folder and its clock."""

    identity: Identity
    state_dir: Path
    now: datetime

    @property
    def store(self) -> FileIdentityStore:
        """Where its certificate lies."""
        return FileIdentityStore(self.state_dir / "identity")

    def enrol_anew(self) -> str:
        """What to do when only another certificate helps."""
        host = self.identity.grpc_endpoint.rpartition(":")[0]
        where = self.identity.enroll_endpoint or f"{host}:{DEFAULT_PORT}"
        return (
            f"enrol anew: stop the agent, move {self.state_dir} away, then"
            f" lighterman-agent enroll --controller https://{where} --token TOKEN"
        )

    def is_expired(self) -> bool:
        """Whether its certificate has ended by its own clock."""
        try:
            return self.now >= read_certificate(self.store.certificate_path()).not_after
        except ValueError:
            return False


def look_at_controller(who: Traveller) -> Finding:
    """Shake hands, then ask what this device should run, as the agent does."""
    what, address = "controller", who.identity.grpc_endpoint
    refused = _handshake(what, address, who)
    return refused if refused is not None else _ask(what, address, who)


def look_at_broker(who: Traveller) -> Finding:
    """Shake hands; the broker refuses revoked certificates right there."""
    what, address = "broker", who.identity.mqtt_endpoint
    refused = _handshake(what, address, who)
    return refused or Finding(what, Verdict.OK, f"{address} answers and takes this certificate")


def _handshake(what: str, address: str, who: Traveller) -> Finding | None:
    """Connect with this device's certificate and hang up; None when nothing was refused."""
    try:
        endpoint = parse_endpoint(address)
        context = ssl.create_default_context(cadata=who.identity.ca_pem.decode("ascii"))
        context.load_cert_chain(who.store.certificate_path(), who.store.key_path())
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((endpoint.host, endpoint.port), HANDSHAKE_S) as raw,
            context.wrap_socket(raw, server_hostname=endpoint.host) as tls,
        ):
            _wait_for_refusal(tls)
    except ssl.SSLCertVerificationError as error:
        return _untrusted(what, address, who, error)
    except ssl.SSLError as error:
        return _turned_away(what, address, who, error)
    except ConnectionResetError:
        return _hung_up(what, address, who)
    except (OSError, ValueError) as error:
        return Finding(
            what, Verdict.PROBLEM, f"{address} does not answer ({reason_of(error)})",
            "check the network, and that `lighterman-controller serve` runs there",
        )  # fmt: skip
    return None


def _wait_for_refusal(tls: ssl.SSLSocket) -> None:
    # With TLS 1.3 a refused client learns of it by the first read after the handshake.
    tls.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        if tls.recv(1) == b"":
            raise ConnectionResetError


def _untrusted(
    what: str, address: str, who: Traveller, error: ssl.SSLCertVerificationError
) -> Finding:
    """The certificate of the other side is not one that this device may believe."""
    clock = f"this device's clock says {who.now:%Y-%m-%d %H:%M} UTC"
    match error.verify_code:
        case code if code == _NOT_YET_VALID:
            text = f"{clock}, and the certificate of {address} begins later"
            todo = "set the clock of this device"
        case code if code == _EXPIRED:
            text = f"{clock}, and the certificate of {address} has ended"
            todo = "check the clock; if it is right, restart the controller: it makes a new one"
        case code if code in (_HOSTNAME, _IP_ADDRESS):
            text = f"the certificate of {address} is for other names ({error.verify_message})"
            todo = "the controller's setting `advertise` has to name this address"
        case _:
            text = (
                f"{address} shows a certificate of another authority than this device's"
                f" ({error.verify_message})"
            )
            todo = f"is it the right controller? If it was set up anew, {who.enrol_anew()}"
    return Finding(what, Verdict.PROBLEM, text, todo)


def _turned_away(what: str, address: str, who: Traveller, error: ssl.SSLError) -> Finding:
    """The other side does not take this device's certificate; its alert says why."""
    alert = (error.reason or "").upper()
    if "EXPIRED" in alert or who.is_expired():
        return _expired(what, address, who)
    if "REVOKED" in alert:
        text = f"{address} says that this device's certificate was revoked"
        return Finding(what, Verdict.PROBLEM, text, f"ask an operator why; {who.enrol_anew()}")
    if "UNKNOWN_CA" in alert:
        text = f"{address} does not know the authority of this device's certificate"
        todo = f"is it the right controller? If it was set up anew, {who.enrol_anew()}"
        return Finding(what, Verdict.PROBLEM, text, todo)
    if "ALERT" in alert and "CERTIFICATE" in alert:
        text = f"{address} does not take this device's certificate ({reason_of(error)})"
        return Finding(what, Verdict.PROBLEM, text, f"ask an operator why; {who.enrol_anew()}")
    return Finding(
        what, Verdict.PROBLEM, f"{address} does not speak TLS as expected ({reason_of(error)})",
        "check the address, and that `lighterman-controller serve` runs there",
    )  # fmt: skip


def _hung_up(what: str, address: str, who: Traveller) -> Finding:
    # gRPC sends no alert: it hangs up on a certificate that it cannot verify.
    if who.is_expired():
        return _expired(what, address, who)
    text = f"{address} hangs up on this device's certificate"
    todo = (
        f"check both clocks; is it the right controller? If it was set up anew, {who.enrol_anew()}"
    )
    return Finding(what, Verdict.PROBLEM, text, todo)


def _expired(what: str, address: str, who: Traveller) -> Finding:
    if who.is_expired():
        text = f"{address} does not take this device's certificate: it has expired"
        return Finding(what, Verdict.PROBLEM, text, who.enrol_anew())
    text = f"{address} takes this device's certificate for expired, this device does not"
    return Finding(what, Verdict.PROBLEM, text, "the two clocks differ: set the wrong one")


def _ask(what: str, address: str, who: Traveller) -> Finding:
    try:
        from agent.link.client import ControllerClient
        from agent.link.errors import LinkError, LinkFault
        from agent.link.renewal import credentials_of
    except ImportError as error:
        return Finding(
            what, Verdict.PROBLEM, f"{error.name} is not installed: nothing can be asked there",
            "pip install 'lighterman[agent]'",
        )  # fmt: skip

    client = ControllerClient(parse_endpoint(address), credentials_of(who.identity), ASK_S)
    try:
        client.get_desired(0)
    except LinkError as error:
        if error.fault is LinkFault.DENIED:
            todo = error.hint if "fleetctl" in error.hint else who.enrol_anew()
            told = f" ({error.hint})" if error.hint and error.hint is not todo else ""
            return Finding(what, Verdict.PROBLEM, f"{address}: {error.message}{told}", todo)
        if error.fault is LinkFault.REFUSED:  # it is known, and may not ask yet
            return Finding(what, Verdict.NOTE, f"{address}: {error.message}", error.hint)
        todo = error.hint or "look into the controller's log"
        return Finding(what, Verdict.PROBLEM, error.message, todo)
    finally:
        client.close()
    return Finding(what, Verdict.OK, f"{address} answers and takes this device")
