"""The faulty network does what it says: each fault as both ends see it."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import Direction, Door, Faults, Proxy
from tests.support.wait import wait_for

UP, DOWN = Direction.UP, Direction.DOWN
QUIET_S = 0.15  # how long silence is watched; a byte takes microseconds


class Target:
    """What the proxy relays to: keeps the sockets it accepted."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.port: int = self.listener.getsockname()[1]

    def accept(self) -> socket.socket:
        """The next connection."""
        taken, _ = self.listener.accept()
        taken.settimeout(10)
        return taken


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.listener.close()


@pytest.fixture
def proxy(target: Target) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", target.port, seed=7) as made:
        yield made


@pytest.fixture
def ends(proxy: Proxy, target: Target) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Client and server of one relayed connection."""
    client, server = joined(proxy, target)
    yield client, server
    client.close()
    server.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def joined(proxy: Proxy, target: Target) -> tuple[socket.socket, socket.socket]:
    client = connect(proxy)
    return client, target.accept()


def take(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, f"ended after {len(data)} of {count} bytes"
        data += more
    return data


def take_all(sock: socket.socket) -> bytes:
    """Everything up to the end, however it ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(65536):
            data += more
    return data


def is_silent(sock: socket.socket) -> bool:
    """Nothing comes, an end neither."""
    sock.settimeout(QUIET_S)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(10)
    return False


