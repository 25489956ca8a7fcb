"""`python -m bench.serving.asker_grpc URL MODEL unary|stream IN_FLIGHT CORE`: the same over gRPC.

Frames of HTTP/2 prepared as bytes, one connection, an epoll: gRPC's own Python client would be what
is measured. `unary` opens a stream for each request, `stream` one `ModelStreamInfer` for all. An
answer that is none, or an error in its place, is a failed one.
"""

import json
import os
import socket
import struct
import sys
from time import perf_counter
from typing import Any

from agent.serve.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    MOST_WINDOW,
    PREFACE,
    Kind,
    Setting,
    frame,
    literal,
    settings,
    window_update,
)
from lighterman.oip import inference_pb2 as pb

_PATH = "/inference.GRPCInferenceService/"
_ROOM = MOST_WINDOW - 65535
# Before the room that was given is used up, more is given.
_REFILL_BYTES = 1 << 29
_CHUNK = 1 << 20


def message(model: str) -> bytes:
    """One request with gRPC's prefix."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(struct.pack("<4f", 1, 1, 1, 1))
    data = request.SerializeToString()
    return b"\0" + struct.pack("!I", len(data)) + data


class Asker:
    """One connection with so many requests under way."""

    def __init__(self, address: str, model: str, method: str, in_flight: int) -> None:
        host, _, port = address.rpartition(":")
        self._line = socket.create_connection((host, int(port)))
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", (_PATH + method).encode()),
            (b":authority", address.encode()), (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )  # fmt: skip
        head = b"".join(literal(name, value) for name, value in fields)
        self._head = frame(Kind.HEADERS, END_HEADERS, 1, head)
        self._is_stream = method == "ModelStreamInfer"
        flags = 0 if self._is_stream else END_STREAM
        self._data = frame(Kind.DATA, flags, 1, message(model))
        self._in_flight = in_flight
        self._next = 1
        self._read = b""
        self._received = 0
        self._bodies: dict[int, bytes] = {}
        self._began: dict[int, float] = {}
        self._line.sendall(
            PREFACE + settings({Setting.INITIAL_WINDOW_SIZE: MOST_WINDOW}) + window_update(0, _ROOM)
        )
        if self._is_stream:
            self._line.sendall(self._head)

    def work(self, seconds: float) -> dict[str, Any]:
        """So long, and until what is under way then was answered."""
        times: list[float] = []
        failed = 0
        began = perf_counter()
        until = began + seconds
        self._ask(self._in_flight)
        running = self._in_flight
        while running:
            done, wrong = self._answers(times)
            failed += wrong
            if perf_counter() < until:
                self._ask(done)
            else:
                running -= done
        took = perf_counter() - began
        times.sort()
        return {
            "done": len(times) - failed,
            "failed": failed,
            "took_s": took,
            "p50_ms": 1000 * times[len(times) // 2],
            "p99_ms": 1000 * times[len(times) * 99 // 100],
            "cpu_s": sum(os.times()[:2]),
        }

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _ask(self, count: int) -> None:
        if not count:
            return
        now, parts = perf_counter(), []
        for _ in range(count):
            self._began[self._next] = now
            if self._is_stream:
                parts.append(self._data)
                self._next += 1
                continue
            number = self._next.to_bytes(4, "big")
            parts += [
                self._head[:5], number, self._head[9:], self._data[:5], number, self._data[9:],
            ]  # fmt: skip
            self._next += 2
        self._line.sendall(b"".join(parts))

    def _answers(self, times: list[float]) -> tuple[int, int]:
        """Read what there is; how many requests ended, and how many of them wrongly."""
        data = self._line.recv(_CHUNK)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._received += len(data)
        if self._received > _REFILL_BYTES:
            self._line.sendall(window_update(0, self._received))
            self._received = 0
        read, at, done, wrong = self._read + data, 0, 0, 0
        while at + HEAD_BYTES <= len(read):
            length = int.from_bytes(read[at : at + 3], "big")
            end = at + HEAD_BYTES + length
            if end > len(read):
                break
            kind, flags = read[at + 3], read[at + 4]
            stream = int.from_bytes(read[at + 5 : at + 9], "big")
            more = self._frame(kind, flags, stream, read[at + HEAD_BYTES : end], times)
            done, wrong = done + more[0], wrong + more[1]
            at = end
        self._read = read[at:]
        return done, wrong

    def _frame(
        self, kind: int, flags: int, stream: int, payload: bytes, times: list[float]
    ) -> tuple[int, int]:
        if kind == Kind.DATA and self._is_stream:
            return self._messages(payload, times)
        if kind == Kind.DATA:
            self._bodies[stream] = payload
        elif kind in (Kind.HEADERS, Kind.RST_STREAM) and self._is_stream:
            if flags & END_STREAM or kind == Kind.RST_STREAM:
                raise ConnectionError(f"the server ended the stream: {payload!r}")
        elif kind in (Kind.HEADERS, Kind.RST_STREAM):
            if flags & END_STREAM or kind == Kind.RST_STREAM:
                times.append(perf_counter() - self._began.pop(stream))
                return 1, int(not self._bodies.pop(stream, b""))
        elif kind == Kind.SETTINGS and not flags & ACK:
            self._line.sendall(frame(Kind.SETTINGS, ACK, 0))
        elif kind == Kind.PING and not flags & ACK:
            self._line.sendall(frame(Kind.PING, ACK, 0, payload))
        elif kind == Kind.GOAWAY:
            raise ConnectionError(f"the server says good-bye: {payload!r}")
        return 0, 0

    def _messages(self, payload: bytes, times: list[float]) -> tuple[int, int]:
        """Messages of the stream's answers, in the order of the requests."""
        data, at, done, wrong = self._bodies.pop(0, b"") + payload, 0, 0, 0
        while at + 5 <= len(data):
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if end > len(data):
                break
            first = next(iter(self._began))
            times.append(perf_counter() - self._began.pop(first))
            # Field 1 is the error's text.
            done, wrong = done + 1, wrong + (data[at + 5] == 0x0A)
            at = end
        self._bodies[0] = data[at:]
        return done, wrong


def main() -> int:
    """See the module."""
    address, model, how, in_flight, core = sys.argv[1:]
    if int(core) >= 0:
        os.sched_setaffinity(0, {int(core)})
    method = {"unary": "ModelInfer", "stream": "ModelStreamInfer"}[how]
    asker = Asker(address, model, method, int(in_flight))
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asker.work(float(line))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
