"""What /metrics of this agent is made of, and the listener that serving never depends on."""

import logging
from dataclasses import dataclass

from agent.domain.ports import Clock
from agent.errors import UnavailableError
from agent.host.sensors import memory_available_bytes, memory_total_bytes, zone_temperatures
from agent.loop import AgentLoop
from agent.loop_tell import Teller
from agent.runtime.host import ModelHost
from agent.serve.metrics import MetricsServer, Queue, Snapshot
from agent.serve.server import InferenceServer
from agent.settings import OFF, Settings
from agent.status import Facts
from agent.store.spool import FileSpool

CONNECTED = "connected"  # as the connection writes it for `lighterman-agent status`

log = logging.getLogger("agent")


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts that are looked at."""

    settings: Settings
    facts: Facts
    started_at_s: float
    host: ModelHost
    loop: AgentLoop
    teller: Teller
    spool: FileSpool
    server: InferenceServer


def snapshot_of(parts: Watched) -> Snapshot:
    """One look at everything, by copies under short locks."""
    host, facts = parts.host, parts.facts
    known = parts.loop.generations()
    entries, spool_bytes = parts.spool.held()
    root = parts.settings.host_root
    return Snapshot(
        version=facts.agent_version,
        device=facts.device_id,
        profile=facts.profile,
        started_at_s=parts.started_at_s,
        connected={
            "controller": facts.controller_state == CONNECTED,
            "broker": facts.broker_state == CONNECTED,
        },
        generations={"desired": known.taken, "applied": known.applied},
        totals=host.totals(),
        serving=tuple(s for model in host.models() if (s := host.serving(model)) is not None),
        queues=_queues(parts),
        requests=parts.server.requests(),
        rollbacks=parts.teller.rollbacks.copy(),
        rung_changes=parts.teller.rung_changes.copy(),
        zones=zone_temperatures(root),
        memory_total_bytes=memory_total_bytes(root),
        memory_available_bytes=memory_available_bytes(root),
        spool_entries=entries,
        spool_bytes=spool_bytes,
        spool_refused=parts.spool.refused,
    )


def _queues(parts: Watched) -> dict[str, Queue]:
    """Who waits, on whichever road."""
    return {model: Queue(*queue) for model, queue in parts.host.queues().items()}


class MetricsListener:
    """The listener if there is one; a taken port is said and costs no answer."""

    def __init__(self, parts: Watched, clock: Clock) -> None:
        listen = parts.settings.serve_metrics
        self._server: MetricsServer | None = None
        if listen != OFF:
            self._server = MetricsServer(lambda: snapshot_of(parts), clock, listen)

    def start(self) -> str:
        """Listen; gives HOST:PORT, or nothing where there is no listener."""
        if self._server is None:
            return ""
        try:
            return self._server.start()
        except UnavailableError as error:
            log.error("%s; serving goes on without metrics", error)
            self._server = None
            return ""

    def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.stop()
