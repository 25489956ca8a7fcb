"""A controller's services over a real SQLite file, and simulated devices that report through them.

Time is virtual. A kill is an exception in the middle of a transaction, or a new process's `Deps`
over the same file. Invariants are checked after every tick, so every test that uses the world
checks all of them.
"""

import base64
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast

from controller.blobs.blobs import Blobs
from controller.domain.histogram import histogram_of
from controller.domain.rollout import TERMINAL, AssignmentState, Phase, Verdict
from controller.services.context import Ctx, Deps
from controller.services.decisions import decisions_of
from controller.services.reports import DeviceEnvelope, ReportBody, accept_reports
from controller.services.samples import SampleWindow
from controller.services.tick import tick
from controller.store import devices, objects, rollouts
from controller.store.builds import GateKey, GateRow, add_build, put_gate, set_compiled
from controller.store.desired import get_desired
from controller.store.objects import ObjectRow
from controller.store.projects import ensure_project
from controller.store.samples import SampleRow, add_samples
from controller.store.session import Store, migrate
from controller.trust.signing import Signature, Signer, verify
from tests.simulation.books import BookedRollout, BookedWave, Books
from tests.support.stores import PROJECT, build_row, digest, seed_device, seed_version

A = AssignmentState
START = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
MODEL = "digits"
PROFILE = "pi"
POLICY = {
    "model": MODEL,
    "slow_threshold_ms": 100,
    "probation": {"min_inferences": 5, "min_s": 0, "max_s": 60},
}


class KilledError(Exception):
    """The controller died here."""