def is_over(sock: socket.socket) -> bool:
    """The connection has ended, by FIN or RST."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


Ends = tuple[socket.socket, socket.socket]


def test_relays_both_ways_unchanged(proxy: Proxy, ends: Ends) -> None:
    client, server = ends
    sent = bytes(range(256)) * 4096
    writer = threading.Thread(target=client.sendall, args=(sent,))
    writer.start()
    assert take(server, len(sent)) == sent
    writer.join()
    server.sendall(b"back")
    assert take(client, 4) == b"back"
    # The bytes may be here before the relay's thread has counted them.
    wait_for(lambda: proxy.passed_bytes(UP) >= len(sent) and proxy.passed_bytes(DOWN) >= 4)
    assert (proxy.passed_bytes(UP), proxy.passed_bytes(DOWN)) == (len(sent), 4)
    assert (proxy.connections, proxy.open_connections) == (1, 1)


def test_an_end_passes_behind_the_bytes_and_leaves_the_other_way_open(ends: Ends) -> None:
    client, server = ends
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert take_all(server) == b"last"
    server.sendall(b"answer")
    server.close()
    assert take_all(client) == b"answer"


@pytest.mark.parametrize("way", list(Direction))
def test_delay_holds_one_direction(proxy: Proxy, ends: Ends, way: Direction) -> None:
    source, sink = ends if way is UP else ends[::-1]
    proxy.set(Faults(delay_s=0.3), way)
    sink.sendall(b"q")
    began = time.monotonic()
    assert take(source, 1) == b"q"
    assert time.monotonic() - began < 0.25
    began = time.monotonic()
    source.sendall(b"a")
    assert take(sink, 1) == b"a"
    assert 0.3 <= time.monotonic() - began < 2


def test_a_delayed_line_carries_many_at_once(proxy: Proxy, ends: Ends) -> None:
    """Latency is no bandwidth: ten chunks on the way take one delay, in order."""
    client, server = ends
    proxy.set(Faults(delay_s=0.25), UP)
    began = time.monotonic()
    for number in range(10):
        client.sendall(bytes([number]))
    assert take(server, 10) == bytes(range(10))
    assert 0.25 <= time.monotonic() - began < 1.5


def jitters(target: Target, seed: int) -> list[float]:
    with Proxy("127.0.0.1", target.port, seed) as proxy:
        proxy.set(Faults(jitter_s=0.2), UP)
        client, server = joined(proxy, target)
        found = []
        for _ in range(6):
            began = time.monotonic()
            client.sendall(b"x")
            take(server, 1)
            found.append(time.monotonic() - began)
        client.close()
        server.close()
    return found


def test_jitter_follows_from_the_seed(target: Target) -> None:
    first, again, other = jitters(target, 1), jitters(target, 1), jitters(target, 2)
    assert max(first) > 0.05
    assert all(abs(a - b) < 0.1 for a, b in zip(first, again, strict=True))
    assert any(abs(a - b) > 0.05 for a, b in zip(first, other, strict=True))


def test_bandwidth_limits_one_direction(proxy: Proxy, ends: Ends) -> None:
    client, server = ends
    proxy.set(Faults(bytes_per_s=200_000), DOWN)
    began = time.monotonic()
    writer = threading.Thread(target=server.sendall, args=(bytes(100_000),))
    writer.start()
    client.sendall(bytes(100_000))
    assert take(client, 100_000) == bytes(100_000)
    assert 0.45 <= time.monotonic() - began < 3
    writer.join()
    assert take(server, 100_000) == bytes(100_000)


@pytest.mark.parametrize("way", list(Direction))
def test_a_cut_falls_behind_exactly_so_many_bytes(
    proxy: Proxy, target: Target, way: Direction
) -> None:
    proxy.set(Faults(cut_after_bytes=1000), way)
    for _ in range(2):  # each connection anew
        pair = joined(proxy, target)
        source, sink = pair if way is UP else pair[::-1]
        source.sendall(bytes(999))
        assert take(sink, 999) == bytes(999)
        source.sendall(b"ab")
        assert take_all(sink) == b"a"
        assert is_over(source)
        source.close()
        sink.close()


def cuts(target: Target, seed: int) -> list[int]:
    found = []
    with Proxy("127.0.0.1", target.port, seed) as proxy:
        proxy.set(Faults(cut_after_bytes=10, cut_spread_bytes=5000), UP)
        for _ in range(4):
            client, server = joined(proxy, target)
            with contextlib.suppress(ConnectionError):
                client.sendall(bytes(6000))
            found.append(len(take_all(server)))
            client.close()
            server.close()
    return found


def test_where_a_cut_falls_follows_from_the_seed(target: Target) -> None:
    first = cuts(target, 1)
    assert all(10 <= count <= 5010 for count in first)
    assert len(set(first)) > 1
    assert first == cuts(target, 1)
    assert first != cuts(target, 2)


@pytest.mark.parametrize("way", list(Direction))
def test_half_open_passes_nothing_and_tells_nobody(
    proxy: Proxy, ends: Ends, way: Direction
) -> None:
    source, sink = ends if way is UP else ends[::-1]
    proxy.set(Faults(half_open=True), way)
    source.sendall(b"held")
    sink.sendall(b"free")
    assert take(source, 4) == b"free"
    assert is_silent(sink)
    source.shutdown(socket.SHUT_WR)
    assert is_silent(sink)
    proxy.set(Faults(), way)
    assert take_all(sink) == b"held"


def test_half_open_keeps_a_reset_to_itself(proxy: Proxy, ends: Ends) -> None:
    client, server = ends
    proxy.set(Faults(half_open=True))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
    assert is_silent(server)
    assert proxy.open_connections == 1
    proxy.restore()
    assert is_over(server)
    wait_for(lambda: proxy.open_connections == 0)


def test_half_open_pushes_back_on_the_sender(proxy: Proxy, ends: Ends) -> None:
    client, _ = ends
    proxy.set(Faults(half_open=True), UP)
    client.settimeout(QUIET_S)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(64 * 1024 * 1024))


def test_cut_resets_and_refuses_until_restored(proxy: Proxy, target: Target, ends: Ends) -> None:
    client, server = ends
    proxy.cut()
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert proxy.open_connections == 0
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
    proxy.restore()
    again, there = joined(proxy, target)
    again.sendall(b"x")
    assert take(there, 1) == b"x"
    again.close()
    there.close()


def test_a_closing_door_takes_and_closes(proxy: Proxy, target: Target) -> None:
    proxy.cut(Door.CLOSE)
    with connect(proxy) as client:
        assert is_over(client)
    assert proxy.connections == 0
    proxy.cut()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.cut(Door.CLOSE)
    with connect(proxy) as client:
        assert is_over(client)
    proxy.restore()
    client, server = joined(proxy, target)
    client.close()
    assert is_over(server)
    server.close()


def test_reset_ends_what_is_open_and_nothing_else(proxy: Proxy, target: Target, ends: Ends) -> None:
    client, server = ends
    proxy.reset()
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    again, there = joined(proxy, target)
    there.sendall(b"x")
    assert take(again, 1) == b"x"
    again.close()
    there.close()


def test_restore_lifts_every_fault(proxy: Proxy, ends: Ends) -> None:
    client, server = ends
    proxy.set(Faults(delay_s=30, bytes_per_s=1, half_open=True))
    proxy.restore()
    client.sendall(bytes(5000))
    assert take(server, 5000) == bytes(5000)


def test_an_absent_target_closes_the_connection(proxy: Proxy, target: Target) -> None:
    target.listener.close()
    with connect(proxy) as client:
        assert is_over(client)
    wait_for(lambda: proxy.open_connections == 0)


def test_close_ends_all_and_may_be_repeated(target: Target) -> None:
    proxy = Proxy("127.0.0.1", target.port)
    client, server = joined(proxy, target)
    proxy.close()
    proxy.close()
    assert is_over(client)
    assert is_over(server)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    client.close()
    server.close()
