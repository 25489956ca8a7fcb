"""Kills at every change on disk, with what was not synced kept, lost or mixed; then a new start.

After each: one current version with the signed bytes, never older than what was known, a model that
answers if one did, reports without a gap, and a way to the next commit.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.domain.assignment import LIVE, Phase
from agent.domain.desired import DesiredModel
from agent.domain.events import Ending, Event, NewDesired, ProbationVerdict
from agent.domain.probation import Cause, Commit, RollBack
from agent.errors import StoreError
from agent.store.boot import start
from tests.support.disks import (
    ForgetfulDisk,
    LossyDisk,
    NamelessDisk,
    PowerCutError,
    everything,
    nothing,
    some,
)
from tests.support.mini_agent import MiniAgent
from tests.support.releases import release

V1, V2, V3 = release("1.0.0", "r-1"), release("1.1.0", "r-2"), release("1.2.0", "r-3")
FINAL = release("9.0.0", "r-9")
SLOW = RollBack(Cause.SLOW, "5 in a row")
GOOD = Commit("enough")
Step = Callable[[MiniAgent], Event | None]
Survive = Callable[[], float]


def order(what: DesiredModel, generation: int) -> Step:
    return lambda agent: NewDesired(what, generation)


def verdict(what: Commit | RollBack) -> Step:
    def made(agent: MiniAgent) -> Event | None:
        current = agent.state.current
        return ProbationVerdict(current.slot_id, what) if current else None

    return made


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: what survives is modelled, not left to the disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


# Install, commit, update, commit, a bad update that comes back, and another that replaces it.
STORY = [
    order(V1, 1),
    verdict(GOOD),
    order(V2, 2),
    verdict(GOOD),
    order(V3, 3),
    verdict(SLOW),
    order(V2, 4),
]


class Device:
    """A device over many starts: what it once said counts against what it says later."""

    def __init__(self, root: Path, kind: type[LossyDisk] = LossyDisk) -> None:
        self.root = root
        self.kind = kind
        self.starts = 0
        self.generation = 0
        self.had_model = False
        self.told: dict[str, int] = {}
        self.disk = kind(root)
        self.agent: MiniAgent | None = None
        self.death: tuple[int, Ending] = (0, Ending.CLEAN)

    def start(self, ending: Ending, die_at: int = 0) -> MiniAgent:
        self.starts += 1
        self.disk = self.kind(self.root, die_at)
        self.agent = None
        self.agent = MiniAgent(self.root, self.disk, self.starts, ending)
        self.check(self.agent)
        return self.agent

    def play(self, steps: list[Step]) -> None:
        for made in steps:
            assert self.agent is not None
            event = made(self.agent)
            if event is not None:
                self.agent.feed(event)
            self.check(self.agent)

    def check(self, agent: MiniAgent) -> None:
        """I1, I2, I4, I6, I8, after everything that returned."""
        state = agent.state
        assert state.generation >= self.generation, "I6: an older generation than before"
        self.generation = state.generation
        current, _, _ = agent.slots.slots("photo")
        assert (current and current.slot_id) == (state.current and state.current.slot_id), "I1"
        if state.phase in LIVE:
            assert state.current is not None
            assert agent.serving == state.current.slot_id, "I1: another version answers"
        if agent.serving is not None:
            assert state.current is not None
            for target in state.current.release.targets:
                data = Path(agent.slots.path(target.digest)).read_bytes()
                assert "sha256:" + hashlib.sha256(data).hexdigest() == target.digest, "I1"
        assert not self.had_model or agent.serving is not None, "I4: nothing answers any more"
        self.had_model = self.had_model or agent.serving is not None
        for boot_id, last in self.told.items():
            kept = [e.seq for e in agent.spool.pending(10_000) if e.boot_id == boot_id]
            assert kept == list(range(1, len(kept) + 1)), "I8: a gap"
            assert len(kept) >= last, "I8: a report was lost"
        for entry in agent.spool.pending(10_000):
            self.told[entry.boot_id] = max(self.told.get(entry.boot_id, 0), entry.seq)

    def converge(self) -> None:
        """When the faults stop, the next order reaches its commit (I7)."""
        agent = self.start(Ending.CLEAN)
        agent.feed(NewDesired(FINAL, 1000))
        assert agent.state.phase is Phase.PROBATION
        agent.feed(ProbationVerdict(FINAL.slot_id, GOOD))
        assert (agent.state.phase, agent.serving) == (Phase.COMMITTED, FINAL.slot_id)
        self.check(agent)
        self.start(Ending.CLEAN)


def die_at(root: Path, change: int, survive: Survive, kind: type[LossyDisk] = LossyDisk) -> bool:
    """Play the story, die at this change, start again; gives whether the story got that far."""
    device = Device(root, kind)
    died = False
    try:
        device.start(Ending.CLEAN, change)
        device.play(STORY)
    except PowerCutError:
        died = True
    device.disk.survive(survive)
    device.start(Ending.POWER_LOST if died else Ending.CLEAN)
    device.converge()
    return died


def every_change(root: Path, survive: Survive, kind: type[LossyDisk] = LossyDisk) -> int:
    """Die at each change of the story in turn; gives how many there were."""
    for change in count(1):
        folder = root / str(change)
        folder.mkdir()
        if not die_at(folder, change, survive, kind):
            return change - 1
    raise AssertionError


@pytest.mark.parametrize("survive", [nothing, everything], ids=["power", "kill"])
def test_it_survives_death_at_every_change(memory: Path, survive: Survive) -> None:
    assert every_change(memory, survive) >= 200


def test_it_survives_death_at_every_change_with_any_part_kept(memory: Path) -> None:
    assert every_change(memory, some(20261124)) >= 200


@pytest.mark.parametrize("kind", [ForgetfulDisk, NamelessDisk])
def test_without_syncing_the_same_check_fails(memory: Path, kind: type[LossyDisk]) -> None:
    with pytest.raises((AssertionError, StoreError)):
        every_change(memory, nothing, kind)


def test_a_verified_file_is_not_fetched_again_and_a_partial_one_goes_on(memory: Path) -> None:
    """R1, R7: a kill in the second file's download."""
    fetches: set[tuple[int, ...]] = set()
    for change in range(1, 60):
        folder = memory / str(change)
        folder.mkdir()
        device = Device(folder)
        try:
            device.start(Ending.CLEAN, change)
            device.play([order(V1, 1)])
        except PowerCutError:
            device.disk.survive(everything)
        whole = {p.name for p in (folder / "blobs").glob("sha256-*")}
        parts = {p.name: p.stat().st_size for p in (folder / "blobs" / "partial").glob("sha256-*")}
        agent = device.start(Ending.CRASHED)
        device.play([order(V1, 1)])
        for digest, offset in agent.fetched:
            name = digest.replace(":", "-")
            assert name not in whole
            assert offset == parts.get(name, 0)
        fetches.add(tuple(offset for _, offset in agent.fetched))
        assert agent.serving == V1.slot_id
    assert any(offset > 0 for offsets in fetches for offset in offsets)


