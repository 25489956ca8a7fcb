"""Peers that speak HTTP/2 badly, slowly or in bad faith: their connection ends, no other one."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.serve.http2 import frames
from agent.serve.http2.frames import Code, Kind
from tests.support.http2_world import SERVICE, Peer, World, call, headers, message, opened, world
from tests.support.wait import wait_for

WHOLE = frames.END_HEADERS | frames.END_STREAM


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def peer(echo: World) -> Iterator[Peer]:
    made = echo.peer()
    yield made
    made.close()


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(Kind.DATA, flags, stream, payload)


def continued(pieces: int, size: int) -> bytes:
    first = frames.frame(Kind.HEADERS, 0, 1, headers())
    return first + frames.frame(Kind.CONTINUATION, 0, 1, bytes(size)) * pieces


BAD = {
    "no frame of HTTP/2": (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", Code.PROTOCOL_ERROR),
    "larger than a frame may be": (b"\xff\xff\xff\0\0\0\0\0\1", Code.FRAME_SIZE_ERROR),
    "large headers": (b"\0\xff\xff\1\4\0\0\0\1", Code.ENHANCE_YOUR_CALM),
    "damaged headers": (
        frames.frame(Kind.HEADERS, WHOLE, 1, b"\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR,
    ),
    "a header bomb": (
        frames.frame(Kind.HEADERS, WHOLE, 1, frames.literal(b"a", bytes(15_000)) * 2),
        Code.ENHANCE_YOUR_CALM,
    ),
    "headers without an end": (continued(20, 16_000), Code.ENHANCE_YOUR_CALM),
    "empty continuations": (continued(1, 0), Code.ENHANCE_YOUR_CALM),
    "a frame amid headers": (
        frames.frame(Kind.HEADERS, 0, 1, headers()) + data(1, b""), Code.PROTOCOL_ERROR,
    ),
    "a continuation of nothing": (
        frames.frame(Kind.CONTINUATION, frames.END_HEADERS, 1, b""), Code.PROTOCOL_ERROR,
    ),
    "data of no stream": (data(1, b"x"), Code.PROTOCOL_ERROR),
    "data on stream 0": (data(0, b"x"), Code.PROTOCOL_ERROR),
    "an even stream": (call(2, b"x"), Code.PROTOCOL_ERROR),
    "a stream twice": (call(3, b"x") + call(1, b"x"), Code.PROTOCOL_ERROR),
    "a promise": (frames.frame(Kind.PUSH_PROMISE, 0, 1, bytes(4)), Code.PROTOCOL_ERROR),
    "a reset of no stream": (frames.reset(7, Code.CANCEL), Code.PROTOCOL_ERROR),
    "a short ping": (frames.frame(Kind.PING, 0, 0, b"x"), Code.FRAME_SIZE_ERROR),
    "odd settings": (frames.frame(Kind.SETTINGS, 0, 0, b"x"), Code.FRAME_SIZE_ERROR),
    "a window of more than there is": (
        frames.window_update(0, frames.MOST_WINDOW), Code.FLOW_CONTROL_ERROR,
    ),
    "a window of nothing": (frames.window_update(0, 0), Code.FLOW_CONTROL_ERROR),
    "a frame size that is none": (
        frames.settings({frames.Setting.MAX_FRAME_SIZE: 5}), Code.PROTOCOL_ERROR,
    ),
    "padding alone": (
        opened(1) + data(1, b"\x09abc", frames.PADDED), Code.PROTOCOL_ERROR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_what_breaks_the_protocol_ends_the_connection(echo: World, name: str) -> None:
    sent, code = BAD[name]
    peer = echo.peer()
    if "HTTP/2" not in name:
        peer.hello()
    peer.send(sent)
    told = peer.until(Kind.GOAWAY)
    assert told.payload[4:8] == code.to_bytes(4, "big"), told
    assert peer.is_over()
    peer.close()
    assert echo.call(b"others go on") == b"others go on"
    assert echo.server.buffers.out_bytes == 0


def test_a_call_byte_by_byte(peer: Peer) -> None:
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in frames.PREFACE + frames.settings({}) + call(1, b"slow") + call(3, b"ly"):
        peer.send(bytes((byte,)))
    assert peer.until(Kind.DATA, 1).payload == message(b"slow")
    assert peer.until(Kind.DATA, 3).payload == message(b"ly")


def test_padding_priority_and_what_is_unknown(peer: Peer) -> None:
    flags = WHOLE - frames.END_STREAM | frames.PADDED | frames.PRIORITY_GIVEN
    block = b"\x03" + bytes(5) + headers() + bytes(3)
    peer.hello()
    peer.send(frames.frame(Kind.HEADERS, flags, 1, block))
    peer.send(frames.frame(Kind.PRIORITY, 0, 1, bytes(5)) + b"\0\0\1\x63\0\0\0\0\1z")
    peer.send(data(1, b"\x02" + message(b"padded") + bytes(2), frames.PADDED | frames.END_STREAM))
    assert peer.until(Kind.DATA).payload == message(b"padded")


def remembered(name: int, value: bytes) -> bytes:
    """A header field, its name by number, that the table of the connection takes up first."""
    return bytes((0x40 | name, len(value))) + value


def test_numbers_of_headers_mean_what_they_mean_by_then(peer: Peer) -> None:
    """The same bytes are a call of another method once the peer has changed its table."""
    kind, path, post = 31, 4, b"\x83\x86"
    echo, wrong = f"/{SERVICE}/Echo".encode(), f"/{SERVICE}/Abort".encode()
    first_and_second = post + b"\xbe\xbf"
    blocks = [
        (post + remembered(kind, b"application/grpc") + remembered(path, echo), b"0"),
        (first_and_second, b"0"),
        (first_and_second, b"0"),
        (post + remembered(kind, b"application/grpc") + remembered(path, wrong), b"5"),
        (first_and_second, b"5"),
    ]
    peer.hello()
    for number, (block, status) in enumerate(blocks):
        stream = 2 * number + 1
        peer.send(frames.frame(Kind.HEADERS, frames.END_HEADERS, stream, block))
        peer.send(data(stream, message(b"x"), frames.END_STREAM))
        while not (found := peer.until(Kind.HEADERS, stream)).flags & frames.END_STREAM:
            pass
        assert frames.literal(b"grpc-status", status) in found.payload, number


def test_messages_in_any_pieces(peer: Peer) -> None:
    whole = message(os.urandom(1000))
    peer.hello().send(opened(1))
    for at in range(0, len(whole), 7):
        peer.send(data(1, whole[at : at + 7]))
    peer.send(data(1, b"", frames.END_STREAM))
    assert peer.until(Kind.DATA).payload == whole


def test_a_small_window_is_kept(peer: Peer) -> None:
    """An answer waits for the room that its reader gives, stream by stream."""
    peer.hello(INITIAL_WINDOW_SIZE=10)
    peer.send(call(1, b"a" * 25))
    peer.send(call(3, b"b" * 5))
    seen = b""
    while len(seen) < 10:
        seen += peer.until(Kind.DATA, 1).payload
    assert len(seen) == 10
    assert peer.until(Kind.DATA, 3).payload == message(b"b" * 5)
    peer.send(frames.window_update(1, 7))
    seen += peer.until(Kind.DATA, 1).payload
    peer.send(frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 100}))
    while len(seen) < 30:
        seen += peer.until(Kind.DATA, 1).payload
    assert seen == message(b"a" * 25)
    assert peer.until(Kind.HEADERS, 1).flags & frames.END_STREAM


def test_the_whole_connection_has_a_window(peer: Peer) -> None:
    peer.hello(INITIAL_WINDOW_SIZE=1_000_000, MAX_FRAME_SIZE=100_000)
    peer.send(call(1, bytes(100_000)))
    seen = 0
    while seen < frames.LEAST_WINDOW:
        seen += len(peer.until(Kind.DATA, 1).payload)
    assert seen == frames.LEAST_WINDOW
    peer.send(frames.frame(Kind.PING, 0, 0, bytes(8)))
    next_one = next(peer.frames())
    assert next_one.kind == Kind.PING, "the window was not kept"
    peer.send(frames.window_update(0, 100_000))
    while seen < 100_005:
        seen += len(peer.until(Kind.DATA, 1).payload)


def test_who_reads_nothing_keeps_nobody_waiting(echo: World, peer: Peer) -> None:
    peer.hello(INITIAL_WINDOW_SIZE=frames.MOST_WINDOW)
    peer.send(frames.window_update(0, frames.MOST_WINDOW - frames.LEAST_WINDOW))
    for number in range(1, 21, 2):
        peer.send(call(number, bytes(1_000_000)))
    assert echo.call(b"others") == b"others"
    seen = dict.fromkeys(range(1, 21, 2), 0)
    for found in peer.frames():
        if found.kind == Kind.DATA:
            seen[found.stream] += len(found.payload)
        if all(size == 1_000_005 for size in seen.values()):
            break


def test_what_is_no_grpc_gets_an_http_status(peer: Peer) -> None:
    peer.hello()
    get = b"".join(frames.literal(n, v) for n, v in ((b":method", b"GET"), (b":path", b"/")))
    peer.send(frames.frame(Kind.HEADERS, WHOLE, 1, get))
    assert peer.until(Kind.HEADERS).payload == frames.http_error(405)
    post = frames.literal(b":method", b"POST") + frames.literal(b"content-type", b"text/html")
    peer.send(frames.frame(Kind.HEADERS, WHOLE, 3, post))
    assert peer.until(Kind.HEADERS).payload == frames.http_error(415)


@pytest.mark.parametrize(
    "sent",
    [
        opened(1, flags=frames.END_STREAM),
        opened(1) + data(1, message(b"cut")[:6], frames.END_STREAM),
    ],
)
def test_a_call_without_its_message_is_refused(peer: Peer, sent: bytes) -> None:
    peer.hello().send(sent)
    ended = peer.until(Kind.HEADERS, 1)
    assert ended.flags & frames.END_STREAM
    assert frames.literal(b"grpc-status", b"13") in ended.payload


def test_two_messages_where_one_was_to_come(echo: World, peer: Peer) -> None:
    peer.hello().send(opened(1, "Wait") + data(1, message(b"one") + message(b"two")))
    assert frames.literal(b"grpc-status", b"13") in peer.until(Kind.HEADERS, 1).payload
    assert peer.until(Kind.RST_STREAM).stream == 1
    peer.send(data(1, message(b"three")) + call(3, b"four"))
    assert peer.until(Kind.DATA, 3).payload == message(b"four")


def test_calls_begun_to_be_given_up_end_the_connection(echo: World, peer: Peer) -> None:
    """The rapid reset: no more work than the resets are worth."""
    peer.hello()
    try:
        for number in range(1, 6001, 2):
            peer.send(opened(number) + frames.reset(number, Code.CANCEL))
    except ConnectionError:
        pass
    assert peer.is_over()
    assert echo.call(b"others") == b"others"


def test_a_hang_up_gives_everything_back(echo: World, peer: Peer) -> None:
    peer.hello().send(opened(1) + data(1, message(bytes(50_000))[:1000]))
    wait_for(lambda: echo.server.buffers.out_bytes >= 50_000)
    peer.close()
    wait_for(lambda: echo.server.buffers.out_bytes == 0)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


PIECES = st.one_of(
    st.binary(max_size=40),
    st.builds(
        frames.frame, st.sampled_from(list(Kind)), st.integers(0, 255),
        st.integers(0, 9), st.binary(max_size=64),
    ),
    st.builds(call, st.sampled_from([1, 3, 5, 7, 9]), st.binary(max_size=50),
              st.sampled_from(["Echo", "Abort", "Both", "Sum", "Nothing"])),
    st.builds(opened, st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from(["Echo", "Both"])),
    st.builds(lambda s, n, v: frames.settings({n: v}) + frames.window_update(s, v | 1),
              st.integers(0, 9), st.sampled_from(list(frames.Setting)), st.integers(0, 2**31 - 2)),
)  # fmt: skip


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.lists(PIECES, max_size=12))
def test_any_bytes_leave_the_server_serving(lasting: World, pieces: list[bytes]) -> None:
    peer = lasting.peer()
    try:
        peer.send(frames.PREFACE + frames.settings({}) + b"".join(pieces))
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.is_over()
    except ConnectionError:
        pass  # reset while it was still sending
    finally:
        peer.close()
    assert lasting.call(b"still here") == b"still here"
    wait_for(lambda: lasting.server.buffers.out_bytes == 0)
