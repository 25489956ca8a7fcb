"""What one peer can make the server hold or do: bounded, given back, and no one else's trouble."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.clock import SystemClock
from agent.serve.http2 import frames
from agent.serve.http2 import server as http2_server
from agent.serve.http2.frames import Kind
from tests.support.http2_world import (
    LIMIT,
    SERVICE,
    World,
    call,
    headers,
    message,
    opened,
    world,
)  # fmt: skip
from tests.support.wait import wait_for

MIB = 1024 * 1024


class Later:
    """The clock, set forward at will."""

    def __init__(self) -> None:
        self.by_s = 0.0

    def __call__(self) -> float:
        return SystemClock().monotonic() + self.by_s


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def echo(tmp_path: Path, later: Later) -> Iterator[World]:
    with world(tmp_path, clock=later, most_bytes=4 * LIMIT, most_calls=8) as made:
        yield made


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(Kind.DATA, flags, stream, payload)


def test_pings_whose_answers_are_not_read_end_their_connection_alone(echo: World) -> None:
    peer = echo.peer().hello()
    peer.sock.settimeout(20)
    pings = frames.frame(Kind.PING, 0, 0, bytes(8)) * 4096

    def flood() -> None:
        for _ in range(1000):
            peer.send(pings)

    with pytest.raises(ConnectionError):
        flood()
    peer.close()
    assert echo.call(b"others") == b"others"


def test_announced_bytes_are_not_held_before_they_come(echo: World) -> None:
    peers = [echo.peer().hello() for _ in range(8)]
    for peer in peers:
        peer.send(opened(1) + data(1, b"\0" + LIMIT.to_bytes(4, "big") + b"x"))
    wait_for(lambda: echo.server.buffers.out_bytes >= 8 * MIB)
    assert echo.server.buffers.out_bytes <= 8 * MIB
    for peer in peers:
        peer.close()
    wait_for(lambda: echo.server.buffers.out_bytes == 0)


def test_large_messages_grow_as_they_come(echo: World) -> None:
    whole = bytes(range(256)) * (LIMIT // 256)
    peer = echo.peer().hello(INITIAL_WINDOW_SIZE=2 * LIMIT)
    peer.send(frames.window_update(0, 2 * LIMIT) + opened(1))
    sent = message(whole)
    for at in range(0, len(sent), 300_000):
        peer.send(data(1, sent[at : at + 300_000]))
    peer.send(data(1, b"", frames.END_STREAM))
    seen = b""
    while len(seen) < len(sent):
        seen += peer.until(Kind.DATA).payload
    peer.close()
    assert seen == sent
    assert echo.server.buffers.kept_bytes <= 8 * MIB


def test_memory_is_kept_for_the_next_request_and_not_for_ever(echo: World, later: Later) -> None:
    assert echo.call(bytes(MIB)) == bytes(MIB)
    wait_for(lambda: echo.server.buffers.kept == 1)
    peer = echo.peer().hello()  # somebody is connected, so the server looks around
    later.by_s += 30
    wait_for(lambda: echo.server.buffers.kept == 0)
    peer.close()


@pytest.mark.parametrize("sent", [b"PRI * HTTP", None], ids=["preface", "message"])
def test_who_sends_a_byte_now_and_then_is_put_out(
    echo: World, later: Later, sent: bytes | None
) -> None:
    peer = echo.peer()
    if sent:
        peer.send(sent)
    else:
        peer.hello().send(opened(1) + data(1, message(bytes(1000))[:10]))
        wait_for(lambda: echo.server.buffers.out_bytes > 0)
        later.by_s += 8
        peer.send(data(1, b"x"))  # it is heard again and again
    assert echo.call(b"x") == b"x"
    later.by_s += 8
    assert peer.is_over()
    wait_for(lambda: echo.server.buffers.out_bytes == 0)
    peer.close()


def test_a_stream_at_rest_is_not_put_out(echo: World, later: Later) -> None:
    peer = echo.peer().hello()
    peer.send(opened(1, "Both") + data(1, message(b"a")))
    assert peer.until(Kind.DATA).payload == message(b"A")
    later.by_s += 3600
    assert echo.call(b"x") == b"x"
    peer.send(data(1, message(b"b"), frames.END_STREAM))
    assert peer.until(Kind.DATA).payload == message(b"B")
    peer.close()


def test_what_is_packed_counts_as_what_it_becomes(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(LIMIT))
    head = b"\1" + len(bomb).to_bytes(4, "big")
    with world(tmp_path, most_bytes=LIMIT // 2) as echo:
        peer = echo.peer().hello()
        block = headers("Echo", (b"grpc-encoding", b"gzip"))
        peer.send(frames.frame(Kind.HEADERS, frames.END_HEADERS, 1, block))
        peer.send(data(1, head + bomb, frames.END_STREAM))
        ended = peer.until(Kind.HEADERS, 1)
        assert frames.literal(b"grpc-status", b"8") in ended.payload
        peer.close()
        wait_for(lambda: echo.server.buffers.out_bytes == 0)
        assert echo.call(b"others") == b"others"


def test_a_placed_call_that_fails_gives_its_place_back(echo: World) -> None:
    def no_memory(one: Any) -> None:
        one.prepare()
        raise MemoryError

    echo.server.place(f"/{SERVICE}/Echo", no_memory)
    for _ in range(20):  # of eight places
        with pytest.raises(grpc.RpcError) as caught:
            echo.call(b"x")
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    wait_for(lambda: echo.server.buffers.out_bytes == 0)


def test_calls_that_are_given_up_while_they_wait_give_their_place_back(tmp_path: Path) -> None:
    with world(tmp_path, most_calls=6) as echo, echo.channel() as channel:
        held = []
        for _ in range(4):  # as many as there are threads
            held.append(channel.unary_unary(f"/{SERVICE}/Wait").future(b"x"))
            assert echo.entered.acquire(timeout=10)
        peer = echo.peer().hello()
        for number in range(1, 41, 2):
            peer.send(call(number, b"y", "Wait") + frames.reset(number, frames.Code.CANCEL))
        peer.send(frames.frame(Kind.PING, 0, 0, bytes(8)))
        while not peer.until(Kind.PING).flags & frames.ACK:
            pass
        peer.close()
        last = channel.unary_unary(f"/{SERVICE}/Echo").future(b"z")
        echo.go.set()
        assert last.result(20) == b"z"
        assert [one.result(20) for one in held] == [b"x"] * 4
        wait_for(lambda: echo.server.buffers.out_bytes == 0)


def test_connections_beyond_the_most_take_the_place_of_those_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_server, "_MOST_CONNECTIONS", 5)
    with world(tmp_path) as echo:
        idle = [echo.peer().hello() for _ in range(5)]
        for peer in idle:
            peer.send(frames.frame(Kind.PING, 0, 0, bytes(8)))
            peer.until(Kind.PING)
        assert echo.call(b"others") == b"others"
        assert idle[0].is_over()
        for peer in idle:
            peer.close()


def test_metadata_of_any_name_reaches_the_handler(echo: World) -> None:
    with echo.channel() as channel:
        told = channel.unary_unary(f"/{SERVICE}/Tell")(b"", timeout=20, metadata=(("tenant", "a"),))
    assert b"('tenant', 'a')" in told


def test_padding_of_large_frames(echo: World) -> None:
    peer = echo.peer().hello(INITIAL_WINDOW_SIZE=LIMIT)
    peer.send(frames.window_update(0, LIMIT) + opened(1))
    whole = message(bytes(200_000))
    for pad in (0, 255):
        part = whole[:100_000] if pad == 0 else whole[100_000:]
        flags = frames.PADDED | (frames.END_STREAM if pad else 0)
        peer.send(data(1, bytes((pad,)) + part + bytes(pad), flags))
    seen = b""
    while len(seen) < len(whole):
        seen += peer.until(Kind.DATA).payload
    assert seen == whole
    peer.close()


def test_the_pool_is_not_asked_when_the_reading_thread_has_ended(echo: World) -> None:
    """So that the watchdog, which is fed by what is asked, sees it."""
    done = []
    echo.server.ask(lambda: done.append(1))
    wait_for(lambda: len(done) == 1)
    echo.server.stop(0.0)
    echo.server.ask(lambda: done.append(2))
    assert done == [1]