ACTION = st.one_of(
    st.sampled_from([V1, V2, V3]),
    st.sampled_from([GOOD, SLOW]),
    st.tuples(st.integers(1, 60), st.integers(0, 3), st.sampled_from(Ending)),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ACTION, max_size=14))
def test_any_history_of_orders_verdicts_and_deaths(
    memory: Path, actions: list[DesiredModel | Commit | RollBack | tuple[int, int, Ending]]
) -> None:
    device = Device(Path(tempfile.mkdtemp(dir=memory)))
    device.start(Ending.CLEAN)
    generation = 0
    for what in actions:
        try:
            if isinstance(what, DesiredModel):
                generation += 1
                device.play([order(what, generation)])
            elif isinstance(what, Commit | RollBack):
                device.play([verdict(what)])
            else:
                after, seed, ending = what
                device.disk.die_at = device.disk.changes + after
                device.death = (seed, ending)
        except PowerCutError:
            seed, ending = device.death
            device.disk.survive((nothing, everything, some(1), some(2))[seed])
            # A first version that kills the agent again and again is given up: no I4 for it.
            crashed = ending is Ending.CRASHED and device.agent is not None
            if crashed and device.agent is not None and device.agent.state.previous is None:
                ending = Ending.POWER_LOST
            device.start(ending)
    device.disk.die_at = 0
    device.converge()


def test_starts_are_counted_through_power_cuts(tmp_path: Path) -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    last = 0
    for change in [*range(1, 12)] * 2:
        disk = LossyDisk(tmp_path, change)
        try:
            boot = start(tmp_path, now, "kernel-1", disk)
        except PowerCutError:
            disk.survive(some(change))
            continue
        assert boot.counter > last
        last = boot.counter
    assert last > 5
