"""The watchdog and its messages: real sockets, real serving threads, hangs that are held open."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.domain.ports import Clock
from agent.host.notify import Notifier
from agent.host.watchdog import Vitals, Watchdog
from agent.serve.pool import ServingPool
from tests.support.wait import wait_for

HANG_S = 20.0


class HandClock(SystemClock):
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)
        self.notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@lighterman-test-{os.getpid()}" if request.param == "abstract" else "notify"
    made = Manager(name if name.startswith("@") else str(tmp_path / name))
    yield made
    made.close()


def test_messages_are_those_of_the_protocol(manager: Manager) -> None:
    notifier = manager.notifier
    notifier.extend(1.5)
    notifier.ready()
    notifier.status("serves\nphoto")
    notifier.status("serves photo")
    notifier.feed()
    notifier.trip()
    notifier.stopping()
    assert manager.heard() == [
        "EXTEND_TIMEOUT_USEC=1500000", "READY=1", "STATUS=serves photo", "WATCHDOG=1",
        "WATCHDOG=trigger", "STOPPING=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "environ",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2"}, {"NOTIFY_SOCKET": "/gone/notify"}],
)
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    notifier.feed()
    assert notifier.watchdog_s is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_meant_for_one_process(
    environ: dict[str, str], expected: float | None
) -> None:
    assert Notifier(environ).watchdog_s == expected


class Bench:
    """A watchdog over a real pool of serving threads."""

    def __init__(self, manager: Manager, clock: Clock, workers: int = 2) -> None:
        self.manager = manager
        self.running: tuple[str, float] | None = None
        self.silent_s = 0.0
        vitals = Vitals(lambda: self.running, self._ask, lambda: self.silent_s)
        self.watchdog = Watchdog(manager.notifier, clock, vitals, HANG_S)
        self.pool = ServingPool(workers, self.watchdog.served)
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        self.pool.submit(lambda: None)

    def heard(self, count: int = 1) -> list[str]:
        found: list[str] = []

        def enough() -> bool:
            found.extend(self.manager.heard())
            return len(found) >= count

        wait_for(enough, 10, "messages")
        return found


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def bench(manager: Manager, clock: HandClock) -> Iterator[Bench]:
    made = Bench(manager, clock)
    yield made
    made.pool.shutdown(wait=True)


def test_an_idle_agent_is_fed_by_its_serving_threads_four_times_per_wait(
    bench: Bench, clock: HandClock
) -> None:
    for _ in range(4):
        assert bench.watchdog.look() == ""
        assert bench.heard() == ["WATCHDOG=1"]
        assert bench.watchdog.look() == ""  # too early for another
        clock.at_s += 7.5
    assert bench.asked == 4


def test_requests_feed_by_themselves(bench: Bench, clock: HandClock) -> None:
    for _ in range(3):
        bench.pool.submit(lambda: None).result(10)
        assert bench.heard() == ["WATCHDOG=1"]
        clock.at_s += 8
    assert bench.asked == 0


def test_a_failed_request_is_one_that_ended(bench: Bench) -> None:
    def fail() -> None:
        raise ValueError("no")

    assert isinstance(bench.pool.submit(fail).exception(10), ValueError)
    assert bench.heard() == ["WATCHDOG=1"]


def test_an_inference_that_does_not_end_stops_the_feed_though_others_are_answered(
    bench: Bench, clock: HandClock
) -> None:
    bench.running = ("photo rung 'heavy'", HANG_S - 1)
    bench.pool.submit(lambda: None).result(10)
    assert bench.heard() == ["WATCHDOG=1"]
    clock.at_s += 8
    bench.running = ("photo rung 'heavy'", HANG_S + 1)
    bench.pool.submit(lambda: None).result(10)
    story = "an inference of photo rung 'heavy' has been running for 21 s"
    assert bench.watchdog.look() == story
    assert bench.manager.heard() == []  # whoever asked writes it down first
    assert bench.watchdog.look() == story
    assert bench.watchdog.look() == story
    assert bench.heard() == ["WATCHDOG=trigger"]
    bench.running = None  # it ended after all, and nobody was there to end the process
    assert bench.watchdog.look() == ""
    assert bench.heard() == ["WATCHDOG=1"]


def _held(started: threading.Semaphore, until: threading.Event) -> None:
    started.release()
    until.wait(30)


def hold(bench: Bench, until: threading.Event, threads: int) -> None:
    started = threading.Semaphore(0)
    for _ in range(threads):
        bench.pool.submit(partial(_held, started, until))
    for _ in range(threads):
        assert started.acquire(timeout=10)


def test_serving_threads_that_never_come_back_stop_the_feed(bench: Bench, clock: HandClock) -> None:
    free = threading.Event()
    hold(bench, free, threads=2)
    assert bench.watchdog.look() == ""
    clock.at_s += HANG_S + 1
    for _ in range(2):
        assert bench.watchdog.look() == "no serving thread came back for 21 s"
    assert bench.manager.heard() == ["WATCHDOG=trigger"]
    free.set()


def test_a_long_queue_that_moves_is_no_hang(bench: Bench, clock: HandClock) -> None:
    gates = [threading.Event() for _ in range(6)]
    waiting = [bench.pool.submit(partial_wait(gate)) for gate in gates]
    for gate, request in zip(gates, waiting, strict=True):
        assert bench.watchdog.look() == ""
        clock.at_s += HANG_S - 1
        assert bench.watchdog.look() == ""
        gate.set()
        request.result(10)
        assert "WATCHDOG=1" in bench.heard()
    assert bench.watchdog.look() == ""


def partial_wait(gate: threading.Event) -> Callable[[], bool]:
    return lambda: gate.wait(30)


def test_a_loop_that_fell_silent_stops_the_feed_but_gets_more_patience(bench: Bench) -> None:
    bench.silent_s = HANG_S * 7
    assert bench.watchdog.look() == ""
    assert bench.heard() == ["WATCHDOG=1"]
    bench.silent_s = HANG_S * 9
    for _ in range(2):
        assert bench.watchdog.look() == "the loop has been silent for 180 s"
    assert bench.heard() == ["WATCHDOG=trigger"]
