"""/metrics of the agent over plain HTTP, loopback by default. Reads a snapshot, changes nothing.

One request at a time and at most one page a second: whoever scrapes takes nothing from serving.

    MetricsServer(
        snapshot: Callable[[], Snapshot],      # cheap: copies under short locks
        listen: str = "127.0.0.1:8002",        # port 0: a free one
    )
    .start() -> str                            # the address it listens on; UnavailableError: taken
    .stop()
"""

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

from agent.domain.ports import Clock, RungWindow, Serving
from agent.domain.probation import Cause
from agent.errors import UnavailableError
from agent.serve import metric_table as table
from lighterman.exposition import CONTENT_TYPE, Page, put_process
from lighterman.metrics import cumulative

REQUEST_S = 5.0
LEAST_AGE_S = 1.0


@dataclass(frozen=True, slots=True)
class Queue:
    """Who waits for one model: how many, and the longest wait in seconds."""

    waiting: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the page says. `totals` are sums since the start; None is unknown."""

    version: str
    device: str
    profile: str
    started_at_s: float
    connected: Mapping[str, bool]
    generations: Mapping[str, int]
    totals: Sequence[RungWindow] = ()
    serving: Sequence[Serving] = ()
    queues: Mapping[str, Queue] = field(default_factory=dict)
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    rollbacks: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    rung_changes: Mapping[tuple[str, str, str, str], int] = field(default_factory=dict)
    zones: Mapping[tuple[str, str], float] = field(default_factory=dict)
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    spool_entries: int = 0
    spool_bytes: int = 0
    spool_refused: int = 0


def render(snapshot: Snapshot) -> bytes:
    """The page."""
    page = Page(table.METRICS)
    page.put(table.INFO, 1, snapshot.version, snapshot.device, snapshot.profile)
    page.put(table.STARTED, snapshot.started_at_s)
    for to, up in snapshot.connected.items():
        page.put(table.CONNECTED, up, to)
    for of, generation in snapshot.generations.items():
        page.put(table.GENERATION, generation, of)
    _put_models(page, snapshot)
    for zone, value in snapshot.zones.items():
        page.put(table.TEMPERATURE, value, *zone)
    for kind, size in (
        ("total", snapshot.memory_total_bytes),
        ("available", snapshot.memory_available_bytes),
    ):
        if size is not None:
            page.put(table.MEMORY, size, kind)
    page.put(table.SPOOL, snapshot.spool_entries)
    page.put(table.SPOOL_BYTES, snapshot.spool_bytes)
    page.put(table.SPOOL_REFUSED, snapshot.spool_refused)
    put_process(page, table.CPU, table.RESIDENT, table.FILES, table.THREADS)
    return page.render()


def _put_models(page: Page, snapshot: Snapshot) -> None:
    for one in snapshot.totals:
        labels = (one.model, one.version, one.rung, snapshot.profile, snapshot.device)
        at_most = cumulative(one.service.buckets, 3)
        page.put_histogram(table.LATENCY, at_most, one.service.count, one.service.sum_s, *labels)
        page.put(table.ERRORS, one.errors, *labels)
        page.put(table.NON_FINITE, one.non_finite, *labels)
    rollbacks = dict(snapshot.rollbacks)
    for serving in snapshot.serving:
        page.put(table.IN_USE, 1, serving.model, serving.version, serving.rung)
        for cause in Cause:  # a rate needs the nought before the first one
            rollbacks.setdefault((serving.model, serving.version, cause.value), 0)
    for model, queue in snapshot.queues.items():
        page.put(table.QUEUE, queue.waiting, model)
        page.put(table.QUEUE_AGE, queue.age_s, model)
    for request, count in sorted(snapshot.requests.items()):
        page.put(table.REQUESTS, count, *request)
    for rollback, count in sorted(rollbacks.items()):
        page.put(table.ROLLBACKS, count, *rollback)
    for change, count in sorted(snapshot.rung_changes.items()):
        page.put(table.RUNG_CHANGES, count, *change)


class MetricsServer:
    """One small HTTP server in a thread of its own."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], clock: Clock, listen: str = "127.0.0.1:8002"
    ) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._listen = listen
        self._page = b""
        self._made_s = 0.0
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen; gives HOST:PORT. UnavailableError when the address cannot be had."""
        host, _, port = self._listen.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), _handler(self.page))
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {self._listen} for metrics: {error.strerror or error}",
                "another process may have it; choose another with serve.metrics",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()
        return f"{host}:{self._server.server_address[1]}"

    def page(self) -> bytes:
        """The newest page, made now if the last one is a second old. Server thread only."""
        now = self._clock.monotonic()
        if not self._page or now - self._made_s >= LEAST_AGE_S:
            self._page, self._made_s = render(self._snapshot()), now
        return self._page

    def stop(self) -> None:
        """End and give the port back."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._thread is not None:
            self._thread.join(REQUEST_S)


class _Server(HTTPServer):
    def server_bind(self) -> None:
        """Without asking the network for this host's name: a device may have no resolver."""
        # Else connections of the last minute keep a restarted agent from its own port.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hung up is no news."""


def _handler(page: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S
        server_version, sys_version = "lighterman-agent", ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            body = page()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    return Handler
