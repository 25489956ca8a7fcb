"""Plays seeds: one world each, its story where an invariant broke, the smallest world that does.

A seed gives the same run on every machine where PYTHONHASHSEED is the same; `make sim` sets it.
"""

import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from agent.errors import AgentError
from controller.errors import LightermanError
from controller.store.objects import ObjectRow, put_object
from controller.store.projects import ensure_project
from controller.store.session import make_engine
from controller.trust.signing import Signer
from tests.simulation.rollout_world import POLICY, START, KilledError, make_template
from tests.simulation.sim_world import Faults, SimWorld
from tests.support.stores import PROJECT

STORY_LINES = 20
SHRINKS = 24  # worlds that are tried for a smaller one
MEMORY = Path("/dev/shm")
ALL = Faults()


@dataclass(frozen=True, slots=True)
class Found:
    """What one seed showed; `broken` is empty where all held."""

    seed: int
    broken: str
    story: tuple[str, ...] = ()
    faults: Faults = ALL
    rollouts: int = 0

    def text(self) -> str:
        """The story of a failing seed in at most 20 lines, the newest ones."""
        head = f"seed {self.seed}: {self.broken}"
        foot = f"smallest: {self.faults.text()}; play it again: make sim SEED={self.seed}"
        room = STORY_LINES - 2
        lines = self.story if len(self.story) <= room else ("...", *self.story[1 - room :])
        return "\n".join([head, *(f"  {line}" for line in lines), foot])


class Stage:
    """A folder, in memory where there is one, with a migrated database to copy."""

    def __init__(self, place: Path | None = None) -> None:
        place = place or (MEMORY if MEMORY.is_dir() else None)
        self.folder = Path(tempfile.mkdtemp(prefix="lighterman-sim-", dir=place))
        self.template = make_template(self.folder)
        self.signer = Signer.create()
        self.path = self.folder / "world.db"
        self.engine = make_engine(f"sqlite:///{self.path}")  # compiles each statement only once

    def close(self) -> None:
        """Nothing is left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def play(self, seed: int, faults: Faults = ALL) -> Found:
        """One run from beginning to rest."""
        for old in self.folder.glob("world.db*"):
            old.unlink()
        shutil.copy(self.template, self.path)
        random = Random(seed)
        world = SimWorld(self.path, self.signer, random=random, faults=faults, engine=self.engine)
        with closing(world):
            try:
                _run(world)
            except (AssertionError, LightermanError, AgentError) as error:
                broken = str(error).splitlines()[0] or type(error).__name__
                return Found(seed, broken, tuple(world.story), faults, len(world.seen_phases))
            except KilledError:
                return Found(seed, "a kill was not caught", tuple(world.story), faults)
        return Found(seed, "", (), faults, len(world.seen_phases))

    def shrink(self, found: Found) -> Found:
        """The same seed in the smallest world that is found in which it still fails."""
        tried, again = 0, True
        while again:
            again = False
            for simpler in found.faults.simpler():
                tried += 1
                if tried > SHRINKS:
                    return found
                smaller = self.play(found.seed, simpler)
                if smaller.broken:
                    found, again = smaller, True
                    break
        return found


def _run(world: SimWorld) -> None:
    with world.store.write() as conn:
        ensure_project(conn, PROJECT, START)
        put_object(conn, PROJECT, ObjectRow("Policy", "default", POLICY, True, START, "shipped"))
    for version in ("1.0.0", "1.1.0"):
        world.add_version(version)
    world.populate()
    world.calm = True
    world.begin("1.0.0", waves=["100%"], override_first_wave_reason="new", soak_s=0.0)
    for _ in range(10):
        world.turn()
    world.calm = False
    world.begin(world.random.choice(sorted(world.hows)))
    for _ in range(world.faults.steps):
        world.turn()
    world.settle()
