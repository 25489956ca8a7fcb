"""`lighterman-agent` behind a router, and perhaps with one thing broken in it on purpose.

    ROUTES=8883:40123 BREAK=drops-reports python -m tests.support.routed_agent run

ROUTES: connections that Python opens to a port go to another one of this machine. BREAK: a
negative control by name. The product has no such doors: all of it is wrapped here, in the test's
own process.
"""

import ctypes
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agent.__main__ import main
from agent.app import Agent
from agent.domain.ports import SpoolEntry
from agent.domain.tensor import Tensor
from agent.link.spooler import SpoolSender
from agent.runtime.host import ModelHost
from agent.runtime.plain import PlainBackend
from agent.store.slots import FileSlots

DEADLY = 666.0


def route(routes: str) -> None:
    """`FROM:TO` by comma."""
    there = dict(one.split(":") for one in routes.split(",") if one)
    connect = socket.create_connection

    def routed(address: tuple[str, int], *words: Any, **options: Any) -> socket.socket:
        host, port = address
        return connect((host, int(there.get(str(port), port))), *words, **options)

    vars(socket)["create_connection"] = routed


def _segfault() -> None:
    """Once an answer holds DEADLY, the runtime's call reads from address 0.

    No model makes the runtime crash on purpose.
    """
    run = PlainBackend.run

    def fragile(self: PlainBackend, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = run(self, inputs)
        if any((np.frombuffer(t.data, np.float32) == DEADLY).any() for t in found.values()):
            ctypes.string_at(0)
        return found

    type.__setattr__(PlainBackend, "run", fragile)


def _drop_reports() -> None:
    """A report is forgotten once it was handed to the broker's socket."""
    send = SpoolSender._by_mqtt

    def careless(self: SpoolSender, entries: tuple[SpoolEntry, ...], now: float) -> float:
        wait_s = send(self, entries, now)
        self._spool.ack(entries[-1].boot_id, entries[-1].seq)
        sys.stderr.write(f"dropped up to {entries[-1].seq}\n")
        return wait_s

    type.__setattr__(SpoolSender, "_by_mqtt", careless)


def _gap_in_swap() -> None:
    """Nothing answers while one version takes the place of another."""
    swap = ModelHost.swap

    def gap(self: ModelHost, model: str, *words: Any, **options: Any) -> str | None:
        served = self._served(model)
        with served.lock:
            before, served.active = served.active, None
        threading.Event().wait(1.0)
        with served.lock:
            served.active = before
        return swap(self, model, *words, **options)

    type.__setattr__(ModelHost, "swap", gap)


def _watch_nothing() -> None:
    """No inference is ever called off, and a process that hangs stays."""
    type.__setattr__(Agent, "_watch", lambda _: None)


def _forget_partials() -> None:
    """Every download begins at its first byte."""

    def nothing(self: FileSlots, digest: str) -> int:
        self._part(digest).unlink(missing_ok=True)
        return 0

    type.__setattr__(FileSlots, "partial_bytes", nothing)


BREAKS: dict[str, Callable[[], None]] = {
    "segfault": _segfault,
    "drops-reports": _drop_reports,
    "gap-in-swap": _gap_in_swap,
    "watches-nothing": _watch_nothing,
    "forgets-partials": _forget_partials,
}


if __name__ == "__main__":
    route(os.environ.get("ROUTES", ""))
    for name in os.environ.get("BREAK", "").split():
        BREAKS[name]()
    raise SystemExit(main(sys.argv[1:]))
