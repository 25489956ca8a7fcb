"""The controller as the agent sees it: hello, desired state, renewal, in a thread of its own.

Refuses to apply anything: what was verified goes to the loop, what was not is told as refused.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from agent.domain.capability import Capabilities
from agent.domain.desired import DesiredState
from agent.domain.ports import Clock, IdentityStore
from agent.domain.tuning import DeviceOrders
from agent.errors import AgentError, ManifestError
from agent.link.authority import parse_endpoint
from agent.link.backoff import Backoff
from agent.link.channel import Credentials
from agent.link.client import ControllerClient, Welcome
from agent.link.errors import LinkError, LinkFault, TrustError
from agent.link.orders import OrdersVerifier
from agent.link.renewal import credentials_of, renew, renewal_due_at
from agent.link.seals import Seals
from agent.link.trust import ManifestVerifier

log = logging.getLogger("agent")

CLOCK_SKEW_S = 60.0
REFUSED_WAIT_S = 60.0
RENEWAL_CAP_S = 1800.0
LONGEST_WAIT_S = 300.0  # a wall clock that is set must not hide a renewal for longer
PENDING_POLL_S = 20.0
SOON_S = 1.0
BLIND_POLL_S = 60.0  # between questions while no doorbell can ring


class SessionEvents(Protocol):
    """Who is told; called on the session's thread."""

    def desired(self, state: DesiredState) -> None:
        """A verified desired state that is not older than any seen before."""
        ...

    def refused(self, generation: int, reason: str) -> None:
        """A desired state came that must not be applied."""
        ...

    def welcomed(self, welcome: Welcome, skew_s: float) -> None:
        """The controller answered hello. `skew_s`: its clock minus ours."""
        ...

    def renewed(self, until: datetime) -> None:
        """Another certificate is in use."""
        ...


