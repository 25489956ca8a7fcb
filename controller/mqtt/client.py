"""The controller's own MQTT connection: mutual TLS, reconnects by itself. Knows no payload."""

import logging
import ssl
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from controller.mqtt.broker_config import CONTROLLER

log = logging.getLogger("lighterman.mqtt")

KEEPALIVE_S = 30
PUBLISH_S = 5.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came in."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish."""

    topic: str
    payload: bytes
    retain: bool
    qos: int = 1


def tls_context(
    ca_pem: bytes, certificate_pem: bytes, key_pem: bytes, room: Path
) -> ssl.SSLContext:
    """A client context that trusts only our CA. `room` is a private folder for a moment's file."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca_pem.decode("ascii"))
    # The ssl module reads key and chain from files only.
    with tempfile.NamedTemporaryFile(dir=room, prefix="identity-") as file:
        file.write(certificate_pem + key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


class MqttClient:
    """One connection. `on_connect` and `on_message` are called on its thread: be quick there."""

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        filters: Sequence[tuple[str, int]],
        on_message: Callable[[Message], None],
        on_connect: Callable[[], None],
    ) -> None:
        self._address = (host, port)
        self._filters = list(filters)
        self._on_message_told = on_message
        self._on_connect_told = on_connect
        self._connected = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=CONTROLLER)
        client.tls_set_context(context)
        client.reconnect_delay_set(1, 5)
        client.max_queued_messages_set(10_000)
        client.max_inflight_messages_set(100)
        client.on_connect = self._connect
        client.on_disconnect = self._disconnect
        client.on_message = self._message
        self._client = client

    def start(self) -> None:
        """Connect in the background and stay connected until `stop`."""
        self._client.connect_async(*self._address, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()
        self._connected.clear()

    @property
    def connected(self) -> bool:
        """Whether messages can go out now."""
        return self._connected.is_set()

    def publish(self, message: Outgoing) -> None:
        """Hand one message over without waiting; lost when the connection is away."""
        if self.connected:
            self._client.publish(message.topic, message.payload, message.qos, message.retain)

    def publish_all(self, messages: Sequence[Outgoing]) -> bool:
        """Publish and wait until the broker has them all; False when it did not take them."""
        if not self.connected:
            return False
        sent = [
            self._client.publish(one.topic, one.payload, one.qos, one.retain) for one in messages
        ]
        for info in sent:
            if info.rc != paho.MQTT_ERR_SUCCESS:
                return False
            try:
                info.wait_for_publish(PUBLISH_S)
            except (RuntimeError, ValueError):
                return False
            if not info.is_published():
                return False
        return True

    def _connect(self, client: paho.Client, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        if code.is_failure:
            log.error("the broker refuses the controller: %s", code)
            return
        if self._filters:
            client.subscribe(self._filters)
        self._connected.set()
        log.info("connected to the broker")
        self._on_connect_told()

    def _disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        self._connected.clear()
        if code.is_failure:
            log.warning("connection to the broker lost: %s", code)

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_message_told(Message(message.topic, bytes(message.payload), message.retain))


def take_over(host: str, port: int, name: str, context: ssl.SSLContext, timeout_s: float) -> bool:
    """End the live session of `name` by opening one in its name; True when the broker agreed."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, reconnect_on_failure=False)
    client.tls_set_context(context)
    accepted = threading.Event()

    def connected(_client: Any, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        if not code.is_failure:
            accepted.set()

    client.on_connect = connected
    try:
        client.connect(host, port, keepalive=10)
    except OSError:
        return False
    client.loop_start()
    done = accepted.wait(timeout_s)
    client.disconnect()
    client.loop_stop()
    return done
