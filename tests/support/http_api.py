"""The HTTP road around a real model host, and a client that can misbehave: plain sockets."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agent.serve.http_server import HttpServer
from agent.serve.server import InferenceServer
from tests.support.serving import Bench, tensor

ANSWER_S = 20.0
PATH = "/v2/models/photo/infer"


class Reply(NamedTuple):
    """One answer."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, up to where raw tensors begin."""
        size = self.fields.get("inference-header-content-length")
        return json.loads(self.body if size is None else self.body[: int(size)])

    @property
    def raw(self) -> bytes:
        """The raw tensors."""
        return self.body[int(self.fields["inference-header-content-length"]) :]

    @property
    def error(self) -> str:
        """What it says is wrong."""
        return str(self.json["error"])


class Wire:
    """One connection."""

    def __init__(self, address: str) -> None:
        if address.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(ANSWER_S)
            self.socket.connect(address)
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), ANSWER_S)
        self._read = b""

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.socket.sendall(data)

    def reply(self) -> Reply:
        """The next answer; ConnectionError when it ends before."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        if status == 100:
            return Reply(status, {}, b"")
        pairs = (line.partition(": ") for line in lines)
        fields = {name.lower(): value for name, _, value in pairs}
        while len(self._read) < int(fields["content-length"]):
            self._more()
        size = int(fields["content-length"])
        body, self._read = self._read[:size], self._read[size:]
        return Reply(status, fields, body)

    def ended(self) -> bool:
        """Wait for the end of the connection; False when bytes come instead."""
        try:
            return not self._read and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError(f"ended after {self._read!r:.200}")
        self._read += data

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class HttpApi:
    """A bench that serves over HTTP: TCP and a Unix socket."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.bench = Bench(folder, **options)
        self.grpc_path = str(folder / "grpc")
        self.grpc = InferenceServer(
            self.bench.host,
            self.bench.clock,
            "1.2.3",
            "127.0.0.1:0",
            shares_memory=True,
            socket_path=Path(self.grpc_path),
            socket_mode=0o600,
        )
        self.grpc_address = self.grpc.start()
        self.path = str(folder / "sock")
        self.server = HttpServer(self.grpc.desk, "127.0.0.1:0", Path(self.path), 0o600)
        self.address = self.server.start()

    @contextmanager
    def wire(self, address: str = "") -> Iterator[Wire]:
        """A connection, closed at the end."""
        made = Wire(address or self.address)
        try:
            yield made
        finally:
            made.close()

    def ask(self, method: str, path: str, body: bytes = b"", **fields: str) -> Reply:
        """One request on a connection of its own."""
        with self.wire() as wire:
            wire.send(request(method, path, body, **fields))
            return wire.reply()

    def good(self) -> Reply:
        """A request that is answered."""
        return self.ask("POST", PATH, json_body())

    def close(self) -> None:
        """End all."""
        self.server.stop(grace_s=0)
        self.grpc.stop(grace_s=0)
        self.bench.host.close()


def request(method: str, path: str, body: bytes = b"", **fields: str) -> bytes:
    """A request; `fields` has header names with underscores."""
    given = {"Host": "x", "Content_Length": str(len(body)), **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def json_body(**changes: Any) -> bytes:
    """x = [[1, 2, 3, 4]] as JSON; `changes` are of its only input."""
    given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}
    return json.dumps({"inputs": [given]}).encode()


def binary_request(path: str = PATH, data: bytes | None = None, **changes: Any) -> bytes:
    """The same by the binary extension, and binary outputs."""
    data = bytes(tensor().data) if data is None else data
    entry = {
        "name": "x", "datatype": "FP32", "shape": [1, 4],
        "parameters": {"binary_data_size": len(data)}, **changes,
    }  # fmt: skip
    asked = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    return request("POST", path, head + data, Inference_Header_Content_Length=str(len(head)))
