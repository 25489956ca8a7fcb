"""Bugs that are planted on purpose: a simulator that does not find them proves nothing.

Each breaks one promise in the real code, for as long as its context lasts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

from agent.domain import booting, orders, probation, retreat, transition, update
from controller.domain import planner
from controller.domain.evidence import Rules, WaveFacts
from controller.domain.health import Judgement, judge
from controller.domain.planner import Facts, Plan
from controller.domain.rollout import LIVE, UNDERWAY, AssignmentState, Verdict
from controller.services import desired, rollout_orders
from controller.services import tick as ticks
from controller.services.ways_back import ways_back
from controller.store import ledger, reported
from tests.simulation import sim_door
from tests.simulation.sim_agent import SimAgent
from tests.simulation.sim_model import JournalledModel
from tests.simulation.sim_world import SimWorld

A = AssignmentState
Patches = Callable[[ExitStack], None]


def _ledger_without_retries(stack: ExitStack) -> None:
    """What did not come to anything makes room for another."""

    real = ledger.tally

    def count(conn: Any, rollout_id: str) -> ledger.Tally:
        found = real(conn, rollout_id)
        on = LIVE | UNDERWAY
        return replace(found, exposed=sum(n for (_, s), n in found.by_wave.items() if s in on))

    stack.enter_context(patch.object(ledger, "tally", count))


def _passes_on_silence(stack: ExitStack) -> None:
    """Where nothing was heard, nothing was wrong."""

    def forgive(facts: WaveFacts, rules: Rules, now: datetime) -> Judgement:
        found = judge(facts, rules, now)
        if found.verdict in (Verdict.PENDING, Verdict.INCONCLUSIVE) and not facts.in_flight:
            return replace(found, verdict=Verdict.PASSED)
        return found

    stack.enter_context(patch.object(ticks, "judge", forgive))


def _abort_forgets_in_flight(stack: ExitStack) -> None:
    """Only what was never offered is withdrawn."""
    real = planner.plan

    def forget(facts: Facts, now: datetime) -> Plan:
        found = real(facts, now)
        return replace(found, withdraw=found.withdraw - UNDERWAY)

    stack.enter_context(patch.object(ticks, "plan", forget))


def _rollback_forgets_committed(stack: ExitStack) -> None:
    """Who has committed the bad version keeps it."""
    real = planner.plan

    def forget(facts: Facts, now: datetime) -> Plan:
        found = real(facts, now)
        return replace(found, roll_back=found.roll_back - {A.COMMITTED})

    stack.enter_context(patch.object(ticks, "plan", forget))


def _spool_dropped_on_send(stack: ExitStack) -> None:
    """A device forgets what it has sent, as if the broker's PUBACK were storage."""
    real = SimWorld._speak

    def speak(world: SimWorld, heard: list[SimAgent]) -> None:
        real(world, heard)
        for agent in heard:
            agent.disk.spool = []

    stack.enter_context(patch.object(SimWorld, "_speak", speak))


def _bad_is_not_remembered(stack: ExitStack) -> None:
    """The device forgets which version it left: it goes there and back for ever."""
    for module in (transition, booting, orders, retreat, update):
        stack.enter_context(patch.object(module, "is_bad", lambda *_: False))


def _generation_goes_down(stack: ExitStack) -> None:
    """What is taken back is ordered under the number of before."""
    real = desired.DesiredBook.change

    def change(book: desired.DesiredBook, one: desired.Change) -> int:
        before = book._now.get(one.device_id)
        made = real(book, one)
        if before is not None and before[0] > 2 and made % 5 == 0:
            book._now[one.device_id] = (before[0] - 1, book._now[one.device_id][1])
        return made

    stack.enter_context(patch.object(desired.DesiredBook, "change", change))


def _restores_nothing(stack: ExitStack) -> None:
    """Orders are closed in the books, and the device is never told."""
    stack.enter_context(patch.object(rollout_orders, "restore_previous", lambda *_: {}))


def _caps_of_the_next_wave(stack: ExitStack) -> None:
    """One wave more is let in than was proven."""
    real = planner.plan

    def ahead(facts: Facts, now: datetime) -> Plan:
        return real(replace(facts, caps=(*facts.caps[1:], facts.caps[-1])), now)

    stack.enter_context(patch.object(ticks, "plan", ahead))


