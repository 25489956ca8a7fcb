"""Drains the outbox to the broker, at least once; tells a broker that was away what it forgot.

Decides nothing: what is told was written by the transaction that decided it.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from controller.errors import LightermanError
from controller.mqtt.broker import Broker
from controller.mqtt.client import MqttClient, Outgoing, take_over, tls_context
from controller.mqtt.convert import bell_message, told_message
from controller.mqtt.external_broker import ExternalBroker
from controller.services.certificates import takeover_identity
from controller.services.context import Ctx, Deps
from controller.services.outbox import (
    OutboxKind,
    OutboxRow,
    devices_behind,
    forget_told,
    take_untold,
)
from controller.services.rollout_feed import recent_rollouts
from lighterman.v1 import topics

log = logging.getLogger("lighterman.doorbells")

POLL_S = 0.25
FORGET_MAX = 1000
TAKEOVER_S = 3.0


class Doorbells:
    """One thread. `files` gives what the broker's configuration names, as it is now."""

    def __init__(
        self,
        deps: Deps,
        new_ctx: Callable[[str], Ctx],
        broker: Broker | ExternalBroker,
        client: MqttClient,
        files: Callable[[], Mapping[str, bytes]],
        room: Path,
    ) -> None:
        self._deps = deps
        self._new_ctx = new_ctx
        self._broker = broker
        self._client = client
        self._files = files
        self._room = room
        self._told: list[int] = []  # and not forgotten yet, in their order
        self._wake = threading.Event()
        self._ring_all = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="doorbells", daemon=True)

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is untold stays in the outbox."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def wake(self) -> None:
        """Something may be in the outbox."""
        self._wake.set()

    def on_connect(self) -> None:
        """The broker may have lost what it kept: ring for every device that is behind."""
        self._ring_all.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            more = False
            try:
                if self._client.connected:
                    self._ring_behind()
                    more = self.drain()
            except LightermanError as error:
                log.error("the outbox waits: %s", error.text())
            except Exception:
                log.exception("the outbox waits")
            busy = more or self._wake.wait(POLL_S)
            self._wake.clear()
            self._forget_told(busy)

    def _forget_told(self, busy: bool) -> None:
        """When nobody waits to be told; that needs the database's one writer."""
        if not self._told or (
            busy and len(self._told) < FORGET_MAX and not self._stopping.is_set()
        ):
            return
        try:
            forget_told(self._deps, self._told)
        except LightermanError as error:
            log.error("the outbox keeps what was told: %s", error.text())
        else:
            self._told.clear()

    def drain(self) -> bool:
        """Tell what can be told; True when there may be more."""
        rows = take_untold(self._deps, after=self._told[-1] if self._told else 0)
        if not rows:
            return False
        lists = [row for row in rows if row.kind in (OutboxKind.KICK, OutboxKind.ACL)]
        messages = [row for row in rows if row not in lists]
        if not self._publish(messages):
            return False
        self._told += [row.number for row in messages]
        if lists:  # those that are not done come again, so nothing behind them may hide them
            self._told += self._tell_broker(lists)
            self._forget_told(busy=False)
        return bool(messages)

    def _publish(self, rows: list[OutboxRow]) -> bool:
        told = newest_of_topic(rows)
        return self._client.publish_all([Outgoing(*told_message(row), row.retain) for row in told])

    def _tell_broker(self, rows: list[OutboxRow]) -> list[int]:
        """Have the broker read its lists, end sessions; numbers of the rows that are done."""
        if not self._broker.reload(self._files()):
            log.warning("the broker did not confirm its new lists, they are given again")
            return []
        done: list[int] = []
        for row in rows:
            if row.kind is OutboxKind.ACL or self.kick(row.payload.decode("utf-8")):
                done.append(row.number)
        return done

    def kick(self, name: str) -> bool:
        """End the live session of a name whose certificates are revoked."""
        ctx = self._new_ctx("controller")
        certificate, key = takeover_identity(self._deps, ctx, name)
        context = tls_context(self._deps.authority.certificate_pem, certificate, key, self._room)
        done = take_over(self._broker.reach, self._broker.port, name, context, TAKEOVER_S)
        log.info("session of %s %s", name, "ended" if done else "could not be taken over")
        # What the broker keeps of the name would speak for it to whoever comes later.
        kept = (topics.feed_health(ctx.project, name), topics.device(name, topics.DOWN_DESIRED))
        for topic in kept:
            self._client.publish(Outgoing(topic, b"", retain=True))
        return done

    def _ring_behind(self) -> None:
        if not self._ring_all.is_set():
            return
        self._ring_all.clear()
        bells = [
            Outgoing(*bell_message(one.device_id, one.generation, one.manifest_digest), retain=True)
            for one in devices_behind(self._deps)
        ]
        feed = [
            Outgoing(*told_message(row), row.retain)
            for row in recent_rollouts(self._deps, self._new_ctx("controller"))
        ]
        if (bells or feed) and not self._client.publish_all([*bells, *feed]):
            self._ring_all.set()


def newest_of_topic(rows: Sequence[OutboxRow]) -> list[OutboxRow]:
    """Without what a later row says anew: the broker keeps one word of such a topic.

    So an offer that was taken back before it was told does not ring any more.
    """
    newest = {(row.kind, row.topic): row.number for row in rows if row.retain}
    return [row for row in rows if not row.retain or newest[row.kind, row.topic] == row.number]
