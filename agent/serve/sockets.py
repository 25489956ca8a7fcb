"""Listening sockets: TCP addresses, and a Unix socket that never has other permissions than asked.

Refuses to take an address or a path from a process that lives, and to remove what is no socket.
"""

import contextlib
import errno
import os
import socket
import stat
import tempfile
from pathlib import Path

from agent.errors import UnavailableError

# What fits into the kernel's address, without its end.
_LONGEST_PATH = 107
_ASK_S = 1.0


def tcp_listeners(listen: str, backlog: int, setting: str) -> list[socket.socket]:
    """Sockets on the addresses of HOST:PORT, one at least. UnavailableError says why not.

    `setting` is what an error tells to change.
    """
    host, _, number = listen.rpartition(":")
    made: list[socket.socket] = []
    failed = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(number), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in found:
            # All addresses of a name get the port that the first one got.
            port = made[0].getsockname()[1] if made else address[1]
            try:
                made.append(_tcp(family, (address[0], port, *address[2:]), backlog))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
                failed = error
        if not made:
            raise failed
    except OSError as error:
        for one in made:
            one.close()
        raise UnavailableError(
            f"cannot listen on {listen}: {(error.strerror or str(error)).lower()}",
            f"another process may have it; choose another with {_named(setting)}",
        ) from error
    return made


def _tcp(family: int, address: tuple[object, ...], backlog: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(backlog)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _named(setting: str) -> str:
    return f"{setting} (LIGHTERMAN_{setting.replace('.', '_').upper()})"


class UnixListener:
    """A socket at a path. It is made beside it, given its permissions, and then moved there."""

    def __init__(self, path: Path, mode: int, setting: str = "serve.socket") -> None:
        """`setting` is what an error tells to change."""
        self._path = path
        self._hint = f"choose another path with {_named(setting)}"
        self._mode = mode
        self._inode = 0
        self.socket: socket.socket | None = None

    def listen(self, backlog: int) -> socket.socket:
        """Listen. UnavailableError when the path is taken, too long or cannot be written."""
        path = self._path
        self._refuse_taken()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Nobody else gets into this folder: between bind and chmod a socket is open to more.
            with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
                own = Path(folder) / "s"
                if max(len(os.fsencode(one)) for one in (own, path)) > _LONGEST_PATH:
                    raise OSError(errno.ENAMETOOLONG, "the path is too long")
                made.bind(str(own))
                own.chmod(self._mode)
                self._inode = own.stat().st_ino
                made.listen(backlog)
                own.rename(path)
        except OSError as error:
            made.close()
            raise UnavailableError(
                f"cannot listen on {path}: {(error.strerror or str(error)).lower()}",
                self._hint,
            ) from error
        made.setblocking(False)
        self.socket = made
        return made

    def remove(self) -> None:
        """Take the path away, if it is still ours."""
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    def _refuse_taken(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except OSError:
            return  # not there, or the bind says what is wrong
        taken = "is no socket"
        if stat.S_ISSOCK(mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(_ASK_S)
                try:
                    probe.connect(str(self._path))
                except ConnectionRefusedError:
                    return  # whoever made it is gone
                except OSError:
                    pass
            taken = "belongs to another process"
        raise UnavailableError(
            f"cannot listen on {self._path}: what is there {taken}",
            self._hint,
        )
