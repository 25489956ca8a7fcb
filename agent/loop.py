"""The loop: one thread that owns the update machines of all models and whatever they remember.

Everything that happens comes as a message; everything slow is done elsewhere and comes back as
one. Refuses to block, and to die: what goes wrong with one message is logged and the rest goes on.
"""

import contextlib
import heapq
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import assert_never

from agent.domain.assignment import ModelState, Phase
from agent.domain.desired import DesiredState, RungKind
from agent.domain.events import Booted, Ending, Event, NewDesired, ProbationVerdict, Progress
from agent.domain.ladder import Pressure, RungChoice
from agent.domain.orders import orders_of
from agent.domain.ports import Decision
from agent.domain.probation import Commit, RollBack, StepDown, Trial, Wait
from agent.domain.update import step
from agent.errors import AgentError, IllegalTransitionError, StoreError
from agent.link.client import Welcome
from agent.link.convert import ModelStatus, TelemetryWindow
from agent.loop_act import Actor, Book, Hands
from agent.loop_boot import Remembered, remember
from agent.loop_parts import Arrived, Call, Decided, ForModel, LoopParts, Message, Timer
from agent.loop_session import CLOCK_SKEW_S, Generations
from agent.loop_watch import View, Watch
from agent.loop_work import Workers

log = logging.getLogger("agent")

LOOK_S = 0.5
PROGRESS_S = 10.0
RETRY_S = 5.0


