"""What the agent says of itself: reports and events into the spool, telemetry onto the wire.

Refuses to lose a report silently: what the spool did not take is logged with its reason.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from agent.domain.assignment import ModelState
from agent.domain.instructions import Report
from agent.domain.news import is_felt_anew
from agent.domain.ports import Clock, Spool
from agent.errors import StoreError
from agent.link.convert import (
    AssignmentReport,
    Evidence,
    Happening,
    Stamp,
    TelemetryWindow,
    event_payload,
    report_payload,
    telemetry_payload,
)

log = logging.getLogger("agent")

# An idle device is heard of every two minutes: long before anybody takes five for silence.
QUIET_WINDOWS = 11
QUIET_S = 120.0


class Teller:
    """Stamps and spools. Called by the loop thread; `set_synced` from any."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        boot_id: str,
        wake: Callable[[], None],
        publish: Callable[[bytes], bool],
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._boot_id = boot_id
        self._wake = wake
        self._publish = publish
        self._synced = threading.Event()
        self._told: TelemetryWindow | None = None
        self._quiet = 0
        # (model, version, cause) and (model, from, to, reason), since the start.
        self.rollbacks: Counter[tuple[str, str, str]] = Counter()
        self.rung_changes: Counter[tuple[str, str, str, str]] = Counter()

    def set_synced(self, synced: bool) -> None:
        """Whether this device's clock agrees with the controller's."""
        if synced:
            self._synced.set()
        else:
            self._synced.clear()

    def stamp(self) -> Stamp:
        """Now, and whether to believe it."""
        return Stamp(self._clock.now(), self._synced.is_set())

    def report(self, model: str, said: Report, evidence: Evidence, applied: bool) -> None:
        """Spool the state of an assignment."""
        log.info("%s %s of %s: %s, %s", model, said.version, said.rollout, said.phase, said.reason)
        message = AssignmentReport(
            model=model,
            version=said.version,
            rollout=said.rollout,
            generation=said.generation,
            phase=said.phase,
            reason=said.reason,
            serving_version=said.serving_version,
            applied=applied,
            evidence=evidence,
        )
        self._keep("report", report_payload(message, self.stamp()))

    def event(
        self,
        kind: str,
        reason: str,
        state: ModelState | None = None,
        version: str = "",
        details: Mapping[str, str] | None = None,
        model: str = "",
    ) -> None:
        """Spool a thing that happened, of a model or of the whole device."""
        model = state.model if state else model
        if state is not None and not version and state.current is not None:
            version = state.current.release.version
        self._count(kind, model, version, details or {})
        log.info("%s%s: %s", f"{model} " if model else "", kind, reason)
        happening = Happening(kind, self._clock.now(), reason, model, version, details or {})
        self._keep("event", event_payload(happening, self.stamp()))

    def _count(self, kind: str, model: str, version: str, details: Mapping[str, str]) -> None:
        cause = details.get("cause", "")
        if kind == "rolled_back":
            self.rollbacks[model, version, cause] += 1
        elif kind == "rung_changed":
            self.rung_changes[model, details.get("from", ""), details.get("to", ""), cause] += 1

    def telemetry(self, window: TelemetryWindow) -> bool:
        """Send one window; False when it was not sent.

        Without a connection it is gone, by design. One that says nothing new is left out, but
        never more than `QUIET_WINDOWS` in a row nor after `QUIET_S`: the bytes of an idle device
        are somebody's bill. `window` begins where the one that was sent last ended.
        """
        quiet = self._quiet < QUIET_WINDOWS and window.window_s < QUIET_S
        if quiet and not self._is_news(window):
            self._quiet += 1
            return False
        payload = telemetry_payload(self._boot_id, window, self.stamp())
        if not self._publish(payload):
            return False
        self._quiet, self._told = 0, window
        return True

    def _is_news(self, window: TelemetryWindow) -> bool:
        told = self._told
        return (
            told is None
            or bool(window.rungs)
            or (told.models, told.applied_generation) != (window.models, window.applied_generation)
            or is_felt_anew(told.pressure, window.pressure)
        )

    def _keep(self, kind: str, payload: bytes) -> None:
        try:
            self._spool.append(kind, payload)
        except StoreError as error:
            article = "an" if kind == "event" else "a"
            log.error("%s %s could not be kept for the controller: %s", article, kind, error)
            return
        self._wake()
