"""A small MQTT 3.1.1 client for many connections in one loop: an asyncio protocol, no threads.

Knows CONNECT with a will, SUBSCRIBE, PUBLISH (QoS 0 and 1), PING. Refuses QoS 2, and to queue:
what was in flight when a connection died is sent again by who sent it.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass

from agent.link.authority import Endpoint

KEEPALIVE_S = 60
CONNECT_S = 20.0
MAX_PACKET_BYTES = 256 * 1024
_IP_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)

_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _PINGRESP = 2, 3, 4, 9, 13


@dataclass(frozen=True, slots=True)
class Will:
    """The last will: retained, QoS 1."""

    topic: str
    payload: bytes


class BrokenError(Exception):
    """The connection was refused, or what came is not MQTT."""


def packet(kind: int, flags: int, body: bytes) -> bytes:
    """A packet with its length."""
    length, head = len(body), bytearray([kind << 4 | flags])
    while True:
        length, digit = divmod(length, 128)
        head.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(head) + body


def text(value: str | bytes) -> bytes:
    """A string (or bytes) with its length before it."""
    data = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def connect_packet(client_id: str, keepalive_s: int, will: Will) -> bytes:
    """CONNECT: a clean session with a retained will of QoS 1."""
    flags = 0x02 | 0x04 | 0x08 | 0x20
    head = text("MQTT") + bytes([4, flags]) + struct.pack(">H", keepalive_s)
    return packet(1, 0, head + text(client_id) + text(will.topic) + text(will.payload))


def publish_packet(topic: str, payload: bytes, number: int, *, retain: bool = False) -> bytes:
    """PUBLISH: QoS 1 with a packet number, QoS 0 where it is 0."""
    flags = (2 if number else 0) | (1 if retain else 0)
    head = text(topic) + (struct.pack(">H", number) if number else b"")
    return packet(3, flags, head + payload)


class MqttConnection(asyncio.Protocol):
    """One connection. `on_message` and `on_lost` are called in the loop: be quick there."""

    __slots__ = ("_buffer", "_number", "_on_lost", "_on_message", "_ping", "_transport", "ready")

    def __init__(
        self, on_message: Callable[[str, bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = b""
        self._number = 0
        self._transport: asyncio.Transport | None = None
        self._ping: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> bool:
        """Hand one message over; False when the connection is gone."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(
            publish_packet(topic, payload, self._next() if qos else 0, retain=retain)
        )
        return True

    def open(self, client_id: str, will: Will) -> None:
        """Introduce ourselves; `ready` is done when the broker agreed."""
        assert self._transport is not None
        self._transport.write(connect_packet(client_id, KEEPALIVE_S, will))

    def subscribe(self, pattern: str) -> None:
        """Ask for everything under a filter, QoS 1."""
        assert self._transport is not None
        body = struct.pack(">H", self._next()) + text(pattern) + b"\x01"
        self._transport.write(packet(8, 2, body))

    def close(self) -> None:
        """Say goodbye: the broker does not publish the will."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packet(14, 0, b""))
            self._transport.close()

    def drop(self) -> None:
        """End without a goodbye, as a power cut would."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pinging()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._ping is not None:
            self._ping.cancel()
        if not self.ready.done():
            self.ready.set_exception(BrokenError(f"the broker hung up: {exc or 'no reason'}"))
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        buffer = self._buffer + data if self._buffer else data
        at = 0
        try:
            while (end := self._take(buffer, at)) > at:
                at = end
        except (BrokenError, IndexError, struct.error):
            self.drop()
            return
        self._buffer = buffer[at:]

    def _take(self, buffer: bytes, at: int) -> int:
        """Handle the packet at `at` and say where it ends; `at` itself when it is not whole yet."""
        length, shift, start = 0, 0, at + 1
        while True:
            if start >= len(buffer):
                return at
            digit = buffer[start]
            start += 1
            length |= (digit & 0x7F) << shift
            if not digit & 0x80:
                break
            shift += 7
            if shift > 21:
                raise BrokenError("a length that is none")
        if length > MAX_PACKET_BYTES:
            raise BrokenError(f"a packet of {length} bytes")
        end = start + length
        if end > len(buffer):
            return at
        self._handle(buffer[at] >> 4, buffer[at] & 0x0F, buffer[start:end])
        return end

    def _handle(self, kind: int, flags: int, body: bytes) -> None:
        if kind == _PUBLISH:
            size = int.from_bytes(body[:2], "big")
            if len(body) < 2 + size + (2 if flags & 0x06 else 0) or flags & 0x04:
                raise BrokenError("a PUBLISH that is too short, or of QoS 2")
            topic, rest = body[2 : 2 + size].decode("utf-8", "replace"), body[2 + size :]
            if flags & 0x06:
                if self._transport is not None:
                    self._transport.write(packet(_PUBACK, 0, rest[:2]))
                rest = rest[2:]
            self._on_message(topic, rest)
        elif kind == _CONNACK:
            if body[1] != 0:
                raise BrokenError(f"the broker refused with code {body[1]}")
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind not in (_PUBACK, _SUBACK, _PINGRESP):
            raise BrokenError(f"packet type {kind}")

    def _next(self) -> int:
        self._number = self._number % 65535 + 1
        return self._number

    def _pinging(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if self._ping is not None:
                self._transport.write(packet(12, 0, b""))
            loop = asyncio.get_running_loop()
            self._ping = loop.call_later(KEEPALIVE_S * 0.7, self._pinging)


async def open_connection(
    endpoint: Endpoint,
    context: ssl.SSLContext,
    source: str | None,
    make: Callable[[], MqttConnection],
) -> MqttConnection:
    """Connect with TLS, from `source` where given. OSError, TimeoutError.

    Binding without a port lets the kernel choose it when it connects: one source address is good
    for 28,000 connections, and looking for a free port does not cost milliseconds each time.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_S):
        if source is None:
            _, made = await loop.create_connection(
                make, endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.host
            )
            return made
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
            await loop.sock_connect(sock, (endpoint.host, endpoint.port))
            _, made = await loop.create_connection(
                make, sock=sock, ssl=context, server_hostname=endpoint.host
            )
        except BaseException:
            sock.close()
            raise
        return made
