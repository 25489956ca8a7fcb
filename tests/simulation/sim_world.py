"""The world of the simulator: the real services over SQLite, agents in virtual time, bad luck.

A seed decides everything. What goes wrong is named in `Faults`, so that a failing seed can be
played with fewer of them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from random import Random
from typing import Any, cast

from sqlalchemy import Engine

from agent.link.trust import ManifestVerifier
from controller.domain.histogram import Histogram, histogram_of
from controller.domain.rollout import OPEN, Phase, Verdict
from controller.errors import LightermanError
from controller.services.objects import NewObject, apply_objects
from controller.services.reports import accept_spools
from controller.store import assignments
from controller.store.desired import get_desired, list_desired
from controller.store.labels import change_labels
from controller.store.samples import SampleRow, add_samples
from controller.store.session import Connection, Store
from tests.simulation.books import BookedRollout
from tests.simulation.rollout_world import POLICY, START, KilledError, World
from tests.simulation.sim_agent import SimAgent
from tests.simulation.sim_door import SimDoor
from tests.simulation.sim_faults import HOWS, MODELS, NEVER_GOOD, Faults
from tests.simulation.sim_luck import SITES, answer_holds, begin, cut, strike
from tests.simulation.sim_model import SimScript
from tests.support.stores import PROJECT

SLOW_S, GOOD_S = 0.160, 0.020
MIN_SAMPLES = 12
DIGEST = "sha256:" + "0" * 64
_STEPS_S = (1.0, 3.0, 8.0)
# Of the first model: 1.0.0 runs everywhere before the story begins; 1.1.0 is good as well.
_NUMBERS = tuple(f"{{}}.{number}.0" for number in range(4))


class DyingStore:
    """The store; where it is told so, the controller dies right after a commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dies_in = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """As the real one."""
        with self._store.write() as conn:
            yield conn
        if self.dies_in == 0:
            self.dies_in = -1
            raise KilledError
        self.dies_in -= self.dies_in > 0


