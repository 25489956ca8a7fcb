"""The MQTT road: doorbell and acknowledgements down, presence, reports, events, telemetry up.

Refuses to believe content: a doorbell is a number that makes the agent ask, an acknowledgement
only drops what the controller says it stored. One paho client per connection: what was in flight
when a connection died is sent again from the spool, not from a queue that nobody can see.
"""

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.link.authority import Endpoint, reason_of
from agent.link.backoff import Backoff
from agent.link.convert import AckPoint, parse_ack, parse_doorbell, parse_orders_bell
from lighterman.v1 import topics

# A ping costs an idle device as much as a measurement; a broken road is noticed in one and a half.
KEEPALIVE_S = 60
CONNECT_S = 10.0
MAX_QUEUED = 1000
SOON_S = 1.0
# One that held shorter was brief; the more brief ones in a row, the longer the wait. Else two
# holders of one name would throw each other out several times a second, for good.
STEADY_S = 10.0
BRIEF_CAP_S = 30.0
# It closed this session on purpose: another one has the name, or an operator wants it out.
_TURNED_AWAY = ("Session taken over", "Administrative action", "Not authorized", "Banned")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the TLS library reads itself. The CA is PEM, the others are paths."""

    ca_pem: bytes
    certificate_path: str
    key_path: str


@dataclass(frozen=True, slots=True)
class MqttEvents:
    """Who is told; called on the MQTT thread, so each must return at once.

    `turned_away`: the broker ended or refused the connection of this very device.
    """

    doorbell: Callable[[int], None]
    ack: Callable[[AckPoint], None]
    connected: Callable[[bool, str], None]
    turned_away: Callable[[], None] = lambda: None
    orders: Callable[[int], None] = lambda _: None


class MqttLink:
    """Keeps one connection up from `start` to `stop`, with full jitter between tries."""

    def __init__(
        self,
        device_id: str,
        endpoint: Callable[[], Endpoint],
        tls: Callable[[], TlsFiles],
        presence: Callable[[bool], bytes],
        events: MqttEvents,
        backoff: Backoff | None = None,
        brief: Backoff | None = None,
    ) -> None:
        self._device_id = device_id
        self._endpoint = endpoint
        self._tls = tls
        self._presence = presence
        self._events = events
        self._backoff = backoff or Backoff()
        self._brief = brief or Backoff(base_s=0.5, cap_s=BRIEF_CAP_S)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._client: paho.Client | None = None
        self._up = threading.Event()
        self._over = threading.Event()
        self._ended = ""
        self._refused = False
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the broker has taken this connection and the subscription was asked for."""
        return self._up.is_set()

    def start(self) -> None:
        """Begin to connect, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Say goodbye (presence offline) and end the thread."""
        self._stopping.set()
        self._wake.set()
        client = self._client
        if client is not None and self._up.is_set():
            self._say_presence(client, online=False, wait_s=min(1.0, timeout_s))
            client.disconnect()
        elif client is not None:
            client.disconnect()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def reconnect(self) -> None:
        """Take a new certificate or endpoint into use."""
        self._wake.set()
        client = self._client
        if client is not None and self._up.is_set():
            client.disconnect()

    def try_soon(self) -> None:
        """Begin anew with short waits: there is a sign that the road is open again."""
        if not self._up.is_set():
            self._hurry.set()
            self._wake.set()

    def publish_up(self, suffix: str, payload: bytes, qos: int) -> bool:
        """Hand one message to the connection; False when there is none or its queue is full."""
        client = self._client
        if client is None or not self._up.is_set():
            return False
        topic = topics.device(self._device_id, suffix)
        return client.publish(topic, payload, qos=qos).rc == paho.MQTT_ERR_SUCCESS

    def publish_telemetry(self, payload: bytes) -> bool:
        """Hand over one window of measurements, at most once; False when there is no connection."""
        return self.publish_up(topics.UP_TELEMETRY, payload, 0)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            held: bool | None = None
            try:
                held = self._one_connection()
            except Exception as error:  # noqa: BLE001 - without this thread no doorbell rings again
                self._events.connected(False, f"broker: {type(error).__name__}: {error}")
            if self._stopping.is_set():
                return
            if held is not None:
                self._backoff.succeeded()
            if held:
                self._brief.succeeded()
            wait_s = self._brief.failed() if held is False else 0.0
            if not self._wake.is_set():
                self._wake.wait(max(wait_s, self._backoff.failed()))
            if self._hurry.is_set():
                self._hurry.clear()
                self._backoff.succeeded()
                self._stopping.wait(self._backoff.spread(SOON_S, 1.0))

    def _one_connection(self) -> bool | None:
        """Connect and stay until it breaks. Whether it held for long; None when it never was up."""
        came_up = steady = False
        endpoint: Endpoint | None = None
        try:
            endpoint = self._endpoint()
            client = self._new_client()
            self._client = client
            self._over.clear()
            self._refused = False
            client.connect(endpoint.host, endpoint.port, keepalive=KEEPALIVE_S)
            # paho's own thread, not this one: only then does it alone touch the TLS socket.
            client.loop_start()
            steady = not self._over.wait(STEADY_S)
            self._over.wait()
            client.loop_stop()
            if not self._up.is_set() and not self._refused and not self._stopping.is_set():
                # With TLS 1.3 a certificate that is not taken shows only after the handshake.
                self._events.connected(False, f"the broker at {endpoint} hangs up on this device")
                self._events.turned_away()
        except (OSError, ValueError) as error:
            where = f"broker at {endpoint}" if endpoint else "the broker"
            self._events.connected(False, f"{where} does not answer ({reason_of(error)})")
            if isinstance(error, ssl.SSLError):
                self._events.turned_away()
        finally:
            came_up = self._up.is_set()
            self._up.clear()
            self._client = None
            if came_up:
                why = f"connection to the broker at {endpoint} ended ({self._ended})"
                self._events.connected(False, why)
                if self._ended in _TURNED_AWAY:
                    self._events.turned_away()
        return steady if came_up else None

    def _new_client(self) -> paho.Client:
        files = self._tls()
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH, cadata=files.ca_pem.decode("ascii")
        )
        context.load_cert_chain(files.certificate_path, files.key_path)
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.tls_set_context(context)
        client.connect_timeout = CONNECT_S
        client.max_queued_messages_set(MAX_QUEUED)
        client.will_set(
            topics.device(self._device_id, topics.UP_PRESENCE),
            self._presence(False),
            qos=1,
            retain=True,
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refused = True
            self._events.connected(False, f"the broker refused this device ({reason})")
            self._events.turned_away()
        if reason.is_failure or self._stopping.is_set():
            client.disconnect()
            return
        if self._hurry.is_set():  # what it was for has happened
            self._hurry.clear()
            self._wake.clear()
        client.subscribe(topics.device_down(self._device_id), qos=1)
        self._say_presence(client, online=True)
        self._up.set()
        self._events.connected(True, "")

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._ended = str(reason)
        self._over.set()

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        if message.topic == topics.device(self._device_id, topics.DOWN_DESIRED):
            generation = parse_doorbell(bytes(message.payload))
            if generation is not None:
                self._events.doorbell(generation)
            orders = parse_orders_bell(bytes(message.payload))
            if orders:
                self._events.orders(orders)
        elif message.topic == topics.device(self._device_id, topics.DOWN_ACK):
            ack = parse_ack(bytes(message.payload))
            if ack is not None:
                self._events.ack(ack)

    def _say_presence(self, client: paho.Client, online: bool, wait_s: float = 0.0) -> None:
        info = client.publish(
            topics.device(self._device_id, topics.UP_PRESENCE),
            self._presence(online),
            qos=1,
            retain=True,
        )
        if wait_s > 0.0 and info.rc == paho.MQTT_ERR_SUCCESS:
            info.wait_for_publish(wait_s)
