"""Carries out what the update machine instructs, in order, journal first.

Refuses to go on past an instruction that the disk refused: the rest is tried again later, as long
as the state is still the same.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import assert_never

from agent.domain.assignment import CLOSED, ModelState, Phase, keep_of
from agent.domain.events import Event, RolledBack, Staged
from agent.domain.instructions import (
    CollectGarbage,
    Fetch,
    Instruction,
    LoadAndWarm,
    MarkBad,
    MarkGood,
    Preflight,
    Reconfigure,
    Report,
    Serve,
    SetSlots,
    Swap,
    SwapBack,
    Unload,
    Verify,
    WriteJournal,
)
from agent.domain.ports import Decision, Journal, ModelHost, SlotStore
from agent.domain.probation import RollBack
from agent.domain.state_json import state_to_json
from agent.domain.transition import report
from agent.errors import StoreError
from agent.link.backoff import Backoff
from agent.link.convert import Evidence
from agent.loop_boot import APPLIED, GENERATION, MODEL, SEEN, TAKEN
from agent.loop_tell import Teller
from agent.loop_watch import Watch
from agent.loop_work import Workers

log = logging.getLogger("agent")

SETTLED = CLOSED | {Phase.IDLE, Phase.COMMITTED}
FETCH_WAIT_CAP_S = 30.0
RETRY_S = 5.0  # after the disk refused


@dataclass(slots=True)
class Book:
    """What the loop knows: states by model, generations.

    `seen`, `taken` (every order of it is journaled) and `applied` are durable; `working` is the one
    that is being taken or was.
    """

    states: dict[str, ModelState]
    seen: int = 0
    taken: int = 0
    applied: int = 0
    working: int = 0
    waiting: set[str] = field(default_factory=set)

    def is_settled(self) -> bool:
        """Whether nothing of the newest generation is under way, or still to be begun."""
        return (
            self.working > 0
            and not self.waiting
            and all(
                s.phase in SETTLED and s.generation >= self.working for s in self.states.values()
            )
        )


@dataclass(frozen=True, slots=True)
class Hands:
    """What instructions are carried out with."""

    journal: Journal
    store: SlotStore
    host: ModelHost
    workers: Workers
    watch: Watch
    teller: Teller
    post: Callable[[str, Event], None]
    later: Callable[[float, str, Callable[[], None]], None]


class Actor:
    """Does what one step of one model asked for. Loop thread only."""

    def __init__(self, book: Book, hands: Hands) -> None:
        self._book = book
        self._hands = hands
        self._backoff = Backoff(base_s=1.0, cap_s=FETCH_WAIT_CAP_S)
        self._left: dict[str, tuple[MarkBad, str]] = {}
        self._decisions: dict[str, Decision] = {}
        self._told: dict[str, Report] = {}

    def carry_out(
        self, before: ModelState, after: ModelState, todo: tuple[Instruction, ...]
    ) -> None:
        """Do all of it; StoreError only when the journal itself refused (then nothing was done)."""
        rest = list(todo)
        if rest and isinstance(rest[0], WriteJournal):
            self._hands.journal.append(MODEL, after.model, state_to_json(after))
            del rest[0]
        self._book.states[after.model] = after
        self._hands.workers.want(after.model, after.ticket)
        self._go_on(before, after, tuple(rest))

    def decided(self, decision: Decision) -> None:
        """Keep what the host did by itself, for the report that follows."""
        self._decisions[decision.model] = decision

    def note_generation(self, seen: int | None = None, taken: int | None = None) -> None:
        """Make the highest generation ever accepted, or the one being worked on, durable."""
        for key, value in ((SEEN, seen), (TAKEN, taken)):
            if value is not None and value > getattr(self._book, key):
                self._hands.journal.append(GENERATION, key, {"value": value})
                setattr(self._book, key, value)

    def settle(self) -> None:
        """Tell once that a generation is applied as a whole."""
        book = self._book
        if book.taken < book.working or not self._record_applied():
            return
        log.info("generation %d is applied", book.applied)
        for model, said in self._last_words():
            state = book.states[model]
            said = replace(said, generation=book.applied)
            self._hands.teller.report(model, said, self._evidence(state), applied=True)
            return

    def repeat(self, *, all_of_them: bool = False) -> None:
        """After a crash: what was journaled may have died before it was told. Twice is no harm.

        `all_of_them`: also what was told since the start.
        """
        book = self._book
        applied = book.taken > 0 and book.applied >= book.taken and book.is_settled()
        for model, state in sorted(book.states.items()):
            told = model in self._told and not all_of_them
            if state.order is None or state.phase is Phase.IDLE or told:
                continue
            self._hands.teller.report(model, report(state), self._evidence(state), applied)

    # -- instructions ------------------------------------------------------------------------------

    def _go_on(self, before: ModelState, state: ModelState, todo: tuple[Instruction, ...]) -> None:
        for number, item in enumerate(todo):
            try:
                self._do(before, state, item)
            except StoreError as error:
                log.error("%s: %s; trying again", state.model, error)
                again = partial(self._again, before, state, todo[number:])
                self._hands.later(self._backoff.spread(RETRY_S), "", again)
                return

    def _again(self, before: ModelState, state: ModelState, todo: tuple[Instruction, ...]) -> None:
        if self._book.states.get(state.model) == state:
            self._go_on(before, state, todo)

    def _do(self, before: ModelState, state: ModelState, item: Instruction) -> None:
        hands, model = self._hands, state.model
        match item:
            case WriteJournal():
                hands.journal.append(MODEL, model, state_to_json(item.state))
            case SetSlots():
                hands.store.set_slots(model, item.current, item.previous, item.staged)
                if item.ticket is not None:
                    hands.post(model, Staged(item.ticket))
            case Fetch():
                self._fetch(state, item)
            case Preflight() | Verify() | LoadAndWarm() | Swap() | Serve():
                hands.workers.start(state, item)
            case SwapBack():
                self._swap_back(state, item)
            case Unload():
                hands.workers.in_background(
                    model, "unload", partial(self._unload, model, item.slot_id)
                )
            case MarkGood():
                slot_id, latched = item.slot_id, state.latched
                hands.workers.in_background(
                    model, "settle", lambda: hands.host.settle(model, slot_id, latched=latched)
                )
            case MarkBad():
                left = before.current.release.version if before.current else ""
                self._left[model] = (item, left)
            case Reconfigure():
                release = item.release
                hands.workers.in_background(
                    model, "reconfigure", lambda: hands.host.reconfigure(release)
                )
            case CollectGarbage():
                freed = hands.store.collect(keep_of(self._book.states.values()))
                if freed:
                    log.info("freed %.1f MB of files that no version names", freed / 1e6)
            case Report():
                self._report(state, item)
            case never:
                assert_never(never)

    def _unload(self, model: str, slot_id: str) -> None:
        """Runs in a worker. What answers stays: the host may have gone back to it just now."""
        serving = self._hands.host.serving(model)
        state = self._book.states.get(model)
        current = state.current if state else None
        answers = serving is not None and serving.slot_id == slot_id
        if answers and current is not None and current.slot_id != slot_id:
            log.info("%s: %s answers again and stays loaded", model, slot_id)
            return
        self._hands.host.unload(model, slot_id)

    def _fetch(self, state: ModelState, item: Fetch) -> None:
        if item.attempt == 0:
            self._hands.workers.start(state, item)
            return
        ceiling = min(FETCH_WAIT_CAP_S, 2.0 ** min(item.attempt, 10))
        log.info("%s: download again soon: %s", state.model, state.reason)

        def start() -> None:
            now = self._book.states.get(state.model)
            if now is not None and now.ticket == item.ticket:
                self._hands.workers.start(now, item)

        self._hands.later(self._backoff.spread(ceiling / 2, 1.0), "fetch", start)

    def _swap_back(self, state: ModelState, item: SwapBack) -> None:
        serving = self._hands.host.serving(state.model)
        if serving is not None and serving.slot_id == item.release.slot_id:
            # The host was there before: nothing to wait for.
            self._hands.post(state.model, RolledBack(item.ticket))
        else:
            self._hands.workers.start(state, item)

    # -- telling -----------------------------------------------------------------------------------

    def _report(self, state: ModelState, said: Report) -> None:
        self._told[state.model] = said
        evidence = self._evidence(state)
        self._hands.teller.report(state.model, said, evidence, self._record_applied())
        if said.phase is Phase.ROLLED_BACK:
            self._tell_rolled_back(state, said, evidence)

    def _record_applied(self) -> bool:
        """Make it durable that the newest generation is applied; False when it is not, or was."""
        book = self._book
        if book.applied >= book.working or not book.is_settled():
            return False
        try:
            self._hands.journal.append(GENERATION, APPLIED, {"value": book.working})
        except StoreError as error:
            log.error("applied generation %d is not recorded: %s", book.working, error)
            return False
        book.applied = book.working
        return True

    def _evidence(self, state: ModelState) -> Evidence:
        evidence = self._hands.watch.evidence(state)
        decision = self._decisions.get(state.model)
        if decision is None or state.phase not in (Phase.ROLLING_BACK, Phase.ROLLED_BACK):
            return evidence
        row = decision.verdict.row if isinstance(decision.verdict, RollBack) else ()
        return replace(
            evidence,
            inferences=max(state.counted, decision.seen),
            last_service_s=row,
            rolled_back_in_s=decision.done_in_s,
        )

    def _tell_rolled_back(self, state: ModelState, said: Report, evidence: Evidence) -> None:
        mark, left = self._left.pop(state.model, (None, said.version))
        self._decisions.pop(state.model, None)
        details = {
            "from": left,
            "to": said.serving_version,
            "rollout": mark.rollout if mark else said.rollout,
            "cause": mark.cause.value if mark else "",
            "rolled_back_in_s": f"{evidence.rolled_back_in_s:.3f}",
            "last_service_s": " ".join(f"{s:.6f}" for s in evidence.last_service_s),
        }
        self._hands.teller.event("rolled_back", said.reason, state, left, details)

    def _last_words(self) -> list[tuple[str, Report]]:
        """Reports that may be repeated: of models whose last one still holds, else of all."""
        states = self._book.states
        found = [
            (model, said)
            for model, said in self._told.items()
            if model in states and said.phase is states[model].phase
        ]
        if found:
            return found
        return [
            (model, report(state))
            for model, state in states.items()
            if state.order is not None and state.phase is not Phase.IDLE
        ]