def _journal_behind(stack: ExitStack) -> None:
    """The device acts before it writes: a power cut forgets the newest step."""
    real = JournalledModel._do

    def late(model: Any, before: Any, item: Any) -> None:
        name = type(item).__name__
        if name == "WriteJournal":
            model.agent.disk.states[model.name] = before
            return
        real(model, before, item)

    stack.enter_context(patch.object(JournalledModel, "_do", late))


def _judge_of_old_facts(stack: ExitStack) -> None:
    """Devices that left the version are not looked at."""

    def blind(facts: WaveFacts, rules: Rules, now: datetime) -> Judgement:
        return judge(replace(facts, rolled_back=(), failed=()), rules, now)

    stack.enter_context(patch.object(ticks, "judge", blind))


def _latch_missing(stack: ExitStack) -> None:
    """What was left is the next place to go back to, and nothing holds the device."""
    real = retreat.on_rolled_back

    def forth(state: Any, event: Any) -> Any:
        after, work = real(state, event)
        if after is state or state.current is None:
            return after, work
        previous = replace(state.current, committed=True)
        return replace(after, previous=previous, latched=False, bad=frozenset()), work

    stack.enter_context(patch.object(update, "on_rolled_back", forth))


def _bell_lost(stack: ExitStack) -> None:
    """A broker that starts again is not told who is behind."""
    stack.enter_context(patch.object(sim_door, "devices_behind", lambda _: []))


def _heat_is_blamed(stack: ExitStack) -> None:
    """Inferences of a hot device count against its version."""
    real = probation.observe

    def count(row: Any, sample: Any, policy: Any) -> Any:
        return real(row, replace(sample, pressured=False), policy)

    stack.enter_context(patch("tests.simulation.sim_model.observe", count))


def _late_round_the_ramp(stack: ExitStack) -> None:
    """Who comes online gets the version at once, whatever the cap says."""
    stack.enter_context(patch.object(planner, "dispatch", lambda _cap, _exposed, found: found))


def _superseded_stays_desired(stack: ExitStack) -> None:
    """What a device left stays its order, where a newer rollout was to come and did not."""
    real = reported.take_report

    def keep(row: Any, *said: Any) -> Any:
        result, after = real(row, *said)
        return result, row if result.ignored else after

    stack.enter_context(patch.object(reported, "take_report", keep))


def _taken_too_early(stack: ExitStack) -> None:
    """An order is noted as taken before its models have it."""
    real = SimAgent._share_out

    def early(agent: SimAgent, desired: Any) -> None:
        agent.disk.taken = desired.generation
        real(agent, desired)

    stack.enter_context(patch.object(SimAgent, "_share_out", early))


def _one_way_back(stack: ExitStack) -> None:
    """A device that leaves versions of two models at once gets one way back for both."""
    real = ways_back

    def mixed(conn: Any, entries: Any) -> Any:
        found = real(conn, entries)
        last = {device: entry for (device, _), entry in found.items()}
        return {key: last[key[0]] for key in found}

    stack.enter_context(patch("controller.services.rollout_orders.ways_back", mixed))


def _waits_for_who_went_on(stack: ExitStack) -> None:
    """A device that went on to a newer version is still to show more of this one."""
    name = "controller.services.rollout_facts._gone_on"
    stack.enter_context(patch(name, lambda *_: frozenset()))


PLANTED: Mapping[str, Patches] = {
    "ledger without retries": _ledger_without_retries,
    "gate that passes on silence": _passes_on_silence,
    "abort that forgets in-flight": _abort_forgets_in_flight,
    "rollback that forgets the committed": _rollback_forgets_committed,
    "spool dropped on PUBACK": _spool_dropped_on_send,
    "bad version not remembered": _bad_is_not_remembered,
    "generation that goes down": _generation_goes_down,
    "orders closed but never told": _restores_nothing,
    "cap of the next wave": _caps_of_the_next_wave,
    "journal behind the act": _journal_behind,
    "judge blind to devices that left": _judge_of_old_facts,
    "latch missing": _latch_missing,
    "doorbell lost on restart": _bell_lost,
    "heat taken for a bad version": _heat_is_blamed,
    "late joiner round the ramp": _late_round_the_ramp,
    "superseded order stays desired": _superseded_stays_desired,
    "order taken before it is noted": _taken_too_early,
    "one way back for two models": _one_way_back,
    "wave that waits for who went on": _waits_for_who_went_on,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is there within."""
    with ExitStack() as stack:
        PLANTED[name](stack)
        yield
