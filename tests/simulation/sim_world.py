"""The world of the simulator: the real services over SQLite, agents in virtual time, bad luck.

A seed decides everything. What goes wrong is named in `Faults`, so that a failing seed can be
played with fewer of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from random import Random
from typing import Any, cast

from sqlalchemy import Engine

from agent.domain.events import Ending
from agent.link.trust import ManifestVerifier
from agent.sim.script import Script
from controller.domain.histogram import histogram_of
from controller.domain.rollout import OPEN, Intent, Phase, Verdict
from controller.errors import LightermanError
from controller.services.objects import NewObject, apply_objects
from controller.services.reports import accept_spools
from controller.services.rollouts import set_intent, start_rollout
from controller.store import assignments, devices, rollouts
from controller.store.desired import get_desired, list_desired
from controller.store.samples import SampleRow, add_samples
from controller.store.session import Connection, Store
from tests.simulation.books import BookedRollout
from tests.simulation.rollout_world import MODEL, POLICY, START, KilledError, World
from tests.simulation.sim_agent import SimAgent
from tests.support.stores import PROJECT

HOWS = ("", "", "slow", "crashes", "refuses", "errors", "heavier")
NEVER_GOOD = ("slow", "crashes", "refuses", "errors")  # a rollout of these must not succeed
SLOW_S, GOOD_S = 0.160, 0.020


@dataclass(frozen=True, slots=True)
class Faults:
    """What may go wrong, each of which can be left out."""

    devices: int = 6
    steps: int = 36
    kills: bool = True  # of the controller, within transactions and after them
    power: bool = True
    network: bool = True  # lost, late, repeated and shuffled messages; sites cut off
    disks: bool = True
    silence: bool = True
    people: bool = True  # who pause, resume, abort and roll back at random
    versions: int = 2

    def simpler(self) -> Iterator["Faults"]:
        """Each with one thing less."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value is True:
                yield self._with(**{one.name: False})
        if self.devices > 2:
            yield self._with(devices=self.devices // 2)
        if self.steps > 12:
            yield self._with(steps=self.steps // 2)
        if self.versions > 1:
            yield self._with(versions=1)

    def _with(self, **values: Any) -> "Faults":
        return Faults(**{one.name: getattr(self, one.name) for one in fields(self)} | values)

    def text(self) -> str:
        """What is left of them, for people."""
        on = [one.name for one in fields(self) if getattr(self, one.name) is True]
        return f"{self.devices} devices, {self.steps} steps, {', '.join(on) or 'no faults'}"


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
    faults: Faults = Faults()
    hows: dict[str, str] = field(default_factory=dict)
    agents: dict[str, SimAgent] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    cut_off: set[str] = field(default_factory=set)
    calm: bool = False
    engine: Engine | None = None  # of an earlier world over the same path: it knows the statements

    def _open_store(self) -> Store:
        return super()._open_store() if self.engine is None else Store(self.engine)

    def tell(self, text: str) -> None:
        """One line of the story."""
        self.story.append(f"{(self.now - START).total_seconds():7.1f} s  {text}")

    def restart(self) -> None:
        """A new process of the controller."""
        self.tell("the controller was killed and starts again")
        super().restart()

    def _new_deps(self) -> Any:
        deps = super()._new_deps()
        self.dying = DyingStore(self.store)
        return type(deps)(**{**_fields(deps), "store": cast(Any, self.dying)})

    # -- setting up --------------------------------------------------------------------------------

    def populate(self) -> None:
        """Devices with a past of 1.0.0, and versions that are good or bad in some way."""
        gate = {"slower_pct": 30, "stepped_down_pts": 30}
        policy = NewObject("Policy", "default", {**POLICY, "gate": gate})
        apply_objects(self.deps, self.ctx(), [policy])
        for number in range(1, self.faults.versions + 1):
            version = f"1.{number + 1}.0"
            self.hows[version] = self.random.choice(HOWS)
            self.add_version(version)
            self.tell(f"{version} is {self.hows[version] or 'good'}")
        keys = {one.key_id: one.public_key for one in self.signer.public_keys()}
        slow = next((version for version, how in self.hows.items() if how == "slow"), "")
        script = Script(bad_version=slow, load_s=0.3)
        for number in range(self.faults.devices):
            name = f"pi-{number:02d}"
            self.add_device(name)
            verifier = ManifestVerifier(keys, name, PROJECT)
            self.agents[name] = SimAgent(name, verifier, script, self.hows, self.tell)
        self.devices.clear()  # the base's own devices: these are agents

    # -- one step --------------------------------------------------------------------------------

    def turn(self) -> None:
        """Time passes; agents work; messages go both ways; the controller ticks."""
        self.now += timedelta(seconds=self.random.choice((1.0, 3.0, 8.0)))
        if not self.calm:
            self._bad_luck()
        now_s = (self.now - START).total_seconds()
        for agent in self.agents.values():
            agent.run_until(now_s)
        heard = [one for one in self.agents.values() if one.device_id not in self.cut_off]
        self._speak(heard)
        self.tick()
        self._listen(heard)

    def _bad_luck(self) -> None:
        random, faults = self.random, self.faults
        names = list(self.agents)
        if faults.kills and random.random() < 0.12:
            self.fragile.dies_in = random.randrange(3)
        if faults.kills and random.random() < 0.12:
            self.dying.dies_in = random.randrange(3)
        if faults.power and random.random() < 0.12:
            self.agents[random.choice(names)].die(Ending.POWER_LOST)
        if faults.network and random.random() < 0.15:
            site = set(random.sample(names, random.randrange(len(names))))
            self._cut(site if random.random() < 0.6 else set())
        if faults.disks and random.random() < 0.1:
            agent = self.agents[random.choice(names)]
            agent.disk_full = not agent.disk_full
            self.tell(f"{agent.device_id} disk {'full' if agent.disk_full else 'free'}")
        if faults.silence and random.random() < 0.1:
            self.silent = set(random.sample(names, random.randrange(len(names) + 1)))
            self.tell(f"silent: {', '.join(sorted(self.silent)) or 'nobody'}")
        if random.random() < 0.25:
            self._people()

    def _cut(self, site: set[str]) -> None:
        self.cut_off = site
        self.tell(f"cut off: {', '.join(sorted(site)) or 'nobody'}")
        with self.store.write() as conn:
            for name in self.agents:
                devices.update_device(conn, name, online=name not in site)

    def _people(self) -> None:
        """Somebody starts a rollout, or presses a button of one that runs."""
        random = self.random
        with self.store.read() as conn:
            running = sorted(
                one.rollout_id for one in rollouts.list_rollouts(conn, active_only=True)
            )
        with suppress(LightermanError, KilledError):
            if not running or random.random() < 0.3:
                self.begin(random.choice(["1.1.0", *self.hows]))
            elif self.faults.people:
                intent = random.choice([Intent.PAUSE, Intent.RUN, Intent.RUN, Intent.ABORT,
                                        Intent.ROLL_BACK])  # fmt: skip
                chosen = random.choice(running)
                self.tell(f"a person: {intent} {chosen}")
                set_intent(self.deps, self.ctx(), chosen, intent, "so")

    def begin(self, version: str, **more: object) -> None:
        """Start a rollout to everybody."""
        spec: dict[str, object] = {
            "model": MODEL,
            "version": version,
            "selector": "all",
            "waves": ["1", "50%", "100%"],
            "soak_s": 5.0,
            "min_samples": 12,
            "deadline_s": 90.0,
            "override_rolled_back_reason": "again",
        }
        view = start_rollout(self.deps, self.ctx(), spec | more, len(self.agents))
        self.tell(f"a person: started {view.rollout_id} of {version}")

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
        with suppress(KilledError), self.deps.store.write() as conn:
            add_samples(conn, list(self._telemetry(heard)))

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
            version = agent.serving
            if not version or agent.device_id in self.silent:
                continue
            how = self.hows.get(version, "")
            base_s = {"slow": SLOW_S, "heavier": 2 * GOOD_S}.get(how, GOOD_S)
            wrong = 2 if how == "errors" else 0
            yield SampleRow(
                device_id=agent.device_id,
                model=MODEL,
                version=version,
                rung="heavy",
                minute_at=self.now.replace(second=0, microsecond=0),
                build_digest="sha256:" + "0" * 64,
                histogram=histogram_of([base_s] * 10),
                errors=wrong,
                non_finite=0,
                last_at=self.now,
            )

    def _listen(self, heard: list[SimAgent]) -> None:
        """Each asks now and then for what is desired."""
        asking = [
            one for one in heard if self.calm or not self.faults.network
            or self.random.random() < 0.7
        ]  # fmt: skip
        with self.store.read() as conn:
            known = list_desired(conn, [one.device_id for one in asking])
            newer = [one for one in asking if known.get(one.device_id, (0,))[0] > one.disk.seen]
            for agent in newer:
                self._give(conn, agent)

    def _give(self, conn: Connection, agent: SimAgent) -> None:
        row = get_desired(conn, agent.device_id)
        assert row is not None
        assert row.generation > agent.disk.seen, f"{agent.device_id}: the generation went down"
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
                    assert told >= 12, f"wave {wave.number} passed on {told} samples"
        return found

    def settle(self) -> None:
        """The weather clears; all must come to rest, and where it should."""
        self.calm, self.silent = True, set()
        self.fragile.dies_in = self.dying.dies_in = -1
        self._cut(set())
        for agent in self.agents.values():
            agent.disk_full = False
        for number in range(100):
            self.turn()
            if number % 12 == 11:
                self._answer_holds()
            if self._is_quiet():
                break
        with self.store.read() as conn:
            late = [f"{one.rollout_id} {one.phase}: {one.phase_reason}"
                    for one in rollouts.list_rollouts(conn, active_only=True)]  # fmt: skip
            assert not late, f"never ended: {late}"
            known = list_desired(conn, self.agents)
            left = [one.device_id for one in assignments.list_assignments(conn, states=OPEN)]
        assert not left, f"orders stayed open on {left}"
        for agent in self.agents.values():
            _, models = known.get(agent.device_id, (0, {}))
            wanted = models[MODEL]["version"] if MODEL in models else ""
            assert not agent.disk.spool, f"{agent.device_id} was never heard out"
            assert wanted == agent.serving, (
                f"{agent.device_id} should run {wanted}, runs {agent.serving}"
            )

    def _is_quiet(self) -> bool:
        with self.store.read() as conn:
            if rollouts.list_rollouts(conn, active_only=True):
                return False
            known = list_desired(conn, self.agents)
        return all(
            agent.is_settled and known.get(agent.device_id, (0,))[0] == agent.disk.seen
            for agent in self.agents.values()
        )

    def _answer_holds(self) -> None:
        """A person takes back what waits for one."""
        with self.store.read() as conn:
            running = rollouts.list_rollouts(conn, active_only=True)
        for row in running:
            if row.phase in (Phase.PAUSED, Phase.PENDING) or row.intent is Intent.PAUSE:
                with suppress(LightermanError):
                    set_intent(self.deps, self.ctx(), row.rollout_id, Intent.ROLL_BACK, "enough")


def _fields(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}
