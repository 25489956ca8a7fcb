"""The slow parts of an update, in worker threads: room, download, hashing, loading, swapping.

Refuses to decide what follows: every job ends in one event for the loop, whatever happens inside.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import assert_never

from agent.domain.assignment import ModelState
from agent.domain.desired import Activation, DesiredModel, Target
from agent.domain.events import (
    Activated,
    Downloaded,
    DownloadFailed,
    Event,
    Loaded,
    LoadFailed,
    NoRoom,
    PreflightOk,
    RollBackFailed,
    RolledBack,
    Verified,
    VerifyFailed,
)
from agent.domain.instructions import (
    Fetch,
    LoadAndWarm,
    Preflight,
    Serve,
    Swap,
    SwapBack,
    Verify,
)
from agent.domain.ports import Clock, Fetcher, ModelHost, SlotStore
from agent.domain.probation import RowState, Trial, begin
from agent.domain.transition import fallback_of, may_roll_back
from agent.errors import (
    AgentError,
    DigestMismatchError,
    FetchError,
    LoadError,
    NotStoredError,
    StoreError,
)

log = logging.getLogger("agent")

Work = Preflight | Fetch | Verify | LoadAndWarm | Swap | Serve | SwapBack
Post = Callable[[str, Event], None]

# Journal, spool and the system itself need room too.
SPARE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Means:
    """What the jobs work with. `runtimes` says what is installed here, `memory_bytes` in all."""

    clock: Clock
    host: ModelHost
    store: SlotStore
    fetcher: Callable[[], Fetcher | None]
    runtimes: Callable[[], frozenset[str]]
    memory_bytes: int


class _Lines:
    """Threads in which the jobs of one model run one after the other, those of others beside."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Callable[[], None]]] = {}

    def add(self, model: str, job: Callable[[], None]) -> None:
        with self._lock:
            line = self._waiting.get(model)
            if line is not None:
                line.append(job)
                return
            self._waiting[model] = deque([job])
        self._pool.submit(self._work_off, model)

    def stop(self, wait: bool) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _work_off(self, model: str) -> None:
        while True:
            with self._lock:
                line = self._waiting[model]
                if not line:
                    del self._waiting[model]
                    return
                job = line.popleft()
            job()


