"""What the agent does beside serving: measure builds while idle, compile for devices of its kind.

Composition only. Refuses to do anything of it before the controller asked, and without serving
first: what it needs of the other parts is asked for anew each time.
"""

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.domain.assignment import WORKING, ModelState, Phase
from agent.domain.capability import Capabilities
from agent.domain.ports import Clock, Engines, Fetcher
from agent.domain.tuning import Activity, DeviceOrders
from agent.errors import AgentError
from agent.host.sensors import temperature_c
from agent.loop_tell import Teller
from agent.loop_trial import TrialParts
from agent.loop_tuning import Tuner, TunerParts
from agent.runtime.registry import Open, Sharing
from agent.settings import Settings

log = logging.getLogger("agent")

BUILDER = "builder"
_UNSETTLED = WORKING | {Phase.ACTIVATED, Phase.PROBATION, Phase.ROLLING_BACK}


@dataclass(frozen=True, slots=True)
class BesideParts:
    """What it is made of. `engines` are None while there is no connection."""

    settings: Settings
    clock: Clock
    teller: Teller
    fetcher: Callable[[], Fetcher | None]
    engines: Callable[[], Engines | None]
    requests: Callable[[], int]
    running: Callable[[], bool]
    states: Callable[[], tuple[ModelState, ...]]
    capabilities: Callable[[], Capabilities]


class Beside:
    """Follows the device's orders. `ordered` may be called from any thread."""

    def __init__(self, parts: BesideParts) -> None:
        self._parts = parts
        self._roles: frozenset[str] = frozenset()
        self._tuner: Tuner | None = None
        self._lock = threading.Lock()
        self._refusals: set[str] = set()
        # What a start before left: it is fetched anew where it is asked for again.
        shutil.rmtree(parts.settings.state_dir / "tuning", ignore_errors=True)

    def sharing(self, inner: Open) -> Open:
        """`inner` with what others compiled, and for others."""
        return Sharing(
            inner=inner,
            engines=self._parts.engines,
            facts=self.facts,
            accepts=self._parts.settings.accept_shared_engines,
            gives=lambda: BUILDER in self._roles,
            background=self._in_background,
        )

    def facts(self, runtime: str) -> Mapping[str, str]:
        """Of this host: what an engine depends on beside what its runtime names."""
        found = self._parts.capabilities()
        return {
            "runtime": runtime,
            "version": found.runtimes.get(runtime, ""),
            "arch": found.arch,
            "os": found.os,
            "accelerators": " ".join(found.accelerators),
        }

    def ordered(self, orders: DeviceOrders) -> None:
        """These are the verified orders from now on."""
        self._roles = orders.roles
        if not self._parts.settings.tuning:
            for order in orders.tuning:
                self._parts.teller.event(
                    "tuning_waits", "measuring is switched off on this device",
                    model=order.model, version=order.version, details={"tuning": order.tuning},
                )  # fmt: skip
            return
        with self._lock:
            if self._tuner is None and orders.tuning:
                self._tuner = self._new_tuner()
                self._tuner.start()
            if self._tuner is not None:
                self._tuner.order(orders)

    def orders_refused(self, number: int, reason: str) -> None:
        """Orders came that must not be followed."""
        self._parts.teller.event("orders_refused", reason, details={"number": str(number)})

    def engine_refused(self, reason: str) -> None:
        """An engine came that must not be loaded; each reason is told once."""
        if reason not in self._refusals:
            self._refusals.add(reason)
            self._parts.teller.event("engine_refused", reason)

    def engine_taken(self, builder: str) -> None:
        """One was verified; it is loaded instead of compiling here."""
        details = {"builder": builder}
        self._parts.teller.event("engine_taken", f"compiled by {builder}", details=details)

    def stop(self) -> None:
        """End what runs."""
        with self._lock:
            if self._tuner is not None:
                self._tuner.stop()

    def _new_tuner(self) -> Tuner:
        parts, settings = self._parts, self._parts.settings

        def installed() -> tuple[str, Mapping[str, str]]:
            found = parts.capabilities()
            return found.os, found.runtimes

        return Tuner(
            TunerParts(
                trial=TrialParts(
                    parts.clock, self._activity, settings.host_root, settings.runtime_python
                ),
                teller=parts.teller,
                fetcher=parts.fetcher,
                facts=installed,
                folder=settings.state_dir / "tuning",
                idle_s=settings.tuning_idle_s,
            )
        )

    def _activity(self) -> Activity:
        parts = self._parts
        return Activity(
            requests=parts.requests(),
            running=parts.running(),
            settled=not any(state.phase in _UNSETTLED for state in parts.states()),
            temperature_c=temperature_c(parts.settings.host_root),
        )

    def _in_background(self, job: Callable[[], None]) -> None:
        def run() -> None:
            try:
                job()
            except AgentError as error:
                log.warning("what was compiled here stays here: %s", error)
            except Exception:
                log.exception("sharing what was compiled here")

        threading.Thread(target=run, name="engines", daemon=True).start()
