"""`python -m bench.serving.asker URL MODEL KIND IN_FLIGHT CORE`: keeps so many requests in flight.

Raw sockets, one request prepared as bytes for all of them, and an epoll: it costs about a tenth of
what a server costs, so that it is never what is measured. KIND is `tiny` (16 bytes) or `lite0`
(602 KB), both with the binary tensor extension. For each line on stdin it works so many seconds and
prints what came of it as JSON. An answer other than 200, or of another length, is a failed one.
"""

import json
import os
import select
import socket
import sys
from time import perf_counter
from typing import Any

KINDS = {
    "tiny": ("x", [1, 4], 16),
    "lite0": ("image", [1, 3, 224, 224], 4 * 3 * 224 * 224),
}
_CHUNK = 1 << 20


def request(host: str, model: str, kind: str, data: bytes) -> bytes:
    """One whole request."""
    name, shape, size = KINDS[kind]
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name, "datatype": "FP32", "shape": shape,
                    "parameters": {"binary_data_size": size},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()  # fmt: skip
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {host}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Length: {len(head) + size}\r\n\r\n"
    )
    return lines.encode() + head + data


class Asker:
    """Connections that each have one request under way."""

    def __init__(self, address: str, model: str, kind: str, in_flight: int) -> None:
        host, _, port = address.rpartition(":")
        size = KINDS[kind][2]
        # Bytes of a plausible picture: small numbers, no NaN.
        self._request = request(address, model, kind, b"\x00\x00\x80\x3f" * (size // 4))
        self._poll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._left: dict[int, memoryview] = {}
        self._began: dict[int, float] = {}
        self._got: dict[int, bytes] = {}
        for _ in range(in_flight):
            one = socket.create_connection((host, int(port)))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
            self._open[one.fileno()] = one
            self._poll.register(one, select.EPOLLIN)

    def work(self, seconds: float) -> dict[str, Any]:
        """So long, and until what is under way then was answered."""
        times: list[float] = []
        failed = 0
        began = perf_counter()
        until = began + seconds
        for number in self._open:
            self._ask(number)
        running = len(self._open)
        while running:
            for number, event in self._poll.poll():
                if event & select.EPOLLOUT:
                    self._push(number)
                    continue
                ok = self._answered(number)
                if ok is None:
                    continue
                now = perf_counter()
                times.append(now - self._began[number])
                failed += not ok
                if now < until:
                    self._ask(number)
                else:
                    running -= 1
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
        for one in self._open.values():
            one.close()
        self._poll.close()

    def _ask(self, number: int) -> None:
        self._began[number] = perf_counter()
        self._got[number] = b""
        sent = self._open[number].send(self._request)
        if sent < len(self._request):
            self._left[number] = memoryview(self._request)[sent:]
            self._poll.modify(number, select.EPOLLOUT)

    def _push(self, number: int) -> None:
        left = self._left[number]
        left = self._left[number] = left[self._open[number].send(left) :]
        if not left:
            self._poll.modify(number, select.EPOLLIN)

    def _answered(self, number: int) -> bool | None:
        """None while it is not whole."""
        data = self._open[number].recv(_CHUNK)
        if not data:
            raise ConnectionError("the server closed a connection")
        got = self._got[number] = self._got[number] + data if self._got[number] else data
        end = got.find(b"\r\n\r\n")
        at = got.find(b"Content-Length: ")
        if end < 0:
            return None
        if len(got) < end + 4 + int(got[at + 16 : got.index(b"\r\n", at)]):
            return None
        return got.startswith(b"HTTP/1.1 200 ")


def main() -> int:
    """See the module."""
    address, model, kind, in_flight, core = sys.argv[1:]
    if int(core) >= 0:
        os.sched_setaffinity(0, {int(core)})
    asker = Asker(address, model, kind, int(in_flight))
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asker.work(float(line))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