class AgentLoop:
    """Owns every model's state. Messages may be posted from any thread."""

    def __init__(self, parts: LoopParts) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._timers: list[Timer] = []
        self._numbers = count()
        self._book = Book({})
        self._watch = Watch(parts.host, parts.probe)
        self._workers = Workers(parts.means, self._post_event)
        hands = Hands(
            parts.journal, parts.store, parts.host, self._workers, self._watch, parts.teller,
            self._post_event, self._later,
        )  # fmt: skip
        self._actor = Actor(self._book, hands)
        self._felt = Pressure()
        self.looked_at = self._clock.monotonic()
        self._window_from = self._clock.monotonic()
        self._progress: dict[str, tuple[int, float]] = {}
        self._moving: set[str] = set()
        self._refused = (0, "")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)

    # -- from any thread ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread and the workers; what is journaled goes on at the next start."""
        self._stopping.set()
        self._inbox.put(Call("stop", lambda: None))
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._workers.stop()

    def decided(self, decision: Decision) -> None:
        """The host's callback; returns at once."""
        self._inbox.put(Decided(decision))

    def desired(self, state: DesiredState) -> None:
        """See `SessionEvents`."""
        self._inbox.put(Arrived(state))

    def refused(self, generation: int, reason: str) -> None:
        """See `SessionEvents`."""
        self._inbox.put(Call("refused", lambda: self._on_refused(generation, reason)))

    def welcomed(self, welcome: Welcome, skew_s: float) -> None:
        """See `SessionEvents`."""
        self._inbox.put(Call("welcomed", lambda: self._on_welcomed(welcome, skew_s)))

    def tell_anew(self) -> None:
        """The controller forgot what it was told: how every order stands is told once more."""
        self._inbox.put(Call("tell anew", lambda: self._actor.repeat(all_of_them=True)))

    def generations(self) -> Generations:
        """For the session: what was seen, taken, applied."""
        book = self._book
        return Generations(seen=book.seen, taken=book.taken, applied=book.applied)

    def states(self) -> tuple[ModelState, ...]:
        """What is remembered of every model, by name."""
        return tuple(state for _, state in sorted(self._book.states.copy().items()))

    def status(self, state: ModelState) -> ModelStatus | None:
        """How a model stands; None when nothing answers."""
        return self._watch.status(state)

    def _post_event(self, model: str, event: Event) -> None:
        self._inbox.put(ForModel(model, event))

    # -- start -------------------------------------------------------------------------------------

    def boot(self, ending: Ending, boot_id: str, troubles: tuple[str, ...]) -> threading.Event:
        """Verify what is on disk and begin to serve it. The event is set when all of it answers.

        Call before `start`, on the thread that owns the loop until then.
        """
        found = remember(self._parts.journal, self._parts.store)
        book = self._book
        book.seen, book.taken, book.applied = found.seen, found.taken, found.applied
        book.working = found.taken
        book.states.update(found.states)
        self._tell_boot(found, ending, boot_id, troubles)
        done = threading.Event()
        left = count(1)
        for model in sorted(found.states):
            self._handle(ForModel(model, Booted(ending, found.present[model])))

            def served() -> None:
                if next(left) == len(found.states):
                    done.set()

            self._workers.in_background(model, "boot", served)
        if ending is not Ending.CLEAN:
            self._actor.repeat()
        if not found.states:
            done.set()
        return done

    def _tell_boot(
        self, found: Remembered, ending: Ending, boot_id: str, troubles: tuple[str, ...]
    ) -> None:
        details = {"ending": ending.value, "boot_id": boot_id}
        for state in found.states.values():
            if state.current is not None:
                details[f"model.{state.model}"] = state.current.release.version
        said = {
            Ending.CLEAN: "started",
            Ending.CRASHED: "started again after a crash",
            Ending.POWER_LOST: "started again after a power cut",
        }
        self._parts.teller.event("boot", said[ending], details=details)
        for trouble in (*troubles, *found.troubles):
            self._parts.teller.event("store_repaired", trouble)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        self._later(0.0, "", self._look_and_repeat)
        self._later(self._parts.telemetry_s, "", self._telemetry_and_repeat)
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Empty):
                self._handle(self._inbox.get(timeout=self._due_in_s()))
            self._run_timers()

    def _due_in_s(self) -> float:
        if not self._timers:
            return LOOK_S
        return max(0.001, self._timers[0].at_s - self._clock.monotonic())

    def _later(self, wait_s: float, kind: str, job: Callable[[], None]) -> None:
        at_s = self._clock.monotonic() + wait_s
        heapq.heappush(self._timers, Timer(at_s, next(self._numbers), kind, job))

    def _run_timers(self) -> None:
        while self._timers and self._timers[0].at_s <= self._clock.monotonic():
            self._guarded("timer", heapq.heappop(self._timers).job)

    def _guarded(self, what: str, job: Callable[[], object]) -> None:
        try:
            job()
        except AgentError as error:
            log.warning("%s: %s", what, error)
        except Exception:  # one bad message must not end serving and updating
            log.exception("loop: %s", what)

    def _handle(self, message: Message) -> None:
        match message:
            case ForModel(model, event):
                self._guarded(model, partial(self._step, model, event))
            case Decided(decision):
                self._guarded("decision", lambda: self._on_decision(decision))
            case Arrived(state):
                self._guarded("desired state", lambda: self._on_desired(state))
            case Call(what, job):
                self._guarded(what, job)
            case never:
                assert_never(never)

    # -- update ------------------------------------------------------------------------------------

    def _step(self, model: str, event: Event) -> bool:
        """Take one event of one model. False when the journal refused: it is tried again."""
        before = self._book.states.get(model, ModelState(model))
        try:
            after, todo = step(before, event)
        except IllegalTransitionError as error:
            log.error("%s: %s", model, error)
            return True
        try:
            self._actor.carry_out(before, after, todo)
        except StoreError as error:
            log.error("%s: %s cannot be recorded: %s", model, type(event).__name__, error)
            if isinstance(event, Booted):
                # A full disk must not keep a device from serving what it has.
                self._actor.carry_out(before, after, todo[1:])
                return True
            if not isinstance(event, NewDesired):
                self._later(RETRY_S, "", lambda: self._handle(ForModel(model, event)))
            return False
        self._actor.settle()
        return True

    def _on_desired(self, state: DesiredState) -> None:
        book = self._book
        if state.generation < book.seen:
            self._on_refused(state.generation, f"generation {book.seen} was accepted meanwhile")
            return
        if state.generation == book.taken:
            return
        try:
            self._actor.note_generation(seen=state.generation)
            book.working = max(book.working, state.generation)
            orders = orders_of(state, frozenset(book.states))
            book.waiting = set(orders)
            for model, order in orders.items():
                book.waiting.discard(model)
                if not self._step(model, order):
                    book.waiting.add(model)
            if book.waiting:
                raise StoreError("the journal did not take every order")
            self._actor.note_generation(taken=state.generation)
        except StoreError as error:
            log.error("generation %d: %s; trying again", state.generation, error)
            self._later(RETRY_S, "", lambda: self._handle(Arrived(state)))
            return
        self._actor.settle()

    def _on_refused(self, generation: int, reason: str) -> None:
        if (generation, reason) == self._refused:
            return  # asked again, answered the same: told once
        self._refused = (generation, reason)
        details = {"generation": str(generation)}
        self._parts.teller.event("manifest_refused", reason, details=details)

    def _on_welcomed(self, welcome: Welcome, skew_s: float) -> None:
        synced = abs(skew_s) < CLOCK_SKEW_S
        self._parts.teller.set_synced(synced)
        log.info(
            "connected to the controller: profile %s%s",
            welcome.profile or "none matches this device",
            ", waiting to be accepted by an operator" if welcome.pending else "",
        )
        if not synced:
            text = f"this clock and the controller's differ by {skew_s:.0f} s"
            self._parts.teller.event("clock_unsure", text)
        waiting = [t for t in self._timers if t.kind == "fetch"]
        self._timers = [t for t in self._timers if t.kind != "fetch"]
        heapq.heapify(self._timers)
        for timer in waiting:
            self._guarded("fetch", timer.job)

    # -- rollback rule and ladder ------------------------------------------------------------------

    def _on_decision(self, decision: Decision) -> None:
        verdict = decision.verdict
        match verdict:
            case RollBack():
                self._actor.decided(decision)
                self._step(decision.model, ProbationVerdict(decision.slot_id, verdict))
            case StepDown():
                state = self._book.states.get(decision.model)
                view = self._watch.view(state, self._felt) if state else None
                if state is None or view is None or view.serving.slot_id != decision.slot_id:
                    return
                now = self._clock.monotonic()
                choice = self._watch.stepped_down(view, verdict, decision.swapped_to, now)
                self._move(state, view, choice, done=decision.swapped_to is not None)
            case never:
                assert_never(never)

    def _move(self, state: ModelState, view: View, choice: RungChoice, done: bool) -> None:
        change = choice.change
        if change is None:
            return
        model = state.model

        def tell() -> None:
            details = {
                "from": change.from_rung,
                "to": change.to_rung,
                "cause": change.kind.value,
                "slot": view.serving.slot_id,
            }
            version = view.serving.version
            self._parts.teller.event("rung_changed", change.reason, state, version, details)

        def move() -> None:
            try:
                self._parts.host.set_rung(model, change.to_rung)
            except AgentError as error:
                reason = f"{change.to_rung} cannot answer: {error.message}"
                self._inbox.put(Call("rung", lambda: self._not_moved(state, reason)))
            else:
                self._inbox.put(Call("rung", tell))
            finally:
                self._moving.discard(model)

        spec = view.spec(change.to_rung)
        if done:
            tell()
        elif spec is not None and (
            spec.kind is not RungKind.LOCAL or spec.name in view.serving.resident
        ):
            move()
        else:
            self._moving.add(model)
            self._workers.in_background(model, "rung", move)

    def _not_moved(self, state: ModelState, reason: str) -> None:
        self._watch.undo(state.model)
        self._parts.teller.event("rung_failed", reason, state)

    # -- looking -----------------------------------------------------------------------------------

    def _look_and_repeat(self) -> None:
        self._later(LOOK_S, "", self._look_and_repeat)
        self.looked_at = self._clock.monotonic()
        self._felt = self._parts.sensors.read()
        self._parts.host.feel(self._felt)
        self._guarded("links", partial(self._watch.watch_links, self._book.states))
        for model in sorted(self._book.states):
            self._guarded(model, partial(self._look, model))

    def _look(self, model: str) -> None:
        state = self._book.states[model]
        view = self._watch.view(state, self._felt)
        if view is None:
            return
        now = self._clock.monotonic()
        current = state.current
        if current is not None and view.serving.slot_id == current.slot_id:
            self._prove(state, view, now)
            if (said := self._watch.staying(state, view, now)) is not None:
                self._parts.teller.event(said.kind, said.reason, state, view.serving.version)
        if view.rungs and model not in self._moving:
            self._move(state, view, self._watch.choose(view, now), done=False)

    def _prove(self, state: ModelState, view: View, now: float) -> None:
        verdict = self._watch.verdict(view, state.latched, now)
        row = view.serving.row
        if isinstance(verdict, Commit) or (isinstance(verdict, Wait) and verdict.starved):
            self._step(state.model, ProbationVerdict(view.serving.slot_id, verdict))
            return
        if view.serving.trial is not Trial.PROBATION or state.phase is not Phase.PROBATION:
            return
        last = self._progress.get(state.model, (0, 0.0))
        if row.counted != last[0] and now - last[1] >= PROGRESS_S:
            self._progress[state.model] = (row.counted, now)
            self._step(state.model, Progress(state.ticket, row.counted, now - row.since_s))

    def _telemetry_and_repeat(self) -> None:
        self._later(self._parts.telemetry_s, "", self._telemetry_and_repeat)
        if not self._parts.connected():
            return  # histograms add up until somebody listens
        now = self._clock.monotonic()
        states = [s for _, s in sorted(self._book.states.items())]
        links = [v.pressure for s in states if (v := self._watch.view(s, self._felt))]
        felt = next((p for p in links if p.link_rtt_s is not None), self._felt)
        window = TelemetryWindow(
            window_s=now - self._window_from,
            rungs=self._parts.host.take_windows(),
            pressure=replace(self._felt, link_rtt_s=felt.link_rtt_s),
            models=tuple(m for s in states if (m := self._watch.status(s))),
            rss_bytes=self._parts.rss_bytes(),
            applied_generation=self._book.applied,
        )
        if self._parts.teller.telemetry(window):
            self._window_from = now
