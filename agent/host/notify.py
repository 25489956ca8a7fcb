"""Tells the service manager how this service does: systemd's notification protocol, datagrams.

Refuses to matter: without a manager, or when its socket is gone, nothing happens.

    Notifier(environ)                    # NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID of it
    .watchdog_s                          # how long the manager waits for a feed; None: it does not
"""

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """One manager's socket, or none. Every method may be called from any thread; none raises."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ)
        self._said = ""

    def ready(self) -> None:
        """Start-up is over: it serves, or it runs and has no model yet."""
        self._send("READY=1")

    def stopping(self) -> None:
        """It ends, and on purpose."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it is another than before."""
        line = " ".join(text.split())
        if line != self._said:
            self._said = line
            self._send(f"STATUS={line}")

    def extend(self, seconds: float) -> None:
        """Starting takes so many seconds more: do not give up before."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def feed(self) -> None:
        """It serves."""
        self._send("WATCHDOG=1")

    def trip(self) -> None:
        """It hangs: end it now instead of when the feeds are missed."""
        self._send("WATCHDOG=trigger")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # A manager that restarts has no socket for a moment; the next message finds it again.
        with contextlib.suppress(OSError), _datagram() as out:
            out.sendto(message.encode(), self._address)


def _datagram() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _address(text: str) -> str | None:
    """A path, or a name without a file: the manager writes `@` for the leading NUL of that."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    try:
        wait_s = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
        meant = int(environ.get("WATCHDOG_PID", "0")) in (0, os.getpid())
    except ValueError:
        return None
    return wait_s if wait_s > 0 and meant else None
