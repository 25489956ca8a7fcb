"""Secure channels to the controller and what their failures mean.

Refuses plain text, and any authority but the one from enrolment.
"""

from dataclasses import dataclass

import grpc

from agent.link.authority import CLOCK_HINT, CLOCK_WORDS, Endpoint, clock_words
from agent.link.errors import LinkError, LinkFault

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
RETRY_AFTER_KEY = "retry-after-s"

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The channel's own waits stay short: how long to wait is decided by link.backoff.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Not a wait, whatever its name: the time that connecting and the TLS handshake may take. A slow
    # link, or a controller to which a fleet returns, needs seconds.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A certificate of its own authority: a proxy that opens TLS could not be used anyway.
    ("grpc.enable_http_proxy", 0),
]

_FAULTS = {
    grpc.StatusCode.UNAVAILABLE: LinkFault.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: LinkFault.UNREACHABLE,
    grpc.StatusCode.CANCELLED: LinkFault.UNREACHABLE,
    grpc.StatusCode.ABORTED: LinkFault.UNREACHABLE,
    grpc.StatusCode.INTERNAL: LinkFault.UNREACHABLE,
    grpc.StatusCode.UNKNOWN: LinkFault.UNREACHABLE,
    grpc.StatusCode.DATA_LOSS: LinkFault.UNREACHABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LinkFault.BUSY,
    grpc.StatusCode.UNAUTHENTICATED: LinkFault.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: LinkFault.DENIED,
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this device proves itself with, and the one authority it believes. PEM."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes


def open_channel(endpoint: Endpoint, credentials: Credentials) -> grpc.Channel:
    """A channel with mutual TLS; connects when the first call is made."""
    return grpc.secure_channel(
        str(endpoint),
        grpc.ssl_channel_credentials(
            root_certificates=credentials.ca_pem,
            private_key=credentials.key_pem,
            certificate_chain=credentials.certificate_pem,
        ),
        options=_OPTIONS,
    )


def open_enrolment_channel(endpoint: Endpoint, ca_pem: bytes) -> grpc.Channel:
    """A channel on which only the server shows a certificate, of exactly this authority."""
    return grpc.secure_channel(
        str(endpoint), grpc.ssl_channel_credentials(root_certificates=ca_pem), options=_OPTIONS
    )


def link_error(error: grpc.RpcError, endpoint: Endpoint) -> LinkError:
    """What a failed call means. The controller's own words are kept, line by line."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else None) or str(code)
    fault = _FAULTS.get(code, LinkFault.REFUSED)
    if fault is LinkFault.UNREACHABLE:
        what = "no answer in time" if code is grpc.StatusCode.DEADLINE_EXCEEDED else details
        if code is grpc.StatusCode.UNAVAILABLE:
            what = _short(details)
        message, hint = f"controller at {endpoint} does not answer ({what})", ""
        if what in CLOCK_WORDS.values():
            hint = CLOCK_HINT
    else:
        message, _, rest = details.partition("\n")
        hint = "\n  ".join(rest.splitlines())
    return LinkError(message, hint, fault=fault, retry_after_s=_retry_after(error))


def _short(details: str) -> str:
    lowered = details.lower()
    if "certificate_verify_failed" in lowered and (words := clock_words(lowered)):
        return words
    for mark, words in (
        ("certificate_verify_failed", "its certificate is not from the authority of this device"),
        ("certificate has expired", "a certificate has expired"),
        ("connection refused", "connection refused"),
        ("connection reset", "connection reset"),
        ("socket closed", "it hangs up; `lighterman-agent doctor` may say why"),
        ("timed out", "no answer in time"),
        ("timeout", "no answer in time"),
        ("endpoint closing", "no answer in time"),  # our side gave the handshake up
        ("dns", "the name is unknown"),
        ("handshake", "the TLS handshake failed"),
    ):
        if mark in lowered:
            return words
    return details.splitlines()[0][:160] if details else "connection lost"


def _retry_after(error: grpc.RpcError) -> float:
    if not isinstance(error, grpc.Call):
        return 0.0
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER_KEY:
            try:
                return min(max(float(value), 0.0), 3600.0)
            except ValueError:
                return 0.0
    return 0.0
