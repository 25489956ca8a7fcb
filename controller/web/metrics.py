"""/metrics: the fleet in Prometheus' text format. No figure of a single device, nothing to change.

A page costs one read of the database. It is made at most once a second, and seldom enough that
making pages never takes more than a tenth of the time; who asks meanwhile gets the last one.
"""

import hmac
import ipaddress
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from controller.clock import Clock
from controller.domain.rollout import Phase
from controller.errors import LightermanError
from controller.services.context import Deps
from controller.services.metrics import EventTotals, FleetFacts, read_fleet
from controller.web import metric_table as table
from lighterman.exposition import CONTENT_TYPE, Page, put_process
from lighterman.metrics import cumulative

log = logging.getLogger("lighterman.web")

LEAST_AGE_S = 1.0
COST_SHARE = 10.0


@dataclass(frozen=True, slots=True)
class Own:
    """What only the process knows. `messages` counts outcomes of ingest, `shed` among them."""

    version: str
    started_at: datetime
    broker_ok: bool
    workers: int
    messages: Mapping[str, int]
    queued: int


class MetricsPage:
    """Makes the page; safe from any thread."""

    def __init__(self, deps: Deps, clock: Clock, own: Callable[[], Own]) -> None:
        self._deps = deps
        self._clock = clock
        self._own = own
        self._events = EventTotals()
        self._making = threading.Lock()
        self._page = b""
        self._good_until = 0.0

    def text(self) -> bytes:
        """The newest page, made now if the last one is old enough."""
        if self._page and self._clock.monotonic() < self._good_until:
            return self._page
        # Whoever comes while one is being made takes the last one; only the very first waits.
        if self._making.acquire(blocking=not self._page):
            try:
                began = self._clock.monotonic()
                self._page = self._make()
                ended = self._clock.monotonic()
                self._good_until = ended + max(LEAST_AGE_S, COST_SHARE * (ended - began))
            finally:
                self._making.release()
        return self._page

    def _make(self) -> bytes:
        page = Page(table.METRICS)
        _put_own(page, self._own(), self._deps)
        put_process(page, table.CPU, table.RESIDENT, table.FILES, table.THREADS)
        _put_totals(page, self._deps)
        try:
            facts = read_fleet(self._deps, self._clock.now(), self._events)
        except LightermanError as error:
            log.warning("/metrics without the fleet: %s", error.text())
            page.put(table.STORE_UP, 0)
        else:
            page.put(table.STORE_UP, 1)
            _put_devices(page, facts)
            _put_rollouts(page, facts)
        return page.render()


def _put_own(page: Page, own: Own, deps: Deps) -> None:
    page.put(table.INFO, 1, own.version)
    page.put(table.STARTED, own.started_at.timestamp())
    page.put(table.BROKER_UP, own.broker_ok)
    page.put(table.WORKERS, own.workers)
    for outcome in ("reports", "telemetry", "malformed", "other_protocol", "refused", "failed"):
        page.put(table.INGEST, own.messages.get(outcome, 0), outcome)
    page.put(table.SHED, own.messages.get("shed", 0), "messages")
    page.put(table.SHED, deps.samples.shed, "samples")
    page.put(table.QUEUED, own.queued)


def _put_totals(page: Page, deps: Deps) -> None:
    for series, total in sorted(deps.totals.read().items()):
        labels = (series.model, series.version, series.rung, series.profile, series.site)
        service = total.service
        at_most = cumulative(service.buckets, service.scale, service.zero_count)
        page.put_histogram(table.LATENCY, at_most, service.count, service.sum_s, *labels)
        page.put(table.ERRORS, total.errors, *labels)
        page.put(table.NON_FINITE, total.non_finite, *labels)


def _put_devices(page: Page, facts: FleetFacts) -> None:
    for (profile, state, presence), count in sorted(facts.devices.items()):
        page.put(table.DEVICES, count, profile, state, presence)
    for (profile, seconds), count in sorted(facts.silent.items()):
        page.put(table.SILENT, count, profile, str(seconds))
    page.put(table.BEHIND, facts.behind)
    for (profile, name), value in sorted(facts.temperature_c.items()):
        page.put(table.TEMPERATURE, value, profile, name)
    for (profile, name), value in sorted(facts.memory_bytes.items()):
        page.put(table.MEMORY, value, profile, name)
    for profile, value in sorted(facts.budget_s.items()):
        page.put(table.BUDGET, value, profile)
    for profile, value in sorted(facts.throttle_c.items()):
        page.put(table.THROTTLE, value, profile)
    for serving, count in sorted(facts.serving.items()):
        page.put(table.SERVING, count, *serving)


def _put_rollouts(page: Page, facts: FleetFacts) -> None:
    for one in facts.rollouts:
        page.put(table.ROLLOUT_INFO, 1, one.rollout_id, one.model, one.version)
        for phase in Phase:
            page.put(table.ROLLOUT_PHASE, phase == one.phase, one.rollout_id, phase.value)
        for state in facts.assignments:
            count = facts.rollout_states.get((one.rollout_id, state), 0)
            page.put(table.ROLLOUT_DEVICES, count, one.rollout_id, state)
    for state, count in facts.assignments.items():
        page.put(table.ASSIGNMENTS, count, state)
    for rollback, count in sorted(facts.rollbacks.items()):
        page.put(table.ROLLBACKS, count, *rollback)
    for change, count in sorted(facts.rung_changes.items()):
        page.put(table.RUNG_CHANGES, count, *change)
    for state, count in sorted(facts.builds.items()):
        page.put(table.BUILDS, count, state)
    page.put(table.OUTBOX, facts.outbox_rows)
    page.put(table.OUTBOX_AGE, facts.outbox_age_s)


def answer(request: Request, text: Callable[[], bytes], token: str) -> Response:
    """The page, for callers of this host and for those who bring the token."""
    if not may_read(request.client.host if request.client else "", request.headers, token):
        return PlainTextResponse(
            "error: /metrics needs the bearer token of the file that the setting "
            "metrics_token_file names (metrics.token in the data directory by default)\n",
            status_code=401,
            headers={"WWW-Authenticate": 'Bearer realm="metrics"'},
        )
    return Response(text(), media_type=CONTENT_TYPE)


def may_read(host: str, headers: Mapping[str, str], token: str) -> bool:
    """Whether the caller may read: from loopback always, from elsewhere with the token."""
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        pass
    given = headers.get("authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())
