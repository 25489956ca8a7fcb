"""Everything toward the broker: our own or an external one, the connection, ingest, doorbells.

Started and ended together; decides nothing.
"""

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from controller.app_identity import CLIENT_LIFE_S, ServerIdentity
from controller.clock import Clock
from controller.mqtt.broker import Broker, find_mosquitto
from controller.mqtt.broker_config import CONTROLLER, render_acl
from controller.mqtt.client import MqttClient, tls_context
from controller.mqtt.doorbells import Doorbells
from controller.mqtt.external_broker import ExternalBroker
from controller.mqtt.ingest import FILTERS, Ingest
from controller.services.certificates import broker_lists
from controller.services.context import Ctx, Deps
from controller.services.samples import flush_samples
from controller.settings import Settings
from controller.trust.names import Role, Subject


def check_broker(settings: Settings) -> None:
    """UnavailableError when the broker is to run here and its program is missing."""
    if not settings.broker_address:
        find_mosquitto()


class BrokerSide:
    """`port` is where our own broker listens, `told` what devices are told when it is not ours."""

    def __init__(
        self,
        settings: Settings,
        deps: Deps,
        server: ServerIdentity,
        clock: Clock,
        new_ctx: Callable[[str], Ctx],
        port: int,
    ) -> None:
        self._deps = deps
        self._new_ctx = new_ctx
        self._run_dir = settings.data_dir / "run"
        self.port = port
        self.told: str | None = None
        self.broker: Broker | ExternalBroker
        self._server = server
        if settings.broker_address:
            self.told = settings.broker_advertise or settings.broker_address
            places = [host_and_port(one) for one in (settings.broker_address, self.told)]
            self._server = ServerIdentity(
                deps.authority, clock, list(dict.fromkeys(host for host, _ in places))
            )
            self.broker = ExternalBroker(
                settings.data_dir / "broker",
                places[0],
                settings.listen_mqtt,
                shlex.split(settings.broker_reload),
                self.files,
            )
        else:
            self.broker = Broker(
                self._run_dir / "broker", settings.listen_host, port, clock, self.files
            )
        self._renewed = self._server.refresher()
        self._make_client(clock, settings.presence_grace_s)

    def _make_client(self, clock: Clock, grace_s: float) -> None:
        deps, new_ctx = self._deps, self._new_ctx
        identity = deps.authority.new_identity(
            Subject(Role.CONTROLLER, CONTROLLER), clock.now(), CLIENT_LIFE_S
        )
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        context = tls_context(
            deps.authority.certificate_pem, identity.issued.pem, identity.key_pem, self._run_dir
        )
        self.client = MqttClient(
            self.broker.reach,
            self.broker.port,
            context,
            FILTERS,
            on_message=lambda message: self.ingest.take(message),
            on_connect=self._on_connect,
        )
        self.ingest = Ingest(
            deps,
            new_ctx,
            clock,
            publish=self.client.publish,
            told=lambda: self.doorbells.wake(),
            grace_s=grace_s,
        )
        self.doorbells = Doorbells(
            deps, new_ctx, self.broker, self.client, self.files, self._run_dir
        )

    def start(self, ended: ExitStack) -> None:
        """Start all parts; `ended` learns how each is stopped. UnavailableError: see `Broker`."""
        ended.callback(self.broker.stop)
        self.broker.start()
        ended.callback(flush_samples, self._deps)
        for part in (self.ingest, self.doorbells, self.client):
            ended.callback(part.stop)
            part.start()

    def renew(self) -> None:
        """Give the broker a new certificate when there is one."""
        if self._renewed() is not None:
            self.broker.reload(self.files())

    def trouble(self) -> str | None:
        """None when messages go in and out, else what is wrong."""
        if not self.broker.alive():
            return "mosquitto does not run"
        return None if self.client.connected else "no connection to the broker"

    def files(self) -> Mapping[str, bytes]:
        """What the broker's configuration names, as it is now."""
        lists = broker_lists(self._deps, self._new_ctx("controller"))
        return {
            "ca.pem": self._deps.authority.certificate_pem,
            "server.pem": self._server.chain_pem(),
            "server.key": self._server.current().key_pem,
            "crl.pem": lists.revocations_pem,
            "acl": render_acl(lists.consumers).encode("ascii"),
        }

    def _on_connect(self) -> None:
        self.ingest.on_connect()
        self.doorbells.on_connect()


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address that the settings took."""
    host, _, port = address.rpartition(":")
    return host, int(port)
