"""The web over HTTPS: /healthz and /readyz, which tell nothing of the fleet, and /metrics.

Changes nothing and knows no user: who may read metrics is decided in `metrics`.
"""

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from controller.errors import UnavailableError
from controller.web.metrics import answer

START_S = 10.0
STOP_S = 5.0

# Name of a check to None, or to what is wrong.
Checks = Callable[[], Mapping[str, str | None]]


@dataclass(frozen=True, slots=True)
class Health:
    """`alive` looks only at this process and returns at once; `ready` may touch the store."""

    alive: Checks
    ready: Checks


@dataclass(frozen=True, slots=True)
class Metered:
    """`text` makes the page of metrics; callers from elsewhere than loopback bring `token`."""

    text: Callable[[], bytes]
    token: str


def make_app(health: Health, metered: Metered | None = None) -> Starlette:
    """The application. What may wait runs in a thread."""

    async def healthz(_request: Request) -> PlainTextResponse:
        wrong = [f"{name}: {text}" for name, text in health.alive().items() if text]
        if wrong:
            return PlainTextResponse("\n".join(wrong) + "\n", status_code=503)
        return PlainTextResponse("ok\n")

    def readyz(request: Request) -> JSONResponse:
        found = health.ready()
        # Where the broker is not ours, its absence is no reason to take operators the door too.
        excluded = request.query_params.getlist("exclude")
        ready = all(wrong is None for name, wrong in found.items() if name not in excluded)
        body = {"ready": ready, "checks": {name: wrong or "ok" for name, wrong in found.items()}}
        return JSONResponse(body, status_code=200 if ready else 503)

    routes = [Route("/healthz", healthz), Route("/readyz", readyz)]
    if metered is not None:

        def metrics(request: Request) -> Response:
            return answer(request, metered.text, metered.token)

        routes.append(Route("/metrics", metrics))
    return Starlette(routes=routes)


class WebServer:
    """One HTTPS listener in a thread of its own."""

    def __init__(
        self, host: str, port: int, health: Health, metered: Metered | None = None
    ) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise UnavailableError(
                f"cannot listen on {host}:{port} for the web: {error.strerror}",
                "another process holds the port, or the address is not of this machine",
            ) from error
        self.port = int(self._socket.getsockname()[1])
        self._health = health
        self._metered = metered
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, certificate: Path, key: Path) -> None:
        """Serve with this chain and key (PEM files) until `stop`."""
        config = uvicorn.Config(
            make_app(self._health, self._metered),
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=200,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="web", daemon=True
        )
        self._thread.start()

    def renew(self, certificate: Path, key: Path) -> None:
        """Present another chain and key to new connections."""
        if self._server is not None and self._server.config.ssl is not None:
            self._server.config.ssl.load_cert_chain(certificate, key)

    def stop(self) -> None:
        """End and give the port back."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(STOP_S)
        self._socket.close()