@dataclass
class SimWorld(World):
    """A world whose devices are agents."""

    random: Random = field(default_factory=Random)
    faults: Faults = field(default_factory=Faults)
    hows: dict[str, str] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)  # that people may start
    agents: dict[str, SimAgent] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    door: SimDoor = field(default_factory=SimDoor)
    story: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    cut_off: set[str] = field(default_factory=set)
    calm: bool = False
    elapsed_s: float = 0.0
    skew_s: float = 0.0  # of the controller's clock
    day_s: float = 300.0
    steps_s: tuple[float, ...] = _STEPS_S
    engine: Engine | None = None  # of an earlier world over the same path: it knows the statements

    def _open_store(self) -> Store:
        return super()._open_store() if self.engine is None else Store(self.engine)

    def tell(self, text: str) -> None:
        """One line of the story."""
        self.story.append(f"{self.elapsed_s:7.1f} s  {text}")

    def restart(self) -> None:
        """A new process of the controller."""
        self.tell("the controller was killed and starts again")
        super().restart()
        self.door.connect()

    def _new_deps(self) -> Any:
        deps = super()._new_deps()
        self.dying = DyingStore(self.store)
        return type(deps)(**{**_fields(deps), "store": cast(Any, self.dying)})

    @property
    def models(self) -> list[str]:
        """What devices run."""
        return list(MODELS[: self.faults.models])

    # -- setting up --------------------------------------------------------------------------------

    def populate(self) -> None:
        """Devices that run the first version of each model, all well."""
        gate = {"slower_pct": 30, "stepped_down_pts": 30}
        policies = [
            NewObject("Policy", model, {**POLICY, "model": model, "gate": gate})
            for model in self.models
        ]
        for model in self.models:
            for version in versions_of(model):
                self.add_version(version, model=model)
        apply_objects(self.deps, self.ctx(), policies)
        keys = {one.key_id: one.public_key for one in self.signer.public_keys()}
        for number in range(self.faults.devices):
            name = f"pi-{number:02d}"
            self.add_device(name)
            self.sites[name] = SITES[number % len(SITES)]
            verifier = ManifestVerifier(keys, name, PROJECT)
            self.agents[name] = SimAgent(name, verifier, SimScript(), self.hows, self.tell)
        with self.store.write() as conn:
            for name, site in self.sites.items():
                change_labels(conn, name, {"site": site})
        self.devices.clear()  # the base's own devices: these are agents
        self.calm = True
        for model in self.models:
            begin(self, model, versions_of(model)[0], waves=["100%"], soak_s=0.0)
        for _ in range(40):
            self.turn()
            if self._is_quiet():
                return
        raise AssertionError("the fleet did not come to rest before the story began")

    def follow(self, base: "SimWorld") -> None:
        """Go on from where `base` came to rest, with versions that are good or bad in some way."""
        self.now, self.elapsed_s, self.sites = base.now, base.elapsed_s, dict(base.sites)
        self.ids.last = base.ids.last
        self.seen_phases, self.seen_waves = dict(base.seen_phases), dict(base.seen_waves)
        self.door.retained = dict(base.door.retained)
        self.day_s = self.random.choice((150.0, 300.0, 600.0))
        for model in self.models:
            named = versions_of(model)[1 : 2 + self.faults.versions]
            self.versions[model] = named
            for version in named[1:]:
                self.hows[version] = self.random.choice(HOWS)
                self.tell(f"{version} is {self.hows[version] or 'good'}")
        for name, agent in base.agents.items():
            chance = Random(f"{self.random.random()} {name}")
            self.agents[name] = agent.copy(SimScript(), self.hows, self.tell, chance)

    # -- one step --------------------------------------------------------------------------------

    def turn(self) -> None:
        """Time passes; agents work; messages go both ways; the controller ticks."""
        self.elapsed_s += self.random.choice(self.steps_s)
        if not self.calm:
            strike(self)
        self.now = START + timedelta(seconds=self.elapsed_s + self.skew_s)
        for agent in self.agents.values():
            agent.run_until(self.elapsed_s)
        heard = [one for one in self.agents.values() if one.device_id not in self.cut_off]
        self._speak(heard)
        self.tick()
        self._listen(heard)

    # -- messages --------------------------------------------------------------------------------

    def _speak(self, heard: list[SimAgent]) -> None:
        """Spools and telemetry go up; any of it may be lost, late, twice, or out of order."""
        rough = self.faults.network and not self.calm
        spools = {}
        for agent in heard:
            sent = list(agent.disk.spool)
            if rough and self.random.random() < 0.2:
                continue
            if rough and sent and self.random.random() < 0.2:
                sent = [*sent, *sent]
                self.random.shuffle(sent)
            if sent:
                spools[agent.device_id] = sent
        if spools:
            self._hand_over(spools, rough)
        rows = list(self._telemetry(heard))
        if rows:
            with suppress(KilledError), self.deps.store.write() as conn:
                add_samples(conn, rows)

    def _hand_over(self, spools: Mapping[str, Any], rough: bool) -> None:
        try:
            answers = accept_spools(self.deps, self.ctx("door"), spools)
        except KilledError:
            self.restart()
            return
        for name, answer in answers.items():
            assert not isinstance(answer, LightermanError), answer
            if rough and self.random.random() < 0.2:
                continue  # the acknowledgement is lost
            agent = self.agents[name]
            for ack in answer.acks:
                agent.disk.spool = [
                    one
                    for one in agent.disk.spool
                    if one.boot_id != ack.boot_id or one.seq > ack.seq
                ]

    def _telemetry(self, heard: Iterable[SimAgent]) -> Iterator[SampleRow]:
        for agent in heard:
            count = self._traffic(agent)
            for model in agent.models.values() if count else ():
                version = agent.serving(model.name)
                if not version:
                    continue
                how = self.hows.get(version, "")
                yield SampleRow(
                    device_id=agent.device_id,
                    model=model.name,
                    version=version,
                    rung=model.rung,
                    minute_at=self.now.replace(second=0, microsecond=0),
                    build_digest=DIGEST,
                    histogram=_answers(how, agent.hot, count),
                    errors=2 if how == "errors" else 0,
                    non_finite=0,
                    last_at=self.now,
                )

    def _traffic(self, agent: SimAgent) -> int:
        """Inferences since the last message: fewer at night, none where a camera is dead."""
        if agent.device_id in self.silent:
            return 0
        if self.calm or not self.faults.silence:
            return 10
        hour = SITES.index(self.sites[agent.device_id]) / len(SITES) + self.elapsed_s / self.day_s
        return max(0, round(8 + 8 * math.sin(2 * math.pi * hour)))

    def _listen(self, heard: list[SimAgent]) -> None:
        """Bells ring; who hears one fetches."""
        try:
            self.door.drain(self.deps)
        except KilledError:
            self.restart()
        sure = self.calm or not self.faults.network
        rung = self.door.retained
        asking = [
            one
            for one in heard
            if rung.get(one.device_id, 0) > one.disk.taken and (sure or self.random.random() < 0.7)
        ]
        if asking:
            with self.store.read() as conn:
                for agent in asking:
                    self._give(conn, agent)

    def _give(self, conn: Connection, agent: SimAgent) -> None:
        row = get_desired(conn, agent.device_id)
        assert row is not None
        assert row.generation >= agent.disk.seen, f"{agent.device_id}: the generation went down"
        agent.take(row.generation, row.manifest, cast(Any, row.signatures))

    # -- what must hold --------------------------------------------------------------------------

    def check(self) -> list[BookedRollout]:
        """After every step, beside what every world checks."""
        found = super().check()
        fetched = Counter(name for one in self.agents.values() for name in one.fetched)
        ran = {name for one in self.agents.values() for name in one.ran}
        for row in found:
            got = fetched[row.rollout_id]
            assert got <= row.cap, f"{row.rollout_id} reached {got} of at most {row.cap}"
            how = self.hows.get(row.version)
            if row.phase is Phase.SUCCEEDED and how in NEVER_GOOD:
                assert row.rollout_id not in ran, f"{row.version} ({how}) succeeded"
            if row.is_over:
                names = ", ".join(sorted(row.underway))
                assert not names, f"{row.rollout_id} is {row.phase}, and on its way to {names}"
            for wave in row.waves:
                if wave.verdict is Verdict.PASSED:
                    told = wave.read().get("samples", 0)
                    assert told >= MIN_SAMPLES, f"wave {wave.number} passed on {told} samples"
        for agent in self.agents.values():
            assert not agent.wrong, f"{agent.device_id} {agent.wrong[0]}"
        return found

    def settle(self) -> None:
        """The weather clears; all must come to rest, and where it should."""
        self.calm, self.silent = True, set()
        self.fragile.dies_in = self.dying.dies_in = -1
        cut(self, set())
        for agent in self.agents.values():
            agent.disk_full, agent.cut_in = False, -1
            if agent.hot or agent.sick:
                agent.weaken()
        for number in range(100):
            self.turn()
            if number % 12 == 11:
                answer_holds(self)
            if self._is_quiet():
                break
        late = [f"{one.rollout_id} {one.phase}: {one.reason}"
                for one in self.books.read() if not one.is_over]  # fmt: skip
        assert not late, f"never ended: {late}"
        with self.store.read() as conn:
            known = list_desired(conn, self.agents)
            left = [one.device_id for one in assignments.list_assignments(conn, states=OPEN)]
        assert not left, f"orders stayed open on {left}"
        for agent in self.agents.values():
            assert not agent.disk.spool, f"{agent.device_id} was never heard out"
            _, models = known.get(agent.device_id, (0, {}))
            for model in self.models:
                wanted = models[model]["version"] if model in models else ""
                runs = agent.serving(model)
                assert wanted == runs, f"{agent.device_id} should run {wanted}, runs {runs}"

    def _is_quiet(self) -> bool:
        if any(not one.is_over for one in self.books.read()):
            return False
        if not all(agent.is_settled for agent in self.agents.values()):
            return False
        with self.store.read() as conn:
            known = list_desired(conn, self.agents)
        return all(
            known.get(agent.device_id, (0,))[0] == agent.disk.taken
            for agent in self.agents.values()
        )


def versions_of(model: str) -> list[str]:
    """All its versions, the first of which runs everywhere when the story begins."""
    return [one.format(MODELS.index(model) + 1) for one in _NUMBERS]


def _answers(how: str, hot: bool, count: int) -> Histogram:
    slow_s = {"slow": SLOW_S, "slow later": SLOW_S, "heavier": 2 * GOOD_S}.get(how, GOOD_S)
    return histogram_of([slow_s * 1.5 if hot else slow_s] * count)


def _fields(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}
