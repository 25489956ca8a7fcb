"""What an idle device saves: telemetry that says nothing new, memory that nobody needs."""

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.domain.assignment import Phase
from agent.domain.histogram import Histogram
from agent.domain.ladder import Pressure
from agent.domain.news import is_felt_anew
from agent.domain.ports import RungWindow
from agent.link.convert import ModelStatus, TelemetryWindow
from agent.loop_tell import QUIET_S, QUIET_WINDOWS, Teller
from agent.process import _ARENAS, Tidy, trim_memory, tune_memory
from agent.runtime.backend import Rests
from agent.store.spool import FileSpool
from tests.support.serving import Bench, scaled, values

BOOT = "0000000001-00000000"
FELT = Pressure(temperature_c=50.0, memory_pct=40.0, cpu_pct=3.0, throttled=False)


@pytest.mark.parametrize(
    ("change", "news"),
    [
        ({}, False),
        ({"temperature_c": 51.9, "memory_pct": 44.0, "cpu_pct": 99.0, "starved": True}, False),
        ({"temperature_c": 52.0}, True),
        ({"temperature_c": None}, True),
        ({"memory_pct": 35.0}, True),
        ({"throttled": True}, True),
        ({"link_rtt_s": 0.01}, True),
    ],
)
def test_what_moved_is_news(change: dict[str, float | None], news: bool) -> None:
    assert is_felt_anew(FELT, replace(FELT, **change)) is news  # type: ignore[arg-type]


def test_a_link_is_news_when_it_doubled() -> None:
    link = replace(FELT, link_rtt_s=0.010)
    assert not is_felt_anew(link, replace(link, link_rtt_s=0.019))
    assert is_felt_anew(link, replace(link, link_rtt_s=0.020))
    assert is_felt_anew(link, replace(link, link_rtt_s=0.005))


def window(**changes: object) -> TelemetryWindow:
    made = TelemetryWindow(10.0, (), FELT, (), 1 << 26, 3)
    return replace(made, **changes)  # type: ignore[arg-type]


class Wire:
    """Counts what was sent; can be cut."""

    def __init__(self, folder: Path) -> None:
        self.sent = 0
        self.up = True
        self.teller = Teller(
            FileSpool(folder, BOOT), SystemClock(), BOOT, lambda: None, self._publish
        )

    def _publish(self, payload: bytes) -> bool:
        self.sent += self.up
        return self.up


def test_an_idle_device_tells_every_twelfth_time(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    said = [wire.teller.telemetry(window()) for _ in range(2 * (QUIET_WINDOWS + 1) + 1)]
    assert said == [True, *[False] * QUIET_WINDOWS, True, *[False] * QUIET_WINDOWS, True]
    assert wire.sent == 3


@pytest.mark.parametrize("pace_s", [60.0, 119.0, 240.0])
def test_at_a_slower_pace_too_it_is_heard_of_before_anybody_misses_it(
    tmp_path: Path, pace_s: float
) -> None:
    wire, since_told_s, longest_s = Wire(tmp_path), 0.0, 0.0
    wire.teller.telemetry(window())
    for _ in range(24):
        since_told_s += pace_s
        longest_s = max(longest_s, since_told_s)
        if wire.teller.telemetry(window(window_s=since_told_s)):
            since_told_s = 0.0
    assert longest_s <= max(2 * QUIET_S, pace_s) < 300  # LightermanDevicesSilent begins there


INFERRED = RungWindow("photo", "1.0.0", "heavy", "sha256:1", Histogram())
RUNS = ModelStatus("photo", "1.0.0", "heavy", Phase.COMMITTED, "")


@pytest.mark.parametrize(
    "change",
    [
        {"rungs": (INFERRED,)},
        {"models": (RUNS,)},
        {"applied_generation": 4},
        {"pressure": replace(FELT, throttled=True)},
    ],
)
def test_whatever_happened_is_told_at_once(tmp_path: Path, change: dict[str, object]) -> None:
    wire = Wire(tmp_path)
    wire.teller.telemetry(window())
    assert wire.teller.telemetry(window(**change))


def test_what_was_not_taken_was_not_told(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    wire.up = False
    assert not wire.teller.telemetry(window())
    wire.up = True
    assert wire.teller.telemetry(window())


def test_memory_is_given_back_once_when_it_has_become_quiet() -> None:
    trims: list[int] = []
    tidy = Tidy(lambda: trims.append(1))
    said = [tidy.look(done) for done in (0, 0, 0, 1, 2, 3, 3, 3, 4, 4)]
    assert said == [False, True, False, False, False, False, True, False, False, True]
    assert len(trims) == 3


def test_the_c_library_takes_it() -> None:
    tune_memory()
    trim_memory()


# Thirty pictures are taken and freed by another thread than the first, as those that serve do.
_PICTURES = """
import ctypes, sys, threading
import agent.process as process
process._ARENAS = int(sys.argv[1])
process.tune_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def work():
    taken = [0] * 30
    for i in range(30):
        taken[i] = libc.malloc(600_000)
    for one in taken:
        ctypes.memset(one, 1, 600_000)
    for one in taken:
        libc.free(one)
    process.trim_memory()

before = process.rss_bytes()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(process.rss_bytes() - before)
"""


def kept_bytes(arenas: int) -> int:
    command = [sys.executable, "-c", _PICTURES, str(arenas)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_what_threads_freed_is_given_back() -> None:
    assert kept_bytes(_ARENAS) < 4_000_000
    # The negative control, as long as glibc keeps the end of its other heaps.
    assert _ARENAS == 1
    assert kept_bytes(2) > 10_000_000


def test_a_model_that_nobody_asks_answers_the_same_after_its_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    before = values(bench.infer())
    bench.host.rest()
    assert values(bench.infer()) == before
    served = bench.host._models["photo"].active
    assert served is not None
    assert isinstance(served.current.backend, Rests)
    assert bench.host.take_windows()[0].service.count == 2  # its own run is no inference
