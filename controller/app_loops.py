"""The threads and the child that a running controller keeps: tick, flush, leases, one build worker.

Each survives what goes wrong in one round; none decides anything itself.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from controller.clock import Clock
from controller.errors import LightermanError

log = logging.getLogger("lighterman.app")

TICK_LEAST_S = 0.2
TICK_MOST_S = 2.0
REST_MOST_S = 0.5
LEASES_S = 2.0
STOP_S = 10.0
HUNG_S = 300.0  # longer than any transaction or reload may take
NOT_FOR_WORKERS = frozenset({"LIGHTERMAN_DATABASE", "LIGHTERMAN_DATA_DIR"})
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0


class Loop:
    """A thread that acts, then waits as long as the act said or until it is woken."""

    def __init__(
        self, name: str, act: Callable[[], float], clock: Clock, least_s: float = 0.0
    ) -> None:
        self._act = act
        self._clock = clock
        self._round_s: float | None = None  # when the round that runs began
        self._least_s = least_s
        self._failed = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def name(self) -> str:
        """As in the log."""
        return self._thread.name

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self, hurry: bool = False) -> None:
        """Act soon, but (without `hurry`) not before `least_s`, or as long as the last one took."""
        self._wake.set()
        if hurry:
            self._hurry.set()

    def stop(self) -> None:
        """End after the act that runs."""
        self._stopping.set()
        self.wake(hurry=True)
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def trouble(self) -> str | None:
        """None while it runs and no round takes for ever; else what is wrong."""
        began = self._round_s
        if not self._thread.is_alive():
            return f"the loop {self._thread.name} ended"
        if began is not None and self._clock.monotonic() - began > HUNG_S:
            return f"the loop {self._thread.name} hangs in one round"
        return None

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self._hurry.clear()
            wait_s = TICK_MOST_S
            self._round_s = self._clock.monotonic()
            failed, self._failed = self._failed, True
            try:
                wait_s = self._act()
                self._failed = False
                if failed:
                    log.info("%s: goes on", self._thread.name)
            except LightermanError as error:
                log.error("%s: %s", self._thread.name, error.text())
            except Exception:
                log.exception("%s failed, it goes on", self._thread.name)
            took_s, self._round_s = self._clock.monotonic() - self._round_s, None
            # A long round of a large fleet leaves the processor to others before the next.
            rest_s = max(self._least_s, min(took_s, REST_MOST_S)) if self._least_s else 0.0
            if rest_s:
                self._hurry.wait(rest_s)
            self._wake.wait(max(0.0, wait_s - rest_s))


def until(wake_at: datetime | None, now: datetime) -> float:
    """Seconds until the next tick: at least every 2 s."""
    if wake_at is None:
        return TICK_MOST_S
    return min(TICK_MOST_S, max(TICK_LEAST_S, (wake_at - now).total_seconds()))


def watch_loops(loops: Sequence[Loop]) -> Mapping[str, str | None]:
    """What /healthz asks: one that ended or hangs is mended by a new process alone."""
    return {loop.name: loop.trouble() for loop in loops}


class WorkerChild:
    """Keeps one build worker running. The child ends when our end of its input closes."""

    def __init__(self, arguments: Sequence[str], clock: Clock) -> None:
        self._command = [sys.executable, "-m", "controller", "worker", *arguments]
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Start the child and watch it."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the child to end, wait, and make sure."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            started = self._clock.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    env={n: v for n, v in os.environ.items() if n not in NOT_FOR_WORKERS},
                )
                self._process = process
            status = process.wait()
            if process.stdin is not None:
                process.stdin.close()
            if self._stopping.is_set():
                return
            if self._clock.monotonic() - started > 60.0:
                backoff_s = BACKOFF_FIRST_S
            log.error("the build worker ended (status %d), next in %.0f s", status, backoff_s)
            self._stopping.wait(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
