"""Loopback ports for servers that are started soon, and started again later.

Below those that Linux gives to outgoing connections (`ip_local_port_range`, from 32768 on): a port
of that range may be some client's end by the time it is bound, or while its server is away.
"""

import secrets
import socket
from contextlib import ExitStack

_FIRST, _LAST = 15_000, 32_000


def free_port() -> int:
    """A TCP port that nothing on 127.0.0.1 uses now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """`count` different free ports: all are held while the others are looked for."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                probe.bind(("127.0.0.1", _FIRST + secrets.randbelow(_LAST - _FIRST)))
            except OSError:
                continue
            found.append(int(probe.getsockname()[1]))
    return found
