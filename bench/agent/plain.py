"""`python -m bench.agent.plain FILE CORE`: the same pictures over sockets, without a protocol.

One thread, one buffer: whoever has sent four bytes of length and a picture gets its scores. What it
loses against the raw loop is the price of moving 602 KB between two processes of this machine and
of inferring behind that: no server over sockets is expected to lose less.
"""

import json
import os
import selectors
import socket
import struct
import sys
from typing import Any

import numpy as np

from bench.agent.lite0 import INPUT, SHAPE

LENGTH = struct.Struct("!I")


class Plain:
    """Answers one picture after the other, of whoever has sent one."""

    def __init__(self, file: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            file, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._picture = np.empty(SHAPE, np.float32)
        self._buffer = self._picture.data.cast("B")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._listener, selectors.EVENT_READ)
        self._ready.register(sys.stdin, selectors.EVENT_READ)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until the input ends."""
        while True:
            for key, _ in self._ready.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    self._ready.register(self._listener.accept()[0], selectors.EVENT_READ)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._answer(key.fileobj)

    def _answer(self, client: socket.socket) -> None:
        head = client.recv(LENGTH.size, socket.MSG_WAITALL)
        if len(head) < LENGTH.size or LENGTH.unpack(head)[0] != len(self._buffer):
            self._ready.unregister(client)
            client.close()
            return
        client.recv_into(self._buffer, len(self._buffer), socket.MSG_WAITALL)
        scores = self._session.run(None, {INPUT: self._picture})[0].tobytes()
        client.sendall(LENGTH.pack(len(scores)) + scores)


def main() -> int:
    """Serve until the input ends."""
    file, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    plain = Plain(file)
    print(json.dumps({"address": plain.address, "pid": os.getpid()}), flush=True)
    plain.serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