@dataclass(frozen=True, slots=True)
class Generations:
    """What the loop knows: `seen` is the highest ever accepted, `taken` the one it works on."""

    seen: int
    taken: int
    applied: int


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a session is made of. `capabilities` looks anew each time: disks fill up.

    `connected` is told after every round how it went; None: the controller answered.
    """

    boot_id: str
    clock: Clock
    identities: IdentityStore
    capabilities: Callable[[], Capabilities]
    generations: Callable[[], Generations]
    events: SessionEvents
    poll_s: float
    connected: Callable[[LinkError | None], None]
    has_doorbell: Callable[[], bool]
    seals: Seals
    acknowledged: Callable[[], Mapping[str, int]] = dict
    orders: Callable[[DeviceOrders], None] = lambda _: None
    orders_refused: Callable[[int, str], None] = lambda number, reason: None


class ControllerSession:
    """Asks when rung at, and rarely by itself. `client` may be used by others too."""

    def __init__(self, parts: SessionParts, backoff: Backoff | None = None) -> None:
        self._parts = parts
        self._backoff = backoff or Backoff(base_s=1.0, cap_s=60.0)
        self._renewals = Backoff(base_s=10.0, cap_s=RENEWAL_CAP_S)
        identity = parts.identities.current()
        if identity is None:
            raise TrustError("this device is not enrolled", "lighterman-agent enroll --help")
        self._verifier = ManifestVerifier(
            identity.signing_keys, identity.device_id, identity.project, parts.seals
        )
        self.orders_verifier = OrdersVerifier(
            identity.signing_keys, identity.device_id, identity.project, parts.seals
        )
        self._orders = 0
        self.client = ControllerClient(
            parse_endpoint(identity.grpc_endpoint), credentials_of(identity)
        )
        # A certificate that was fetched but never proven is looked at first.
        waiting = parts.identities.next() is not None
        self._renew_at = parts.clock.now() if waiting else self._renewal_due()
        self._welcomed = False
        self._again = False
        self._fault: LinkFault | None = None
        self._rung = 0
        self._bell = threading.Lock()
        self._poll_s = parts.poll_s
        self._poll_at = 0.0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """End the thread and the channel."""
        self._stopping.set()
        self._wake.set()
        self.client.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def ring(self, generation: int) -> None:
        """A doorbell named this generation; an older one is no news."""
        with self._bell:
            self._rung = max(self._rung, generation)
        self._wake.set()

    def ring_orders(self, number: int) -> None:
        """A doorbell named these orders."""
        self.client.orders = max(self.client.orders, number)
        self._wake.set()

    def look_again(self) -> None:
        """The broker is back, so the controller may be a new process: greet it and ask."""
        self._again = True
        self._wake.set()

    def ask_soon(self) -> None:
        """The broker turned this device away: whether the controller does is to be known now."""
        if self._welcomed:
            self._poll_by(SOON_S)

    def without_doorbell(self) -> None:
        """The broker went away: until it is back, ask more often, spread over the fleet."""
        self._poll_by(BLIND_POLL_S / 2)

    def _poll_by(self, seconds: float) -> None:
        soon = self._parts.clock.monotonic() + self._backoff.spread(seconds, 1.0)
        self._poll_at = min(self._poll_at, soon)
        self._wake.set()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                wait_s = self._round()
            except LinkError as error:
                wait_s = self._trouble(error)
            except AgentError as error:
                log.warning("controller: %s", error)
                wait_s = self._backoff.failed()
            except Exception:  # the thread that brings updates must not end
                log.exception("controller session")
                wait_s = self._backoff.failed(5.0)
            self._wake.wait(wait_s)
            self._wake.clear()

    def _round(self) -> float:
        """Do what is due; gives the seconds until something may be due again."""
        if self._again or not self._welcomed:
            self._again = False
            if self._hello():
                self._again = True  # greet it until an operator has let this device in
                return self._backoff.spread(PENDING_POLL_S)
        now = self._parts.clock.monotonic()
        known = self._parts.generations()
        if now >= self._poll_at or self._rung > known.seen:
            self._ask(known)
            self._parts.connected(None)
            poll_s = self._poll_s if self._parts.has_doorbell() else min(BLIND_POLL_S, self._poll_s)
            self._poll_at = now + self._backoff.spread(poll_s)
        self._ask_orders()
        self._renew_if_due()
        self._backoff.succeeded()
        renew_in_s = (self._renew_at - self._parts.clock.now()).total_seconds()
        return max(0.05, min(self._poll_at - now, renew_in_s, LONGEST_WAIT_S))

    def _trouble(self, error: LinkError) -> float:
        if self._stopping.is_set():
            return 0.0
        if self._welcomed or self._backoff.tries in (0, 5) or error.fault is not self._fault:
            log.warning("%s", error)
        self._parts.connected(error)
        self._welcomed, self._fault = False, error.fault
        wait_s = self._backoff.failed(error.retry_after_s)
        if error.fault in (LinkFault.REFUSED, LinkFault.DENIED):
            wait_s += self._backoff.spread(REFUSED_WAIT_S)
        return wait_s

    def _hello(self) -> bool:
        """Greet the controller; True while the device is pending."""
        parts = self._parts
        asked_at = parts.clock.now()
        welcome = self.client.hello(
            parts.boot_id,
            parts.capabilities(),
            parts.generations().applied,
            parts.acknowledged(),
        )
        took = parts.clock.now() - asked_at
        skew_s = (welcome.controller_now - asked_at - took / 2).total_seconds()
        self._poll_s = min(parts.poll_s, welcome.poll_after_s or parts.poll_s)
        self._welcomed = True
        self._poll_at = 0.0
        parts.connected(None)
        parts.events.welcomed(welcome, skew_s)
        return welcome.pending

    def _ask(self, known: Generations) -> None:
        rung = self._rung
        signed = self.client.get_desired(known.taken)
        if signed is None:
            self._answered(rung)
            return
        try:
            state = self._verifier.verify(signed, known.seen)
        except (ManifestError, TrustError) as error:
            self._answered(rung)
            self._parts.events.refused(signed.generation, str(error))
            return
        self._parts.events.desired(state)

    def _ask_orders(self) -> None:
        """An older controller never names any, and is never asked for them."""
        if self.client.orders <= self._orders:
            return
        came = self.client.get_orders()
        self._orders = max(self.client.orders, came.number)
        try:
            orders = self.orders_verifier.orders(came)
        except (ManifestError, TrustError) as error:
            self._parts.orders_refused(came.number, str(error))
        else:
            self._parts.orders(orders)

    def _answered(self, rung: int) -> None:
        """Nothing is there for this bell; one that rang while the answer came stays."""
        with self._bell:
            if self._rung == rung:
                self._rung = 0

    def _renewal_due(self) -> datetime:
        try:
            return renewal_due_at(self._parts.identities.certificate_path(), self._backoff)
        except ValueError as error:
            log.warning("%s", error)
            return self._parts.clock.now()

    def _renew_if_due(self) -> None:
        if self._parts.clock.now() < self._renew_at:
            return
        try:
            identity = renew(
                self._parts.identities, self.client.renew, self._prove, self._parts.seals
            )
        except LinkError as error:
            wait_s = self._renewals.failed(error.retry_after_s)
            self._renew_at = self._parts.clock.now() + timedelta(seconds=wait_s)
            log.warning("the certificate could not be renewed: %s", error)
            return
        self._renewals.succeeded()
        self.client.use(credentials_of(identity))
        self._renew_at = self._renewal_due()
        self._parts.events.renewed(self._renew_at)

    def _prove(self, credentials: Credentials) -> None:
        parts = self._parts
        client = ControllerClient(self.client.endpoint, credentials)
        try:
            client.hello(parts.boot_id, parts.capabilities(), parts.generations().applied)
        finally:
            client.close()
