"""gRPC over our own HTTP/2, asked by gRPC's own client and by one of another make."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.http2_world import LIMIT, SERVICE, World, message, world
from tests.support.wait import wait_for


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def refusal(echo: World, method: str, data: bytes = b"x", **options: Any) -> tuple[Any, str]:
    with echo.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/{method}")(data, **{"timeout": 20, **options})
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code(), str(error.details())


@pytest.mark.parametrize("size", [0, 1, 5, 16_384, 65_536, 602_112, LIMIT])
def test_what_was_sent_comes_back(echo: World, size: int) -> None:
    data = os.urandom(size)
    assert echo.call(data) == data


def test_many_at_once_on_one_connection(echo: World) -> None:
    pictures = [os.urandom(200_000 + number) for number in range(64)]
    with echo.channel() as channel, ThreadPoolExecutor(32) as pool:
        ask = channel.unary_unary(f"/{SERVICE}/Echo")
        assert list(pool.map(lambda data: ask(data, timeout=20), pictures)) == pictures
    assert echo.server.buffers.out_bytes == 0


def test_buffers_are_used_again(echo: World) -> None:
    with echo.channel() as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Echo")
        for number in range(20):
            ask(bytes(100_000 - number), timeout=20)
    wait_for(lambda: echo.server.buffers.out_bytes == 0)
    assert echo.server.buffers.kept == 1


def test_over_a_unix_socket(echo: World) -> None:
    channel: Any
    with grpc.insecure_channel(f"unix:{echo.unix}") as channel:
        assert channel.unary_unary(f"/{SERVICE}/Echo")(b"here", timeout=20) == b"here"


def test_refusals_say_what_gRPC_says(echo: World) -> None:
    code, details = refusal(echo, "Echo", bytes(LIMIT + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == f"received message larger than max ({LIMIT + 1} vs. {LIMIT})"
    assert refusal(echo, "Nothing")[0] is grpc.StatusCode.UNIMPLEMENTED
    assert refusal(echo, "Abort") == (
        grpc.StatusCode.NOT_FOUND, "no model 'ä%'\nthere is 'b'",
    )  # fmt: skip
    code, details = refusal(echo, "Raise")
    assert code is grpc.StatusCode.UNKNOWN
    assert "nothing of the kind" in details


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_packed_messages_are_unpacked_within_the_limit(echo: World, kind: Any) -> None:
    with echo.channel() as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Echo")
        assert ask(bytes(100_000), timeout=20, compression=kind) == bytes(100_000)
    code, _ = refusal(echo, "Echo", bytes(LIMIT + 1), compression=kind)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_and_the_time_left(echo: World) -> None:
    with echo.channel() as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Tell")
        told = ask(b"", timeout=20, metadata=(("who", "me"), ("raw-bin", b"\0\xff")))
    assert b"('who', 'me')" in told
    assert rb"('raw-bin', b'\x00\xff')" in told
    assert b"('left', '20')" in told or b"('left', '19')" in told


def test_streams_of_each_kind(echo: World) -> None:
    with echo.channel() as channel:
        both = channel.stream_stream(f"/{SERVICE}/Both")
        words = [b"a", b"", b"b" * 100_000, b"c"]
        assert list(both(iter(words), timeout=20)) == [word.upper() for word in words]
        add = channel.stream_unary(f"/{SERVICE}/Sum")
        assert add(iter([bytes(LIMIT)] * 5), timeout=20) == str(5 * LIMIT).encode()
        count = channel.unary_stream(f"/{SERVICE}/Count")
        assert [int(one) for one in count(b"1000", timeout=20)] == list(range(1000))


def test_an_answer_to_each_before_the_next_is_sent(echo: World) -> None:
    """Nothing is held back until the stream ends."""
    answered = threading.Semaphore(0)

    def words() -> Iterator[bytes]:
        yield b"a"
        for _ in range(3):
            assert answered.acquire(timeout=20)
            yield b"b"

    with echo.channel() as channel:
        for _ in channel.stream_stream(f"/{SERVICE}/Both")(words(), timeout=20):
            answered.release()


def test_a_cancelled_call_is_told_and_others_go_on(echo: World) -> None:
    with echo.channel() as channel:
        call = channel.unary_unary(f"/{SERVICE}/Wait").future(b"x")
        assert echo.entered.acquire(timeout=10)
        call.cancel()
        assert echo.ended.acquire(timeout=10)
        assert channel.unary_unary(f"/{SERVICE}/Echo")(b"y", timeout=20) == b"y"


def test_a_deadline_ends_a_call(echo: World) -> None:
    assert refusal(echo, "Wait", timeout=0.3)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert echo.ended.acquire(timeout=10)


def test_no_more_calls_than_allowed(tmp_path: Path) -> None:
    with world(tmp_path, most_calls=3) as echo, echo.channel() as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Wait")
        waiting = [ask.future(b"x") for _ in range(3)]
        for _ in range(3):
            assert echo.entered.acquire(timeout=10)
        assert refusal(echo, "Echo")[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        echo.go.set()
        assert [one.result(20) for one in waiting] == [b"x"] * 3
        wait_for(lambda: echo.call(b"y") == b"y")


def test_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    with world(tmp_path, most_bytes=LIMIT) as echo, echo.channel() as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Wait")
        waiting = ask.future(bytes(LIMIT - 10_000))
        assert echo.entered.acquire(timeout=10)
        code, details = refusal(echo, "Echo", bytes(100_000))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too many bytes" in details
        echo.go.set()
        assert len(waiting.result(20)) == LIMIT - 10_000


def test_the_end_waits_for_what_runs(echo: World) -> None:
    with echo.channel() as channel:
        call = channel.unary_unary(f"/{SERVICE}/Wait").future(b"x")
        assert echo.entered.acquire(timeout=10)
        ending = threading.Thread(target=echo.server.stop, args=(20.0,))
        ending.start()
        assert refused_by(echo.address)
        echo.go.set()
        assert call.result(20) == b"x"
        ending.join(20)
        assert not ending.is_alive()


def refused_by(address: str) -> bool:
    """Nobody listens there any more, soon."""
    host, _, port = address.rpartition(":")

    def gone() -> bool:
        try:
            socket.create_connection((host, int(port)), 5).close()
        except ConnectionError:
            return True
        return False

    return wait_for(gone)


def test_the_end_does_not_wait_longer_than_the_grace(echo: World) -> None:
    with echo.channel() as channel:
        call = channel.unary_unary(f"/{SERVICE}/Wait").future(b"x")
        assert echo.entered.acquire(timeout=10)
        echo.server.stop(0.1)
        with pytest.raises(grpc.RpcError) as caught:
            call.result(20)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_of_another_make(echo: World) -> None:
    """hyper-h2, which checks each frame and header of ours."""
    host, _, port = echo.address.rpartition(":")
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    client.send_headers(1, [
        (":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/Echo"),
        (":authority", "here"), ("content-type", "application/grpc"), ("te", "trailers"),
    ])  # fmt: skip
    client.send_data(1, message(b"z" * 10_000), end_stream=True)
    body = b""
    seen: dict[str, str] = {}
    with socket.create_connection((host, int(port)), 10) as sock:
        while "grpc-status" not in seen:
            sock.sendall(client.data_to_send())
            for event in client.receive_data(sock.recv(65_536)):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    seen.update({str(name): str(value) for name, value in event.headers})
    assert body == message(b"z" * 10_000)
    assert (seen[":status"], seen["grpc-status"]) == ("200", "0")
