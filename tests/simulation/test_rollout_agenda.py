"""Ticks look at rollouts with news and at those whose time came; a halt stops offers at once."""

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from random import Random

import pytest

from controller.app_loops import Loop
from controller.clock import SystemClock
from controller.domain.rollout import AssignmentState, Intent, Phase
from controller.services import rollout_facts
from controller.services import tick as ticking
from controller.services.agenda import Agenda
from controller.services.context import Ctx, Deps
from controller.services.rollouts import set_intent, start_rollout
from controller.services.tick import tick
from controller.store import assignments, events, reported
from controller.store.session import Connection
from tests.simulation.rollout_world import MODEL, START, World
from tests.support.stores import PROJECT
from tests.support.wait import wait_for

A = AssignmentState
MakeWorld = Callable[..., World]


def start(world: World, version: str, **more: object) -> str:
    spec: dict[str, object] = {
        "model": MODEL,
        "version": version,
        "selector": "all",
        "waves": ["1", "100%"],
        "soak_s": 1.0,
        "min_samples": 5,
        **more,
    }
    return start_rollout(world.deps, world.ctx(), spec, len(world.devices)).rollout_id


def start_one(world: World, device_id: str) -> str:
    """A rollout to one device."""
    spec: dict[str, object] = {
        "model": MODEL,
        "version": "1.0.0",
        "selector": f"device={device_id}",
        "waves": ["1"],
    }
    return start_rollout(world.deps, world.ctx(), spec, 1).rollout_id


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each rollout was looked at."""
    seen: Counter[str] = Counter()
    look = ticking._tick_rollout

    def counting(deps: Deps, ctx: Ctx, rollout_id: str, told: Callable[[], None]) -> None:
        seen[rollout_id] += 1
        look(deps, ctx, rollout_id, told)

    monkeypatch.setattr(ticking, "_tick_rollout", counting)
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_a_rollout_ends_as_well_when_only_news_is_looked_at(
    make_world: MakeWorld, seed: int
) -> None:
    world = make_world(8, bad_versions={"1.1.0": "slow"})
    world.by_agenda = True
    random = Random(seed)
    good = start(world, "1.0.0")
    assert world.run(random, 300, world.is_over(good))
    assert world.phase(good) is Phase.SUCCEEDED
    bad = start(world, "1.1.0")
    assert world.run(random, 300, world.is_over(bad))
    assert world.phase(bad) is Phase.ROLLED_BACK


def test_what_waits_is_looked_at_in_its_time_and_not_before(
    make_world: MakeWorld, looked: Counter[str]
) -> None:
    """A judge who waits says when he looks again; the tick used to go on as if that were now."""
    world = make_world(4)
    world.by_agenda = True
    rollout_id = start(world, "1.0.0")
    for _ in range(3):
        world.tick()
        world.now += timedelta(seconds=3)
    assert world.phase(rollout_id) is Phase.PROGRESSING
    world.tick()
    looked.clear()
    wake_at = tick(world.deps, world.ctx("controller"), everything=False)
    assert wake_at is not None
    assert wake_at > world.now + timedelta(seconds=1)
    for _ in range(5):
        world.now += timedelta(seconds=0.2)
        world.tick()
    assert looked[rollout_id] == 0
    world.now += timedelta(seconds=2)
    world.tick()
    assert looked[rollout_id] == 1
    world.deps.agenda.note([rollout_id])
    world.tick()
    assert looked[rollout_id] == 2
    world.deps.agenda.note_all()
    world.tick()
    assert looked[rollout_id] == 3


def test_a_look_that_finds_nothing_new_waits_for_no_writer(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(4)
    rollout_id = start(world, "1.0.0")
    for _ in range(3):
        world.tick()
        world.now += timedelta(seconds=3)
    writes: list[datetime] = []
    write = world.store.write

    def counting() -> AbstractContextManager[Connection]:
        writes.append(world.now)
        return write()

    monkeypatch.setattr(world.store, "write", counting)
    tick(world.deps, world.ctx("controller"), everything=False)
    assert writes == []
    world.deps.agenda.note([rollout_id])
    tick(world.deps, world.ctx("controller"), everything=False)
    assert writes == []
    set_intent(world.deps, world.ctx(), rollout_id, Intent.PAUSE, "lunch")
    tick(world.deps, world.ctx("controller"), everything=False)
    assert writes == [world.now] * 2  # control: the intent, and what follows of it


def offered_and_halted(world: World, rollout_id: str) -> tuple[list[int], int]:
    """Numbers of the events of all offers, and of the halt (0: there was none)."""
    with world.store.read() as conn:
        found = events.list_events(conn, PROJECT, rollout_id=rollout_id, limit=10_000)
    offers = [one.number for one in found if one.kind == "assignment_offered"]
    halts = [
        one.number
        for one in found
        if one.kind == "rollout_phase" and one.details["to"] == Phase.ROLLING_BACK
    ]
    return offers, next(iter(halts), 0)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "control: nobody listens"])
def test_no_offer_is_committed_behind_a_halt_however_many_are_left(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """Offers go out in portions; behind the second of them a device finds the version bad."""
    monkeypatch.setattr(rollout_facts, "CANDIDATES", 5)
    monkeypatch.setattr(ticking, "CANDIDATES", 5)
    world = make_world(20, bad_versions={"1.1.0": "slow"})
    random = Random(7)
    good = start(world, "1.0.0")
    assert world.run(random, 300, world.is_over(good))
    bad = start(world, "1.1.0", waves=["100%"], override_first_wave_reason="a lab")

    def leave() -> None:
        waiting = offered(world, bad)
        while len(waiting) == 10 and not any(bad in one.bad for one in world.devices.values()):
            world.step_device(world.devices[waiting[0]], random)

    if not heard:
        monkeypatch.setattr(reported, "has_left", lambda conn, rollout_id: False)
        monkeypatch.setattr(Agenda, "note", lambda self, rollout_ids, urgent=False: None)
    tick(world.deps, world.ctx("controller"), everything=False, told=leave)
    offers, halted = offered_and_halted(world, bad)
    if heard:
        assert halted
        assert len(offers) == 10
        assert all(number < halted for number in offers)
    else:
        assert not halted
        assert len(offers) == 15
    world.tick()
    assert world.phase(bad) in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)


def offered(world: World, rollout_id: str) -> list[str]:
    with world.store.read() as conn:
        rows = assignments.list_assignments(conn, rollout_id, states=[A.OFFERED])
    return [row.device_id for row in rows]


def test_the_one_that_cannot_wait_is_looked_at_before_the_others(
    make_world: MakeWorld, looked: Counter[str]
) -> None:
    world = make_world(6)
    world.by_agenda = True
    ids = [start_one(world, name) for name in world.devices]
    world.tick()
    looked.clear()
    world.deps.agenda.note(ids)
    world.deps.agenda.note([ids[-1]], urgent=True)
    tick(world.deps, world.ctx("controller"), everything=False)
    assert next(iter(looked)) == ids[-1]
    assert looked == Counter(dict.fromkeys(ids, 1))  # and none twice


def test_what_begins_in_a_round_does_not_wait_for_its_end(
    make_world: MakeWorld, looked: Counter[str]
) -> None:
    world = make_world(3)
    world.by_agenda = True
    names = list(world.devices)
    ids = [start_one(world, name) for name in names[:2]]

    def begin() -> None:
        if len(ids) == 2:
            ids.append(start_one(world, names[2]))

    tick(world.deps, world.ctx("controller"), everything=False, told=begin)
    assert looked.keys() == set(ids)
    assert len(ids) == 3


def test_an_agenda_keeps_its_word() -> None:
    rung: list[bool] = []
    agenda = Agenda(rung.append)
    active = ("a", "b", "c")
    assert agenda.take_news(active) == (frozenset(active), True)  # nobody looked at them yet
    for name in active:
        agenda.settle(name, Phase.PROGRESSING, START)
    assert agenda.take_news(active) == (frozenset(), False)
    assert agenda.is_due("a", START)
    assert not agenda.is_due("a", START - timedelta(seconds=1))
    agenda.note(["b", "gone"])
    agenda.note(["c"], urgent=True)
    agenda.note([])
    assert rung == [False, True]
    assert agenda.take_urgent() == "c"
    assert agenda.take_urgent() is None
    assert agenda.take_news(active) == (frozenset({"b", "c"}), False)
    agenda.settle("c", Phase.ROLLING_BACK, START)
    agenda.note(["c"], urgent=True)  # that a whole fleet goes back presses nobody
    assert rung[-1] is False
    assert agenda.take_urgent() is None
    assert agenda.next_at() == START
    agenda.take_news(())
    assert agenda.next_at() is None


def test_an_operator_who_stops_a_rollout_waits_for_no_tick(make_world: MakeWorld) -> None:
    world = make_world(2)
    rung: list[bool] = []
    world.deps.agenda.ring = rung.append
    rollout_id = start(world, "1.0.0")
    world.tick()
    rung.clear()
    set_intent(world.deps, world.ctx(), rollout_id, Intent.ABORT, "enough")
    assert rung == [True]


def test_a_loop_in_a_hurry_does_not_rest() -> None:
    acts = threading.Semaphore(0)
    clock = SystemClock()

    def act() -> float:
        acts.release()
        return 60.0

    loop = Loop("hurries", act, clock, least_s=60.0)
    loop.start()
    assert acts.acquire(timeout=20)
    loop.wake()
    assert not acts.acquire(timeout=0.05)  # control: without hurry it rests
    loop.wake(hurry=True)
    assert acts.acquire(timeout=20)
    loop.stop()
    wait_for(lambda: loop.trouble() is not None, 20, "the loop to end")
