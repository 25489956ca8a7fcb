"""The small MQTT client of the simulation: packets, pieces of packets, and what is no MQTT."""

import asyncio
from collections.abc import Callable

import pytest

from agent.sim.mqtt import (
    MAX_PACKET_BYTES,
    BrokenError,
    MqttConnection,
    Will,
    connect_packet,
    packet,
    publish_packet,
)


class Wire(asyncio.Transport):
    """Takes what is written; nothing is behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


def in_loop(act: Callable[[MqttConnection, Wire, list[tuple[str, bytes]]], None]) -> None:
    """Run something against a connection within a loop."""

    async def run() -> None:
        heard: list[tuple[str, bytes]] = []
        made = MqttConnection(lambda topic, payload: heard.append((topic, payload)), lambda: None)
        wire = Wire()
        made.connection_made(wire)
        try:
            act(made, wire, heard)
        finally:
            made.connection_lost(None)
            if made.ready.done():
                made.ready.exception()

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 200_000])
def test_lengths_of_all_sizes_are_read_back(size: int) -> None:
    sent = publish_packet("a/b", bytes(size), 0)

    def act(made: MqttConnection, wire: Wire, heard: list[tuple[str, bytes]]) -> None:
        made.data_received(sent)
        assert heard == [("a/b", bytes(size))]
        assert not wire.aborted

    in_loop(act)


def test_packets_may_come_in_any_pieces() -> None:
    stream = b"".join(publish_packet("t", bytes([n]) * 200, n) for n in range(1, 20))

    def act(made: MqttConnection, wire: Wire, heard: list[tuple[str, bytes]]) -> None:
        for at in range(0, len(stream), 7):
            made.data_received(stream[at : at + 7])
        assert [payload[0] for _, payload in heard] == list(range(1, 20))
        # Each of QoS 1 is confirmed with its own number.
        assert wire.written == b"".join(packet(4, 0, bytes([0, n])) for n in range(1, 20))

    in_loop(act)


def test_the_broker_agrees_or_refuses() -> None:
    def agreed(made: MqttConnection, wire: Wire, heard: list[tuple[str, bytes]]) -> None:
        made.data_received(packet(2, 0, b"\x00\x00"))
        assert made.ready.done()
        assert made.ready.exception() is None

    def refused(made: MqttConnection, wire: Wire, heard: list[tuple[str, bytes]]) -> None:
        made.data_received(packet(2, 0, b"\x00\x05"))
        assert wire.aborted
        made.connection_lost(None)
        assert isinstance(made.ready.exception(), BrokenError)

    in_loop(agreed)
    in_loop(refused)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\xff\xff\xff\xff\x01",  # a length of five digits
        packet(3, 0, b"")[:1] + b"\x80\x80\x80\x04",  # more than is allowed
        packet(6, 0, b"\x00\x01"),  # QoS 2
        packet(3, 2, b"\x00\x01t"),  # PUBLISH without its number
        packet(3, 0, b"\x00\x09t"),  # PUBLISH without its topic
        packet(2, 0, b""),  # CONNACK without a code
    ],
)
def test_what_is_no_mqtt_ends_the_connection(data: bytes) -> None:
    def act(made: MqttConnection, wire: Wire, heard: list[tuple[str, bytes]]) -> None:
        made.data_received(data)
        assert wire.aborted
        assert heard == []

    in_loop(act)


def test_connect_carries_the_will() -> None:
    sent = connect_packet("sim-1", 60, Will("up/presence", b"gone"))
    assert sent[0] == 0x10
    assert sent[2:8] == b"\x00\x04MQTT"
    assert sent[9] == 0x2E  # clean, will, retained, QoS 1
    assert sent.endswith(b"\x00\x05sim-1\x00\x0bup/presence\x00\x04gone")
    assert len(sent) < MAX_PACKET_BYTES
