"""Everything that needs the controller, tied together: session, broker, spool sender.

Refuses to matter to serving: without it the device goes on with what it has.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from agent.domain.capability import Capabilities
from agent.domain.desired import DesiredState
from agent.domain.ports import Clock, Engines, Fetcher, Identity, IdentityStore, Spool
from agent.domain.tuning import DeviceOrders
from agent.link.authority import Endpoint, parse_endpoint
from agent.link.client import Welcome
from agent.link.convert import presence_payload
from agent.link.engines import EngineExchange
from agent.link.errors import LinkError, LinkFault
from agent.link.fetcher import BlobFetcher
from agent.link.mqtt import MqttEvents, MqttLink, TlsFiles
from agent.link.seals import Seals
from agent.link.spooler import SpoolSender
from agent.loop import AgentLoop
from agent.loop_session import ControllerSession, SessionParts
from agent.loop_tell import Teller

log = logging.getLogger("agent")

SAID_S = 600.0


@dataclass(frozen=True, slots=True)
class ConnectionParts:
    """What a connection is made of. `show` takes over facts for `lighterman-agent status`."""

    boot_id: str
    clock: Clock
    identities: IdentityStore
    identity: Identity
    spool: Spool
    loop: AgentLoop
    teller: Teller
    capabilities: Callable[[], Capabilities]
    show: Callable[..., None]
    poll_s: float
    seals: Seals
    orders: Callable[[DeviceOrders], None] = lambda _: None
    orders_refused: Callable[[int, str], None] = lambda number, reason: None
    engine_refused: Callable[[str], None] = lambda _: None
    engine_taken: Callable[[str], None] = lambda _: None


class Connection:
    """One identity's road to its controller. Satisfies `SessionEvents` on the way to the loop."""

    def __init__(self, parts: ConnectionParts) -> None:
        self._parts = parts
        self._mqtt_endpoint = parts.identity.mqtt_endpoint
        self._up: dict[str, bool] = {}
        self._why: dict[str, str] = {}
        # Why the broker put this device out, once that was said, and how long it is not said again.
        self._put_out, self._silent_until, self._fell = "", 0.0, False
        self._leaving = False  # the broker's connection ends because this side wants another
        self._session = ControllerSession(
            SessionParts(
                boot_id=parts.boot_id,
                clock=parts.clock,
                identities=parts.identities,
                capabilities=parts.capabilities,
                generations=parts.loop.generations,
                events=self,
                poll_s=parts.poll_s,
                connected=self._on_controller,
                has_doorbell=lambda: self._mqtt.connected,
                seals=parts.seals,
                acknowledged=parts.spool.acknowledged,
                orders=parts.orders,
                orders_refused=parts.orders_refused,
            )
        )
        self._mqtt = MqttLink(
            parts.identity.device_id,
            self._broker,
            self._tls,
            lambda online: presence_payload(parts.boot_id, online, parts.teller.stamp()),
            MqttEvents(
                doorbell=self._session.ring,
                ack=lambda point: self._sender.acked(point),
                connected=self._on_mqtt,
                turned_away=self._on_turned_away,
                orders=self._session.ring_orders,
            ),
        )
        self._sender = SpoolSender(
            parts.spool,
            self._mqtt.publish_up,
            self._session.client.report,
            lambda: self._mqtt.connected,
            parts.clock,
            lambda text: log.warning("reports wait: %s", text),
            self._session.look_again,
        )

    # -- for the rest of the agent -----------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether the broker takes messages now."""
        return self._mqtt.connected

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._session.start()
        self._mqtt.start()
        self._sender.start()

    def stop(self) -> None:
        """Say goodbye and end; what is not acknowledged stays in the spool."""
        self._sender.stop()
        self._leaving = self._mqtt.connected
        self._mqtt.stop()
        self._session.stop()

    def wake_sender(self) -> None:
        """Something was appended to the spool."""
        self._sender.wake()

    def publish_telemetry(self, payload: bytes) -> bool:
        """Hand over one window; False when there is no connection."""
        return self._mqtt.publish_telemetry(payload)

    def fetcher(self) -> Fetcher:
        """Brings files from the controller."""
        return BlobFetcher(self._session.client)

    def engines(self) -> Engines | None:
        """What devices of this kind compile for each other; None while there is no connection."""
        if not self.is_up:
            return None
        session = self._session
        return EngineExchange(
            session.client,
            session.orders_verifier,
            self.fetcher(),
            self._parts.engine_refused,
            self._parts.engine_taken,
        )

    # -- SessionEvents -----------------------------------------------------------------------------

    def desired(self, state: DesiredState) -> None:
        """See `SessionEvents`."""
        self._parts.loop.desired(state)

    def refused(self, generation: int, reason: str) -> None:
        """See `SessionEvents`."""
        self._parts.loop.refused(generation, reason)

    def welcomed(self, welcome: Welcome, skew_s: float) -> None:
        """See `SessionEvents`."""
        if welcome.mqtt_endpoint and welcome.mqtt_endpoint != self._mqtt_endpoint:
            self._mqtt_endpoint = welcome.mqtt_endpoint
            self._reconnect()
        self._parts.show(profile=welcome.profile, pending=welcome.pending)
        self._parts.loop.welcomed(welcome, skew_s)
        if welcome.forgotten:
            log.warning("the controller forgot reports that it had acknowledged: restored, perhaps")
            self._parts.loop.tell_anew()
        self._sender.forgotten(welcome.forgotten)

    def renewed(self, until: datetime) -> None:
        """See `SessionEvents`. The controller has the event: it issued the certificate."""
        log.info("the certificate was renewed; the next renewal is due %s", f"{until:%F %H:%M} UTC")
        self._reconnect()

    # -- within ------------------------------------------------------------------------------------

    def _reconnect(self) -> None:
        self._leaving = self._mqtt.connected
        self._mqtt.reconnect()

    def _on_controller(self, error: LinkError | None) -> None:
        if error is None and not self._up.get("controller"):
            self._put_out = ""
            self._mqtt.try_soon()  # what kept the one away may have kept the other
        todo = ""
        if error is None:
            seen = self._parts.clock.now().isoformat(timespec="seconds")
            self._parts.show(controller_seen_at=seen)
        elif error.fault in (LinkFault.DENIED, LinkFault.REFUSED, LinkFault.UNREACHABLE):
            todo = error.hint
        self._parts.show(controller_hint=todo, controller_fault=error.fault.value if error else "")
        self._tell("controller", error is None, error.message if error else "")

    def _on_mqtt(self, up: bool, why: str) -> None:
        if up:
            if not self._is_old(self._put_out):  # else it is not known yet whether it lasts
                log.info("connected to the broker at %s", self._mqtt_endpoint)
            if "broker" in self._up:
                self._session.look_again()  # it was away, so the controller may have been, too
        elif self._leaving:
            self._leaving = False
            why = "connecting anew"
        else:
            self._fell = bool(self._up.get("broker"))
            if self._fell:
                self._session.without_doorbell()
            if not self._is_old(why) and self._why.get("broker") != why:
                self._put_out = ""
                log.warning("%s", why)
        self._sender.wake()
        self._tell("broker", up, why)

    def _on_turned_away(self) -> None:
        if self._fell:  # another holder of the name, or an operator: it will happen again
            self._put_out = self._why["broker"]
            self._silent_until = self._parts.clock.monotonic() + SAID_S
        self._session.ask_soon()

    def _is_old(self, why: str) -> bool:
        """Whether the log has it that the broker puts this device out, and for this reason."""
        silent = self._parts.clock.monotonic() < self._silent_until
        return silent and bool(why) and why == self._put_out

    def _tell(self, what: str, up: bool, why: str) -> None:
        """For `status`: the time is that of the last change between up and down."""
        changes = {f"{what}_state": "connected" if up else why}
        if self._up.get(what) is not up:
            changes[f"{what}_at"] = self._parts.clock.now().isoformat(timespec="seconds")
        self._up[what], self._why[what] = up, why
        self._parts.show(**changes)

    def _broker(self) -> Endpoint:
        return parse_endpoint(self._mqtt_endpoint)

    def _tls(self) -> TlsFiles:
        identities = self._parts.identities
        return TlsFiles(
            ca_pem=self._parts.identity.ca_pem,
            certificate_path=identities.certificate_path(),
            key_path=identities.key_path(),
        )
