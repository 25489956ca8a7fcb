"""Holds loaded models and answers requests; decides nothing that the domain decides.

Applies the rollback rule after every inference, in the thread that ran it: the reference is swapped
first, then the loop is told. Refuses to lose a request because of a swap, a failed remote or a
crashing new version: the same request is answered by who else can.

    ModelHost(
        clock: agent.domain.ports.Clock,               # agent.clock.SystemClock()
        on_decision: Callable[[Decision], None],       # in a serving thread, after the swap; quick
        memory_available: Callable[[], int | None],    # agent.host.sensors.memory_available_bytes
        parallel: int = 1,                             # inferences of one model at once
        batching: bool = True,                         # what waits is inferred together if it pays
    )
    # satisfies agent.domain.ports.ModelHost and .Served; safe from any thread, but one loads.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from agent.clock import thread_cpu_s
from agent.domain.batching import Curve
from agent.domain.desired import DesiredModel, RungKind
from agent.domain.ladder import Pressure
from agent.domain.ports import (
    Clock,
    Decision,
    InferResult,
    Measured,
    ModelCard,
    Request,
    RungWindow,
    Serving,
)
from agent.domain.probation import RowState, Trial
from agent.domain.tensor import Signature, Tensor
from agent.errors import AgentError, LoadError, UnavailableError, UnknownModelError
from agent.runtime.answer import Answerer
from agent.runtime.backend import Backend, Rests
from agent.runtime.queues import Outside, Queues
from agent.runtime.registry import open_backend
from agent.runtime.remote import open_remote
from agent.runtime.running import Running
from agent.runtime.served import ServedModel
from agent.runtime.slot import (
    LoadedRung,
    LoadedSlot,
    Loader,
    OpenBackend,
    OpenRemote,
    close_all,
    fits_beside,
    load_slot,
    open_local,
    platform_of,
)
from agent.runtime.slot import open_remote as open_remote_rung
from agent.runtime.together import feed_of, together
from agent.runtime.warming import Warmer

_DRAIN_S = 5.0  # for requests in flight; the last of them frees in any case


class ModelHost:
    """Loaded models of this process; see the module for how it is built."""

    def __init__(
        self,
        clock: Clock,
        on_decision: Callable[[Decision], None],
        memory_available: Callable[[], int | None],
        parallel: int = 1,
        *,
        open_backend: OpenBackend = open_backend,
        open_remote: OpenRemote = open_remote,
        thread_cpu: Callable[[], float] = thread_cpu_s,
        batching: bool = True,
    ) -> None:
        self._clock = clock
        self._running = Running(clock)
        self._answerer = Answerer(on_decision, thread_cpu, self._running)
        self._warmer = Warmer(self._running, clock, batching=batching)
        self._loader = Loader(open_backend, open_remote, memory_available)
        self._parallel = parallel
        self._lock = threading.Lock()
        # One at a time: two that look at the same free memory would both believe they fit.
        self._load_lock = threading.Lock()
        self._models: dict[str, ServedModel] = {}
        self._pressure = Pressure()
        self._closing = False
        self._queues = Queues()

    # -- answering ---------------------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        waited_s: float = 0.0,
    ) -> InferResult:
        """See `agent.domain.ports.Infer`."""
        served = self._open(model)
        return self._answerer.answer(served, feed_of(served, inputs, outputs), outputs, waited_s)

    def infer_now(
        self, model: str, inputs: Sequence[Tensor], outputs: Sequence[str] = ()
    ) -> InferResult | None:
        """See `agent.domain.ports.Served`."""
        served = self._open(model)
        return self._answerer.answer_now(served, feed_of(served, inputs, outputs), outputs)

    def infer_together(
        self, model: str, requests: Sequence[Request]
    ) -> list[InferResult | AgentError]:
        """See `agent.domain.ports.Served`."""
        return together(self._answerer, self._open(model), requests)

    def curve(self, model: str) -> Curve:
        """See `agent.domain.ports.Served`."""
        return self._served(model).curve()

    def add_queue(self, of: Outside) -> None:
        """See `agent.domain.ports.Served`."""
        self._queues.add(of)

    def width(self, model: str) -> int:
        """See `agent.domain.ports.Served`."""
        return self._served(model).width()

    def _open(self, model: str) -> ServedModel:
        served = self._served(model)
        if self._closing:
            raise UnavailableError("this agent is shutting down")
        return served

    # -- loading and swapping ----------------------------------------------------------------------

    def load(self, release: DesiredModel, paths: Mapping[str, str]) -> None:
        """See `agent.domain.ports.ModelHost`."""
        with self._lock:
            served = self._models.get(release.model)
            if served is None:
                served = ServedModel(release.model, self._clock, self._parallel)
        if release.slot_id in served.slots:
            self.reconfigure(release)
            return
        now = self._clock.monotonic()
        with self._load_lock:
            slot = load_slot(self._loader, release, paths, now, must=served.active is None)
        with served.lock:
            served.slots[release.slot_id] = slot
        with self._lock:
            self._models[release.model] = served

    def warm(self, model: str, slot_id: str) -> None:
        """See `agent.domain.ports.ModelHost`."""
        slot = self._slot(model, slot_id)
        for rung in slot.local:
            if rung.backend is not None:
                rung.batches = self._warmer.warm(slot.release, rung.spec, rung.backend)

    def swap(
        self, model: str, slot_id: str, trial: Trial, row: RowState, fallback: str | None
    ) -> str | None:
        """See `agent.domain.ports.ModelHost`."""
        slot = self._slot(model, slot_id)
        served = self._served(model)
        with served.lock:
            before = served.active
            slot.trial, slot.fallback, slot.latched = trial, fallback, False
            served.activate(slot, row)
        return None if before is None or before is slot else before.slot_id

    def settle(self, model: str, slot_id: str, *, latched: bool) -> None:
        """See `agent.domain.ports.ModelHost`. An unloaded slot is fine: nothing judges it."""
        served = self._served(model)
        with served.lock:
            slot = served.slots.get(slot_id)
            if slot is not None:
                slot.trial, slot.latched, slot.told = Trial.COMMITTED, latched, False

    def reconfigure(self, release: DesiredModel) -> None:
        """See `agent.domain.ports.ModelHost`."""
        served = self._served(release.model)
        slot = self._slot(release.model, release.slot_id)
        rungs: dict[str, LoadedRung] = {}
        for spec in release.rungs:
            old = slot.rungs.get(spec.name)
            same = old is not None and (old.spec.kind, old.spec.endpoint) == (
                spec.kind,
                spec.endpoint,
            )
            rungs[spec.name] = old if old is not None and same else LoadedRung(spec)
            if spec.kind is RungKind.REMOTE and not same:
                rungs[spec.name].backend = open_remote_rung(self._loader, release, spec)
        with served.lock:
            gone = [r for r in slot.rungs.values() if r not in rungs.values()]
            for spec in release.rungs:
                rungs[spec.name].spec = spec
            slot.release, slot.rungs, slot.told = release, rungs, False
            if slot.rung not in rungs:
                served.take_rung(slot, slot.local[0].spec.name)
            closing = [served.retire(r) for r in gone]
        close_all(closing)

    def set_rung(self, model: str, rung: str) -> None:
        """See `agent.domain.ports.ModelHost`."""
        served = self._served(model)
        slot = served.active
        if slot is None or rung not in slot.rungs:
            raise UnavailableError(f"model {model} has no rung {rung!r} loaded")
        chosen = slot.rungs[rung]
        alone = self._memory_is_short(slot)
        if chosen.spec.kind is RungKind.LOCAL and chosen.backend is None:
            with self._load_lock:
                alone = alone or not fits_beside(self._loader, slot, chosen.spec)
                self._load_rung(slot, chosen)
        with served.lock:
            if slot is not served.active or slot.rungs.get(rung) is not chosen:
                raise UnavailableError(f"model {model} changed its version meanwhile")
            if slot.rung != rung:
                served.take_rung(slot, rung)
            others = [r for r in slot.local if r is not chosen] if alone else []
            closing = [served.retire(r) for r in others]
        close_all(closing)

    def _load_rung(self, slot: LoadedSlot, rung: LoadedRung) -> None:
        try:
            backend = open_local(self._loader, slot.release, rung.spec, slot.paths)
            rung.batches = self._warmer.warm(slot.release, rung.spec, backend)
        except LoadError as error:
            rung.broken = error.message
            raise
        rung.backend = backend

    def _memory_is_short(self, slot: LoadedSlot) -> bool:
        used = self._pressure.memory_pct
        return used is not None and used >= slot.release.policy.ladder.memory_down_pct

    def unload(self, model: str, slot_id: str) -> None:
        """See `agent.domain.ports.ModelHost`. Unloading what answers withdraws the model."""
        with self._lock:
            served = self._models.get(model)
        slot = None if served is None else served.slots.get(slot_id)
        if served is None or slot is None:
            return
        with served.lock:
            if served.active is slot:
                served.active = None
            for other in served.slots.values():
                if other.fallback == slot_id:
                    other.fallback = None
            del served.slots[slot_id]
            rungs = list(slot.rungs.values())
            closing = [served.retire(r) for r in rungs]
            served.idle.wait_for(lambda: not any(r.in_flight for r in rungs), _DRAIN_S)
        close_all(closing)
        with self._lock:
            if not served.slots:
                self._models.pop(model, None)

    def rest(self) -> None:
        """Nobody has asked for a while: let backends give back what only inferences need."""
        for model in self.models():
            resting: list[Backend | None] = []
            with suppress(UnknownModelError), self._reading(self._served(model)) as slot:
                resting = [rung.backend for rung in slot.local if not rung.in_flight]
            for backend in resting:
                if isinstance(backend, Rests):
                    backend.rest()

    def close(self) -> None:
        """See `agent.domain.ports.ModelHost`."""
        self._closing = True
        for model in self.models():
            for slot_id in tuple(self._served(model).slots):
                self.unload(model, slot_id)

    # -- looking -----------------------------------------------------------------------------------

    def feel(self, pressure: Pressure) -> None:
        """See `agent.domain.ports.ModelHost`."""
        self._pressure = pressure
        self._answerer.feel(pressure)

    def models(self) -> tuple[str, ...]:
        """See `agent.domain.ports.Served`."""
        with self._lock:
            return tuple(sorted(self._models))

    def card(self, model: str) -> ModelCard:
        """See `agent.domain.ports.Served`."""
        served = self._served(model)
        with served.lock:
            slot = served.active or next(iter(served.slots.values()))
            release, rung = slot.release, slot.current.spec
            reason = ""
            if self._closing:
                reason = "this agent is shutting down"
            elif served.active is None:
                reason = f"model {model} is being loaded"
            elif rung.kind is RungKind.OFF:
                reason = f"model {model} is switched off by its ladder"
            return ModelCard(
                model=model,
                version=release.version,
                platform=platform_of(release.local_rungs[0]),
                signature=release.signature,
                labels=release.labels,
                rung=rung.name,
                not_ready=reason,
            )

    def signature(self, model: str) -> Signature:
        """See `agent.domain.ports.ModelHost`."""
        with self._reading(self._served(model)) as slot:
            return slot.release.signature

    def serving(self, model: str) -> Serving | None:
        """See `agent.domain.ports.ModelHost`."""
        with self._lock:
            served = self._models.get(model)
        if served is None or served.active is None:
            return None
        with self._reading(served) as slot:
            return Serving(
                model=model,
                version=slot.release.version,
                slot_id=slot.slot_id,
                rung=slot.rung,
                trial=slot.trial,
                row=slot.row,
                resident=tuple(r.spec.name for r in slot.rungs.values() if r.backend is not None),
                position=slot.position,
                p95_s=slot.since_swap.quantile(0.95),
                usable=tuple(spec.name for spec in slot.usable),
                remarks=slot.remarks,
            )

    def measure(self, model: str) -> Measured:
        """See `agent.domain.ports.ModelHost`."""
        served, now = self._served(model), self._clock.monotonic()
        return Measured(served.p95_s(now), self._queues.of(served, now)[1])

    def longest(self) -> tuple[str, float] | None:
        """What has been running longest and for how many seconds; None when nothing runs."""
        return self._running.longest()

    def call_off(self, after_s: float) -> tuple[str, ...]:
        """Let inferences that run longer fail, where their runtime can; gives which they are."""
        return self._running.call_off(after_s)

    def take_windows(self) -> tuple[RungWindow, ...]:
        """See `agent.domain.ports.ModelHost`."""
        return tuple(window for one in self._all() for window in one.take_windows())

    def totals(self) -> tuple[RungWindow, ...]:
        """Sums since the start, per model, version and rung; takes nothing from telemetry."""
        return tuple(window for one in self._all() for window in one.totals())

    def queues(self) -> dict[str, tuple[int, float]]:
        """By model: how many requests wait, and the longest wait in seconds."""
        now = self._clock.monotonic()
        return {one.model: self._queues.of(one, now) for one in self._all()}

    # -- finding -----------------------------------------------------------------------------------

    def _all(self) -> list[ServedModel]:
        with self._lock:
            return [self._models[model] for model in sorted(self._models)]

    def _served(self, model: str) -> ServedModel:
        with self._lock:
            served = self._models.get(model)
            known = ", ".join(sorted(self._models))
        if served is None:
            raise UnknownModelError(
                f"model {model!r} is not served here", f"served: {known or '–'}"
            )
        return served

    def _slot(self, model: str, slot_id: str) -> LoadedSlot:
        with self._lock:
            served = self._models.get(model)
        slot = None if served is None else served.slots.get(slot_id)
        if slot is None:
            raise LoadError(f"slot {slot_id} of model {model} is not loaded")
        return slot

    @contextmanager
    def _reading(self, served: ServedModel) -> Iterator[LoadedSlot]:
        with served.lock:
            if served.active is None:
                raise UnknownModelError(f"model {served.model} has no version loaded yet")
            yield served.active
