"""Measures builds while the device is idle, in a child process, and says what came of it.

A thread of its own that owns nothing else. Refuses to disturb serving: it begins only when nobody
asked anything for a while, and the child is killed as soon as anybody does; what was interrupted is
tried again. An order that is withdrawn or over ends what runs.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from agent.domain.ports import Fetcher
from agent.domain.tuning import Candidate, DeviceOrders, Quiet, TuningOrder, may_measure
from agent.errors import AgentError, FetchError, StoreError
from agent.host.sensors import disk_free_bytes
from agent.loop_tell import Teller
from agent.loop_trial import GaveWayError, Trial, TrialParts, UnmeasurableError

log = logging.getLogger("agent")

PAUSE_S = 1.0
RETRY_S = 30.0
TOLD_S = 60.0
TRIES = 50
SPARE_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class TunerParts:
    """What following orders needs. `facts`: the OS, and the runtimes with their versions."""

    trial: TrialParts
    teller: Teller
    fetcher: Callable[[], Fetcher | None]
    facts: Callable[[], tuple[str, Mapping[str, str]]]
    folder: Path
    idle_s: float


class Tuner:
    """Follows the newest orders. `order` may be called from any thread."""

    def __init__(self, parts: TunerParts) -> None:
        self._parts = parts
        self._orders = DeviceOrders()
        self._done: set[tuple[str, str]] = set()
        self._tries: dict[tuple[str, str], int] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._later: dict[tuple[str, str], float] = {}
        seen = parts.trial.activity()
        self._quiet = Quiet(seen.requests, parts.trial.clock.monotonic())
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tuning", daemon=True)

    def start(self) -> None:
        """Begin; idle until there are orders."""
        self._thread.start()

    def stop(self) -> None:
        """End; a running measurement is killed."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def order(self, orders: DeviceOrders) -> None:
        """These are the orders from now on."""
        if orders.number >= self._orders.number:
            self._orders = orders
            self._wake.set()

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                found = self._next()
                if found is None:
                    self._tidy()
                    self._wake.wait()
                    self._wake.clear()
                else:
                    self._work(*found)
            except Exception:  # the next order must find somebody
                log.exception("tuning")
                self._stopping.wait(RETRY_S)

    def _next(self) -> tuple[TuningOrder, Candidate] | None:
        now = self._parts.trial.clock.now()
        waiting = [
            (self._later.get((order.tuning, one.build), 0.0), order, one)
            for order in self._orders.tuning
            if order.expires_at > now
            for one in order.candidates
            if (order.tuning, one.build) not in self._done
        ]
        if not waiting:
            return None
        first = min(waiting, key=lambda one: one[0])
        return first[1], first[2]

    def _holds(self, order: TuningOrder, one: Candidate) -> bool:
        """Whether it is still asked for."""
        return (
            not self._stopping.is_set()
            and order.expires_at > self._parts.trial.clock.now()
            and any(
                known.tuning == order.tuning and one in known.candidates
                for known in self._orders.tuning
            )
        )

    def _work(self, order: TuningOrder, one: Candidate) -> None:
        key = (order.tuning, one.build)
        if not self._wait_for_rest(order, one):
            return
        path = self._parts.folder / one.target.digest.rpartition(":")[2]
        try:
            if not self._brought(order, one, path) or not self._wait_for_rest(order, one):
                return
            figures = Trial(
                self._parts.trial, order, one, path, lambda: self._holds(order, one)
            ).run()
        except GaveWayError as why:
            self._tries[key] = self._tries.get(key, 0) + 1
            if self._tries[key] < TRIES:
                self._later[key] = self._parts.trial.clock.monotonic()
                self._waits(order, f"{one.variant} {one.recipe}: gave way, {why}", "gave way")
                return
            self._report(order, one, {}, f"gave way {TRIES} times: {why}")
        except UnmeasurableError as why:
            self._report(order, one, {}, str(why))
        else:
            self._report(order, one, figures, "")
        self._done.add(key)
        path.unlink(missing_ok=True)

    def _wait_for_rest(self, order: TuningOrder, one: Candidate) -> bool:
        """Wait until the device is idle and cool. False: it is not asked for any more."""
        parts = self._parts
        while self._holds(order, one):
            now, seen = parts.trial.clock.monotonic(), parts.trial.activity()
            self._quiet = self._quiet.after(seen, now)
            why = may_measure(self._quiet, seen, now, parts.idle_s, order.heat_limit_c)
            if not why and self._later.get((order.tuning, one.build), 0.0) > now:
                why = "the file did not come"
            if not why:
                return True
            self._waits(order, why)
            self._wake.wait(PAUSE_S)
            self._wake.clear()
        return False

    def _waits(self, order: TuningOrder, why: str, kind: str = "waits") -> None:
        """Said once a minute for each kind, and at once for the first time."""
        now = self._parts.trial.clock.monotonic()
        if now - self._told.get((order.tuning, kind), -TOLD_S) < TOLD_S:
            return
        self._told[order.tuning, kind] = now
        self._parts.teller.event(
            "tuning_waits", why, model=order.model, version=order.version,
            details={"tuning": order.tuning},
        )  # fmt: skip

    def _brought(self, order: TuningOrder, one: Candidate, path: Path) -> bool:
        """Whether its bytes are here; else they are asked for again later, however often."""
        try:
            self._fetch(one, path)
        except GaveWayError as why:
            later = self._parts.trial.clock.monotonic() + RETRY_S
            self._later[order.tuning, one.build] = later
            self._waits(order, f"{one.variant} {one.recipe} did not come: {why}", "fetch")
            return False
        return True

    def _fetch(self, one: Candidate, path: Path) -> None:
        """Have the build's verified bytes on disk."""
        parts, target = self._parts, one.target
        if path.exists() and _digest_of(path) == target.digest:
            return
        fetcher = parts.fetcher()
        if fetcher is None:
            raise GaveWayError("there is no connection")
        parts.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if disk_free_bytes(parts.folder) < target.length + SPARE_BYTES:
            raise UnmeasurableError(f"no room for {target.length:,} bytes")
        try:
            with path.open("wb") as out:
                for chunk in fetcher.fetch(target, 0):
                    if self._stopping.is_set():
                        raise GaveWayError("the agent ends")
                    out.write(chunk)
        except FetchError as error:
            if not error.retryable:
                raise UnmeasurableError(str(error)) from error
            raise GaveWayError(error.message) from error
        except (OSError, StoreError) as error:
            raise UnmeasurableError(f"the build could not be stored: {error}") from error
        if _digest_of(path) != target.digest:
            path.unlink(missing_ok=True)
            raise UnmeasurableError("the bytes that came are not those that were signed")

    def _report(
        self, order: TuningOrder, one: Candidate, figures: Mapping[str, Any], why: str
    ) -> None:
        os_name, runtimes = self._parts.facts()
        details = {
            "tuning": order.tuning,
            "build": one.build,
            "variant": one.variant,
            "recipe": one.recipe,
            "ok": "true" if figures else "false",
            "os": os_name,
            "runtime": one.runtime,
            "runtime_version": runtimes.get(one.runtime, ""),
            **{name: _text(value) for name, value in figures.items() if value is not None},
        }
        told = why or f"p95 {figures['p95_ms']:.3g} ms, n={figures['n']}"
        self._parts.teller.event(
            "build_measured", told, model=order.model, version=order.version, details=details
        )

    def _tidy(self) -> None:
        """No order is open: nothing of them stays on disk."""
        with contextlib.suppress(OSError):
            for file in self._parts.folder.iterdir():
                file.unlink(missing_ok=True)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = sha256()
            while data := file.read(1 << 20):
                found.update(data)
    except OSError as error:
        raise AgentError(f"{path} cannot be read: {error.strerror}") from error
    return "sha256:" + found.hexdigest()
