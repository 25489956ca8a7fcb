"""The HTTP road of the inference API; a taken address is said, and costs no other road."""

import logging

from agent.errors import UnavailableError
from agent.serve.desk import Desk
from agent.serve.http_server import HttpServer
from agent.settings import OFF, Settings

log = logging.getLogger("agent")


class HttpListener:
    """The HTTP server if there is one."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        listen = None if settings.serve_http == OFF else settings.serve_http
        self._server: HttpServer | None = None
        if listen is not None or settings.serve_socket is not None:
            self._server = HttpServer(desk, listen, settings.serve_socket, settings.serve_mode)

    def start(self) -> str:
        """Listen; gives HOST:PORT, or nothing where there is no TCP."""
        if self._server is None:
            return ""
        try:
            return self._server.start()
        except UnavailableError as error:
            # Applications that know only gRPC must not lose it because port 8000 is theirs.
            log.error("%s; serving goes on over gRPC alone", error)
            self._server = None
            return ""

    def stop(self, grace_s: float) -> None:
        """Answer what is in flight, and end."""
        if self._server is not None:
            self._server.stop(grace_s)