class FragileSigner:
    """Signs like the real one, and dies at the chosen signature."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self.dies_in = -1

    def sign(self, data: bytes) -> tuple[Signature, ...]:
        """Real signatures, until it is time to die."""
        if self.dies_in == 0:
            self.dies_in = -1
            raise KilledError
        self.dies_in -= self.dies_in > 0
        return self.signer.sign(data)


class CountingIds:
    """Ids in sequence."""

    def __init__(self) -> None:
        self.last = 0

    def new(self, prefix: str) -> str:
        """The next id."""
        self.last += 1
        return f"{prefix}-{self.last:06d}"


@dataclass
class SimDevice:
    """A device as the controller sees it: takes the signed manifest, reports step by step."""

    device_id: str
    latency_s: float = 0.020
    seen: int = 0
    applied: int = 0
    order: dict[str, Any] | None = None
    state: AssignmentState | None = None
    serving: dict[str, Any] | None = None
    committed: dict[str, Any] | None = None
    before: dict[str, Any] | None = None  # what was committed before that; still on its disk
    told: set[str] = field(default_factory=set)  # rollouts whose manifest was fetched
    bad: set[str] = field(default_factory=set)  # rollouts left
    silent: bool = False
    full: bool = False  # no room for what it is offered
    since: datetime | None = None  # of a leaky version
    seq: int = 0
    spool: list[DeviceEnvelope] = field(default_factory=list)


_LINE = (A.OFFERED, A.DOWNLOADING, A.VERIFIED, A.STAGED, A.ACTIVATED, A.PROBATION, A.COMMITTED)


@dataclass
class World:
    """The controller, its devices, the clock, and what was seen so far."""

    path: Path
    signer: Signer
    now: datetime = START
    bad_versions: Mapping[str, str] = field(default_factory=dict)  # version -> how it fails
    devices: dict[str, SimDevice] = field(default_factory=dict)
    ids: CountingIds = field(default_factory=CountingIds)
    kills: int = 0
    wakes: int = 0
    by_agenda: bool = False  # ticks look only at what has news, or is due
    seen_phases: dict[str, Phase] = field(default_factory=dict)
    seen_waves: dict[str, int] = field(default_factory=dict)
    broken: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.fragile = FragileSigner(self.signer)
        self.deps = self._new_deps()
        self.books = Books(self.path)

    def close(self) -> None:
        """Give back the database."""
        self.books.close()
        self.store.close()

    def _new_deps(self) -> Deps:
        self.store = self._open_store()
        return Deps(
            store=self.store,
            blobs=Blobs(self.path.parent / "blobs"),
            authority=cast(Any, None),
            signer=cast(Signer, self.fragile),
            samples=SampleWindow(),
        )

    def _open_store(self) -> Store:
        return Store.open(f"sqlite:///{self.path}")

    def ctx(self, actor: str = "ana") -> Ctx:
        """A call now."""
        return Ctx(self.now, self.ids, actor, PROJECT)

    def restart(self) -> None:
        """A new process over the same file."""
        self.kills += 1
        self.store.close()
        self.deps = self._new_deps()

    # -- setting up ----------------------------------------------------------------------------

    def add_device(self, device_id: str, **values: Any) -> SimDevice:
        """Enrol a device of the profile, online."""
        with self.store.write() as conn:
            seed_device(conn, device_id)
            devices.update_device(
                conn, device_id, profile=PROFILE, online=True, enrolled_at=self.now
            )
            reported = {"arch": "aarch64", "runtimes": {"onnxruntime": "1.32.0"}}
            devices.put_capabilities(conn, device_id, reported, self.now)
        self.devices[device_id] = SimDevice(device_id, **values)
        return self.devices[device_id]

    def add_version(
        self, version: str, signature: dict[str, object] | None = None, model: str = MODEL
    ) -> None:
        """Push a version whose builds passed."""
        with self.store.write() as conn:
            row = seed_version(conn, model, version, signature=signature)
            for variant in row.variants:
                build_id = f"b-{version}-{variant.variant}"
                add_build(conn, PROJECT, build_row(build_id, variant.digest), self.now)
                set_compiled(
                    conn,
                    build_id,
                    digest=digest(build_id),
                    length=1000,
                    media_type="application/onnx",
                    evidence={
                        "size_bytes": 1000,
                        "p50_ms": 10.0,
                        "p95_ms": 12.0,
                        "latency_n": 200,
                        "peak_rss_bytes": 50_000_000,
                    },
                    now=self.now,
                )
                key = GateKey(model, version, variant.variant, "onnxruntime-fp32", PROFILE)
                gate = GateRow(key, build_id, "PASSED", "", None, None, None, False, self.now)
                put_gate(conn, PROJECT, gate)

    def judge_variant(
        self, version: str, variant: str, verdict: str, reason: str, profile: str = PROFILE
    ) -> None:
        """What its gate says of a variant from now on."""
        with self.store.write() as conn:
            key = GateKey(MODEL, version, variant, "onnxruntime-fp32", profile)
            build_id = f"b-{version}-{variant}"
            gate = GateRow(key, build_id, verdict, reason, None, None, None, False, self.now)
            put_gate(conn, PROJECT, gate)

    def set_online(self, device_id: str, online: bool) -> None:
        """Presence."""
        with self.store.write() as conn:
            devices.update_device(conn, device_id, online=online)
        self.deps.agenda.note_all()

    def online(self, device_id: str) -> bool:
        """Presence as stored."""
        with self.store.read() as conn:
            row = devices.get_device(conn, device_id)
        return row is not None and row.online

    # -- running -------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of the controller; a kill inside leaves a new process over the same file."""
        try:
            tick(self.deps, self.ctx("controller"), everything=not self.by_agenda)
        except KilledError:
            self.restart()
        self.check()

    def run(self, random: Random, steps: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Let devices and controller go on in random order; whether `until` came true."""
        for _ in range(steps):
            self.now += timedelta(seconds=random.choice((0.2, 1.0, 2.0)))
            for device in random.sample(list(self.devices.values()), len(self.devices)):
                if random.random() < 0.7:
                    self.step_device(device, random)
            self.tick()
            if until():
                return True
        return False

    def phase(self, rollout_id: str) -> Phase:
        """Where a rollout stands."""
        return self.rollout(rollout_id).phase

    def rollout(self, rollout_id: str) -> rollouts.RolloutRow:
        """Its row."""
        with self.store.read() as conn:
            row = rollouts.get_rollout(conn, PROJECT, rollout_id)
        assert row is not None
        return row

    def is_over(self, rollout_id: str) -> Callable[[], bool]:
        """Whether it ended, to be asked later."""
        return lambda: self.phase(rollout_id) in TERMINAL

    # -- devices -------------------------------------------------------------------------------

    def step_device(self, device: SimDevice, random: Random) -> None:
        """Fetch, go one step on, infer, and say so (now and then twice, or later)."""
        if not self.online(device.device_id):
            return
        self._fetch(device)
        self._go_on(device)
        if device.serving is not None and not device.silent:
            self._sample(device, 5)
        if random.random() < 0.8:
            self._deliver(device, twice=random.random() < 0.2)

    def _fetch(self, device: SimDevice) -> None:
        with self.store.read() as conn:
            row = get_desired(conn, device.device_id)
        if row is None or row.generation == device.seen:
            return
        assert row.generation > device.seen, "the generation went down"
        key = self.signer.public_keys()[0].public_key
        assert verify(key, base64.b64decode(row.signatures[0]["signature"]), row.manifest)
        manifest = json.loads(row.manifest)
        assert (manifest["device"], manifest["generation"]) == (device.device_id, row.generation)
        device.seen = row.generation
        entry = next((one for one in manifest["models"] if one["model"] == MODEL), None)
        if entry is not None:
            device.told.add(entry["rollout"])
        if entry is not None and entry["rollout"] in device.bad:
            return
        device.order = entry
        back = device.before
        known = device.committed is not None and entry and _same(device.committed, entry)
        is_back = back is not None and entry and _same(back, entry, "rollout")
        device.state = None if entry is None or known or is_back else A.OFFERED
        if device.state is None:  # back on what it had, or on nothing
            self._obey(device, entry)
            device.serving = device.committed = entry
            device.before = None if is_back else back
            device.applied = device.seen
            self._report(device, A.COMMITTED, entry, applied=True)

    def _obey(self, device: SimDevice, entry: dict[str, Any] | None) -> None:
        """A version that answers and is not ordered any more is left, and the agent says so."""
        left = device.serving
        if entry is None or left is None or left["rollout"] == entry["rollout"]:
            return
        for state in (A.ROLLING_BACK, A.ROLLED_BACK):
            self._report(device, state, left, reason="the controller orders the previous version")

    def _go_on(self, device: SimDevice) -> None:
        if device.order is None or device.state is None:
            return
        how = self.bad_versions.get(device.order["version"], "")
        if how == "refuses to load" and device.state is A.STAGED:
            self._end(device, A.FAILED, "the runtime refused it")
            return
        if device.full and device.state is A.OFFERED:
            self._end(device, A.REFUSED, "needs 9 MB, 1 MB is free")
            return
        if device.state is A.PROBATION and how == "slow":
            self._roll_back(device)
            return
        if device.state is A.PROBATION and device.silent:
            starved: dict[str, Any] = {"inferences": 0, "starved": True}
            self._report(device, A.PROBATION, device.order, evidence=starved, reason="no traffic")
            return
        device.state = _LINE[_LINE.index(device.state) + 1]
        done = device.state is A.COMMITTED
        if device.state is A.ACTIVATED:
            device.serving = device.order
        if done:
            device.before, device.committed = device.committed, device.order
            device.applied = device.seen
        evidence = {"inferences": 10, "errors": 0} if done else None
        self._report(device, device.state, device.order, applied=done, evidence=evidence)
        if done:
            device.state = None

    def _end(self, device: SimDevice, state: A, reason: str) -> None:
        assert device.order is not None
        self._report(device, state, device.order, reason=reason)
        device.bad.add(device.order["rollout"])
        device.state = None

    def _roll_back(self, device: SimDevice) -> None:
        assert device.order is not None
        evidence = {
            "inferences": 5,
            "last_service_s": [0.131, 0.118, 0.124, 0.140, 0.122],
            "rolled_back_in_s": 0.2,
        }
        self._report(device, A.ROLLING_BACK, device.order, reason="5 in a row over 100 ms")
        device.bad.add(device.order["rollout"])
        device.serving = device.committed
        self._report(
            device, A.ROLLED_BACK, device.order, reason="5 in a row over 100 ms", evidence=evidence
        )
        device.state = None

    def _sample(self, device: SimDevice, count: int) -> None:
        assert device.serving is not None
        how = self.bad_versions.get(device.serving["version"])
        latency_s = {"sluggish": 0.160, "heavier": 0.030}.get(how or "", device.latency_s)
        if how == "leaky":  # 5 % a minute, on each device since it got it
            device.since = device.since or self.now
            latency_s *= 1.05 ** ((self.now - device.since).total_seconds() / 60)
        row = SampleRow(
            device_id=device.device_id,
            model=MODEL,
            version=device.serving["version"],
            rung="light" if how == "light" else "heavy",
            minute_at=self.now.replace(second=0, microsecond=0),
            build_digest="sha256:" + "0" * 64,
            histogram=histogram_of([latency_s] * count),
            errors=0,
            non_finite=0,
            last_at=self.now,
        )
        with self.store.write() as conn:
            add_samples(conn, [row])

    def _report(
        self,
        device: SimDevice,
        state: AssignmentState,
        entry: dict[str, Any] | None,
        *,
        applied: bool = False,
        evidence: dict[str, Any] | None = None,
        reason: str = "",
    ) -> None:
        device.seq += 1
        body = ReportBody(
            model=MODEL,
            version=entry["version"] if entry else "",
            rollout=entry["rollout"] if entry else "",
            generation=device.applied if applied else device.seen,
            state=state,
            reason=reason,
            serving_version=device.serving["version"] if device.serving else "",
            applied=applied,
            evidence=evidence,
        )
        device.spool.append(DeviceEnvelope("1-abc", device.seq, body))

    def _deliver(self, device: SimDevice, *, twice: bool) -> None:
        if not device.spool:
            return
        ctx = self.ctx(device.device_id)
        done = accept_reports(self.deps, ctx, device.device_id, device.spool)
        if twice:
            assert accept_reports(self.deps, ctx, device.device_id, device.spool).acks == done.acks
        acked = done.acks[0].seq
        device.spool = [one for one in device.spool if one.seq > acked]

    # -- invariants ----------------------------------------------------------------------------

    def check(self) -> list[BookedRollout]:
        """I5, I6, one open order per device and model, no wave skipped, what is over stays over."""
        found = self.books.read()
        for row in found:
            before = self.seen_phases.get(row.rollout_id, row.phase)
            assert before not in TERMINAL or before is row.phase, f"{before} became {row.phase}"
            self.seen_phases[row.rollout_id] = row.phase
            opened = [wave.is_open for wave in row.waves]
            assert opened == [n <= row.current_wave for n in range(1, len(opened) + 1)]
            last = self.seen_waves.get(row.rollout_id, 0)
            assert row.current_wave <= last + 1, "a wave was skipped"
            self.seen_waves[row.rollout_id] = row.current_wave
            for wave in row.waves[: max(0, row.current_wave - 1)]:
                assert wave.verdict is Verdict.PASSED, f"wave {wave.number} was left unproven"
            for wave in row.waves:
                self._check_decisions(wave)
            told = {d.device_id for d in self.devices.values() if row.rollout_id in d.told}
            exposed = len(row.exposed | told)
            assert exposed <= row.cap, f"exposed {exposed} of at most {row.cap}"
        return found

    def _check_decisions(self, wave: BookedWave) -> None:
        """A stored decision, made again, comes out the same."""
        for one in wave.read().get("decisions") or ():
            if self.books.is_new(json.dumps(one, sort_keys=True)):
                (decision,) = decisions_of({"decisions": [one]})
                assert decision.holds, f"{decision.verdict} became {decision.again()}"

    def check_settled(self) -> None:
        """I7: when all is over, what is desired is what runs."""
        for device in self.devices.values():
            with self.store.read() as conn:
                row = get_desired(conn, device.device_id)
            entry = row.models.get(MODEL) if row else None
            wanted = entry["version"] if entry else None
            runs = device.serving["version"] if device.serving else None
            assert wanted == runs, f"{device.device_id} should run {wanted}, runs {runs}"


def _same(one: Mapping[str, Any], other: Mapping[str, Any], *more: str) -> bool:
    return all(one[key] == other[key] for key in ("version", "ladder", *more))


@contextmanager
def new_world(template: Path, folder: Path, count: int, **values: Any) -> Iterator[World]:
    """A world of `count` devices with versions 1.0.0 and 1.1.0, over a copy of a migrated file."""
    path = folder / "store.db"
    shutil.copy(template, path)
    world = World(path, Signer.create(), **values)
    with world.store.write() as conn:
        ensure_project(conn, PROJECT, START)
        row = ObjectRow("Policy", "default", dict(POLICY), True, START, "shipped")
        objects.put_object(conn, PROJECT, row)
    for version in ("1.0.0", "1.1.0"):
        world.add_version(version)
    for number in range(count):
        world.add_device(f"pi-{number:02d}")
    try:
        yield world
    finally:
        world.close()


def make_template(folder: Path) -> Path:
    """A migrated, empty database to copy."""
    path = folder / "template.db"
    migrate(f"sqlite:///{path}")
    return path
