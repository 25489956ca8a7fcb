"""Text of Mosquitto's configuration and access lists. Pure: writes no file, starts nothing.

Paths are relative to the broker's working directory, so that its user needs no way through the
folders above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lighterman.v1 import topics

CONTROLLER = "controller"  # common name of the controller's own client
CONFIG_FILE = "mosquitto.conf"
PID_FILE = "mosquitto.pid"
MESSAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What one broker bears: connections, bytes of a message, what it keeps for the absent."""

    connections: int = 15_000
    message_bytes: int = MESSAGE_BYTES
    inflight_messages: int = 20
    queued_messages: int = 500
    queued_bytes: int = 1024 * 1024


def render_config(host: str, port: int, user: str, limits: BrokerLimits) -> str:
    """The configuration of the broker that we run ourselves."""
    own = ("# Written at every start; changes are lost.", f"user {user}", f"pid_file {PID_FILE}")
    return _render((*own, "log_timestamp false"), f"listener {port} {host}", limits)


def render_external_config(port: int, limits: BrokerLimits) -> str:
    """The configuration of a broker that somebody else runs, in the folder of these files."""
    own = ("# Written by the controller. Run mosquitto in this folder: names are relative to it.",)
    return _render(own, f"listener {port}", limits)


def _render(own: Sequence[str], listener: str, limits: BrokerLimits) -> str:
    """What the controller relies on. `use_username_as_clientid` keeps one client off another's
    session."""
    lines = (
        *own,
        "per_listener_settings false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
        "connection_messages true",
        "persistence false",
        "allow_anonymous false",
        "acl_file acl",
        "sys_interval 0",
        "max_topic_alias 10",
        "max_keepalive 600",
        "persistent_client_expiration 1d",
        f"max_packet_size {limits.message_bytes}",
        f"max_inflight_messages {limits.inflight_messages}",
        f"max_queued_messages {limits.queued_messages}",
        f"max_queued_bytes {limits.queued_bytes}",
        listener,
        f"max_connections {limits.connections}",
        "cafile ca.pem",
        "certfile server.pem",
        "keyfile server.key",
        "crlfile crl.pem",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
    )
    return "\n".join(lines) + "\n"


def render_acl(consumers: Sequence[str]) -> str:
    """Who may read and write what. Patterns bind a device to its own topics."""
    lines = ["# Written by the controller; changes are lost."]
    for suffix in (topics.UP_PRESENCE, topics.UP_REPORT, topics.UP_TELEMETRY, topics.UP_EVENT):
        lines.append(f"pattern write {topics.device('%u', suffix)}")
    for suffix in (topics.DOWN_DESIRED, topics.DOWN_ACK):
        lines.append(f"pattern read {topics.device('%u', suffix)}")
    lines += ["", f"user {CONTROLLER}", f"topic readwrite {topics.PREFIX}/#"]
    for name in consumers:
        lines += ["", f"user {name}", f"topic read {topics.ALL_FEED}"]
    return "\n".join(lines) + "\n"
