"""Plays seeds: one world each, its story where an invariant broke, the smallest world that does.

A seed gives the same run on every machine where PYTHONHASHSEED is the same; `make sim` sets it.
"""

import shutil
import tempfile
from contextlib import closing, nullcontext
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
from tests.simulation.sim_faults import Faults
from tests.simulation.sim_luck import begin
from tests.simulation.sim_planted import planted
from tests.simulation.sim_world import SimWorld
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
        self.bases: dict[tuple[int, int], tuple[Path, SimWorld]] = {}

    def close(self) -> None:
        """Nothing is left."""
        self.engine.dispose()
        shutil.rmtree(self.folder, ignore_errors=True)

    def play(self, seed: int, faults: Faults = ALL, bug: str = "") -> Found:
        """One run from beginning to rest, with a bug that was planted where one is named."""
        world, base = self.world(seed, faults.drawn(seed))
        with closing(world), planted(bug) if bug else nullcontext():
            broken = _told(world, base)
        return Found(
            seed, broken, tuple(world.story) if broken else (), world.faults, _rollouts(world)
        )

    def world(self, seed: int, faults: Faults) -> tuple[SimWorld, SimWorld]:
        """A new world, and the one at rest that it is to follow; the one before must be closed."""
        file, base = self._base(faults)
        self._put(file)
        world = SimWorld(
            self.path, self.signer, random=Random(seed), faults=faults, engine=self.engine
        )
        return world, base

    def _base(self, faults: Faults) -> tuple[Path, SimWorld]:
        """A fleet at rest that many seeds begin with; made once."""
        key = (faults.devices, faults.models)
        if key not in self.bases:
            self._put(self.template)
            world = SimWorld(
                self.path, self.signer, random=Random(0), faults=faults, engine=self.engine
            )
            with closing(world), world.store.write() as conn:
                ensure_project(conn, PROJECT, START)
                row = ObjectRow("Policy", "default", POLICY, True, START, "shipped")
                put_object(conn, PROJECT, row)
            world = SimWorld(
                self.path, self.signer, random=Random(0), faults=faults, engine=self.engine
            )
            with closing(world):
                world.populate()
            file = self.folder / f"base-{faults.devices}-{faults.models}.db"
            shutil.copy(self.path, file)
            self.bases[key] = (file, world)
        return self.bases[key]

    def _put(self, file: Path) -> None:
        for old in self.folder.glob("world.db*"):
            old.unlink()
        shutil.copy(file, self.path)

    def shrink(self, found: Found, bug: str = "") -> Found:
        """The same seed in the smallest world that is found in which it still fails."""
        tried, again = 0, True
        while again:
            again = False
            for simpler in found.faults.simpler():
                tried += 1
                if tried > SHRINKS:
                    return found
                smaller = self.play(found.seed, simpler, bug)
                if smaller.broken:
                    found, again = smaller, True
                    break
        return found


def _told(world: SimWorld, base: SimWorld) -> str:
    """What broke; empty where all held."""
    try:
        world.follow(base)
        begin(world, world.models[0], world.random.choice(world.versions[world.models[0]]))
        for _ in range(world.faults.steps):
            world.turn()
        world.settle()
    except (AssertionError, LightermanError, AgentError) as error:
        return str(error).splitlines()[0] or type(error).__name__
    except KilledError:
        return "a kill was not caught"
    return ""


def _rollouts(world: SimWorld) -> int:
    return len(world.seen_phases) - world.faults.models