class Workers:
    """Runs jobs and posts their events. `start` is called by the loop thread only."""

    def __init__(self, means: Means, post: Post) -> None:
        self._means = means
        self._post = post
        # Two pools, so that a slow download never stands before the way back.
        self._fetching = _Lines(2, "fetch")
        self._running = _Lines(2, "models")
        self._tickets: dict[str, int] = {}
        self._stopping = threading.Event()

    def start(self, state: ModelState, work: Work) -> None:
        """Run one instruction for the model of `state`; its event comes by `post`."""
        lines = self._fetching if isinstance(work, Preflight | Fetch | Verify) else self._running
        lines.add(state.model, lambda: self._run(state, work))

    def in_background(self, model: str, what: str, job: Callable[[], None]) -> None:
        """Run something without an event behind what this model waits for."""

        def run() -> None:
            if self._stopping.is_set():
                return
            try:
                job()
            except AgentError as error:
                log.warning("%s: %s: %s", model, what, error)
            except Exception:
                log.exception("%s: %s", model, what)

        self._running.add(model, run)

    def want(self, model: str, ticket: int) -> None:
        """Work of other tickets is of no use any more: running downloads stop."""
        self._tickets[model] = ticket

    def stop(self) -> None:
        """Take no more work; running downloads are cut, running loads are waited for."""
        self._stopping.set()
        self._fetching.stop(wait=False)
        self._running.stop(wait=True)

    # -- in the worker threads ---------------------------------------------------------------------

    def _run(self, state: ModelState, work: Work) -> None:
        if self._stopping.is_set():
            return
        try:
            event = self._do(state, work)
        except Exception as error:
            log.exception("%s: %s failed", state.model, type(work).__name__)
            event = _failed(work, state, f"{type(error).__name__}: {error}")
        if event is not None:
            self._post(state.model, event)

    def _do(self, state: ModelState, work: Work) -> Event | None:
        match work:
            case Preflight():
                return self._preflight(work)
            case Fetch():
                return self._fetch(state, work)
            case Verify():
                return self._verify(work)
            case LoadAndWarm() | Swap() | Serve() | SwapBack():
                try:
                    return self._on_host(state, work)
                except (LoadError, StoreError) as error:
                    return _failed(work, state, error.message)
            case never:
                assert_never(never)

    def _on_host(
        self, state: ModelState, work: LoadAndWarm | Swap | Serve | SwapBack
    ) -> Event | None:
        match work:
            case LoadAndWarm():
                self._load(work.release)
                return Loaded(work.ticket)
            case Swap():
                self._swap(state, work.release)
                return Activated(work.ticket)
            case Serve():
                return self._serve(state, work)
            case SwapBack():
                return self._swap_back(work)
            case never:
                assert_never(never)

    # -- room --------------------------------------------------------------------------------------

    def _preflight(self, work: Preflight) -> Event:
        release = work.release
        reason = self._unfit(release)
        if reason is None:
            store = self._means.store
            need = sum(
                t.length - store.partial_bytes(t.digest)
                for t in release.targets
                if not store.has(t.digest)
            )
            free = store.free_bytes()
            if need and need + SPARE_BYTES > free:
                reason = (
                    f"no room: {_mb(need)} are missing and {_mb(SPARE_BYTES)} stay free,"
                    f" {_mb(free)} are left beside the versions to return to"
                )
        return NoRoom(work.ticket, reason) if reason else PreflightOk(work.ticket)

    def _unfit(self, release: DesiredModel) -> str | None:
        if release.activation is Activation.HANDOVER:
            return "handover: no application on this device takes models over"
        runtimes = self._means.runtimes()
        missing = {r.runtime or "" for r in release.local_rungs} - runtimes
        if len(missing) and not any(r.runtime in runtimes for r in release.local_rungs):
            return (
                f"runtime {', '.join(sorted(missing))} is not installed here"
                f" ({', '.join(sorted(runtimes)) or 'none is'})"
            )
        least = min((r.memory_bytes or 0 for r in release.local_rungs), default=0)
        if self._means.memory_bytes and least > self._means.memory_bytes:
            return (
                f"no memory: the lightest rung needs {_mb(least)},"
                f" the device has {_mb(self._means.memory_bytes)}"
            )
        return None

    # -- bytes -------------------------------------------------------------------------------------

    def _fetch(self, state: ModelState, work: Fetch) -> Event:
        try:
            for target in work.targets:
                if not self._means.store.has(target.digest):
                    self._fetch_one(state, target)
        except DigestMismatchError as error:
            return VerifyFailed(work.ticket, error.message)
        except FetchError as error:
            return DownloadFailed(work.ticket, error.message, error.retryable)
        except StoreError as error:
            return DownloadFailed(work.ticket, error.message, False)
        return Downloaded(work.ticket)

    def _fetch_one(self, state: ModelState, target: Target) -> None:
        fetcher = self._means.fetcher()
        if fetcher is None:
            raise FetchError("no controller to fetch from yet")
        store = self._means.store
        offset = store.partial_bytes(target.digest)
        if offset < target.length:
            store.receive(target, self._while_wanted(state, fetcher.fetch(target, offset)))
        store.finish(target)

    def _while_wanted(self, state: ModelState, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._stopping.is_set() or self._tickets.get(state.model) != state.ticket:
                raise FetchError("the order was superseded")
            yield chunk

    def _verify(self, work: Verify) -> Event:
        for target in work.targets:
            try:
                sound = self._means.store.verify(target)
            except StoreError as error:
                return VerifyFailed(work.ticket, error.message)
            if not sound:
                return VerifyFailed(
                    work.ticket, f"{target.digest[:19]}… is not what was signed; it was removed"
                )
        return Verified(work.ticket)

    # -- models ------------------------------------------------------------------------------------

    def _load(self, release: DesiredModel) -> None:
        store, host = self._means.store, self._means.host
        host.load(release, {t.digest: store.path(t.digest) for t in release.targets})
        host.warm(release.model, release.slot_id)

    def _swap(self, state: ModelState, release: DesiredModel) -> None:
        """Let it answer; loads first what is not loaded, as after a restart."""
        host = self._means.host
        trial, row = self._trial(state, release)
        back = fallback_of(state) if may_roll_back(state) and trial is Trial.PROBATION else None
        fallback = back.slot_id if back is not None else None
        try:
            host.swap(release.model, release.slot_id, trial, row, fallback)
        except LoadError:
            self._load(release)
            host.swap(release.model, release.slot_id, trial, row, fallback)
        serving = host.serving(release.model)
        for said in serving.remarks if serving is not None else ():
            log.warning("%s:%s rung %s", release.model, release.version, said)

    def _trial(self, state: ModelState, release: DesiredModel) -> tuple[Trial, RowState]:
        now = self._means.clock.monotonic()
        current = state.current
        if current is not None and current.slot_id == release.slot_id and current.committed:
            return Trial.COMMITTED, begin(now)
        return Trial.PROBATION, begin(now, state.counted, state.elapsed_s)

    def _serve(self, state: ModelState, work: Serve) -> Event | None:
        if work.standby is not None:
            try:
                self._load(work.standby)
            except (LoadError, NotStoredError) as error:
                # The way back is longer then: the host cannot take it by itself, the loop loads it.
                log.warning("%s: the previous version is not loaded: %s", state.model, error)
        self._load(work.release)
        self._swap(state, work.release)
        return None

    def _swap_back(self, work: SwapBack) -> Event:
        host, release = self._means.host, work.release
        serving = host.serving(release.model)
        if serving is None or serving.slot_id != release.slot_id:
            row = begin(self._means.clock.monotonic())
            try:
                host.swap(release.model, release.slot_id, Trial.COMMITTED, row, None)
            except LoadError:
                self._load(release)
                host.swap(release.model, release.slot_id, Trial.COMMITTED, row, None)
        return RolledBack(work.ticket)


def _failed(work: Work, state: ModelState, reason: str) -> Event | None:
    match work:
        case Preflight():
            return NoRoom(work.ticket, reason)
        case Fetch():
            return DownloadFailed(work.ticket, reason, True)
        case Verify():
            return VerifyFailed(work.ticket, reason)
        case LoadAndWarm() | Swap() | Serve():
            return LoadFailed(work.ticket, work.release.slot_id, reason)
        case SwapBack():
            return RollBackFailed(work.ticket, reason)
        case never:
            assert_never(never)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
