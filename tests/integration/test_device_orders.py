"""Real agents beside serving: one compile for all of a kind, and builds measured while it is idle.

Real OpenVINO on real agents against the real controller.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import pytest

from agent.link.authority import parse_endpoint
from agent.link.client import ControllerClient
from agent.link.errors import LinkError, LinkFault
from agent.link.renewal import credentials_of
from agent.store.identity import FileIdentityStore
from controller.domain.device import Capabilities
from controller.services.builds import start_build
from controller.services.engines import list_shared, set_role
from controller.services.jobs import claim_job, complete_job, put_output
from controller.services.tunings import Wish, get_tuning, start_tuning
from controller.store.engines import put_engine
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.catalogue import World, result_row, tiny_onnx
from tests.support.openvino_builds import container_of
from tests.support.releases import digest_of
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for

PROBATION = {"min_inferences": 1, "min_s": 0.1, "max_s": 60}
FACTORS = {"photo": 2.0, "tampered": 3.0, "swapped": 4.0}
LAB, FIELD = "lab-1", "field-1"


@dataclass(frozen=True, slots=True)
class Fleet:
    """A controller, a builder and a device of the field, on one kind of machine: this one."""

    controller: ControllerWorld
    agents: dict[str, AgentProcess]
    files: dict[str, bytes]

    def bring(self, device: str, *models: str) -> None:
        """Roll models out, and see them answer."""
        agent = self.agents[device]
        for model in models:
            data = self.files[model]
            found = make_release(
                "1.0.0", {"heavy": data}, model=model, runtime="openvino", probation=PROBATION
            )
            self.controller.publish(device, found, f"r-{device}-{model}", [data])
        for model in models:
            wait_for(
                lambda: answer(agent, model) == FACTORS[model], 60,  # noqa: B023
                f"{model} on {device}\n{agent.tail()}",
            )  # fmt: skip

    def compiled(self, device: str) -> set[bytes]:
        """What lies in the device's cache of compiled builds."""
        folder = self.agents[device].state_dir / "compiled"
        return {file.read_bytes() for file in folder.glob("*.blob")}

    def told(self, device: str, kind: str) -> list[str]:
        """Reasons of the device's events of a kind."""
        return [event.reason for event in self.controller.events(device, kind)]


def answer(agent: AgentProcess, model: str) -> float | None:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0, model=model)[0]
    except grpc.RpcError:
        return None


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("fleet")
    files = {name: container_of(scaled(factor), root) for name, factor in FACTORS.items()}
    with running_controller(root / "controller") as world:
        agents = {
            name: AgentProcess(root / name, name, LIGHTERMAN_TUNING_IDLE_S="0.5")
            for name in (LAB, FIELD)
        }
        try:
            for agent in agents.values():
                done = agent.enrol(world.url, world.token())
                assert done.returncode == 0, done.stderr
            set_role(world.deps, world.ctx(), LAB, "builder", granted=True)
            for agent in agents.values():
                agent.start()
            for name in agents:
                wait_for(lambda: world.device(name).online, 30, f"{name} online")  # noqa: B023
            yield Fleet(world, agents, files)
        finally:
            for agent in agents.values():
                if agent.process is not None:
                    agent.stop()


def test_one_compile_does_for_the_class_and_nothing_altered_is_loaded(fleet: Fleet) -> None:
    deps, ctx = fleet.controller.deps, fleet.controller.ctx()
    fleet.bring(LAB, *FACTORS)
    wait_for(lambda: len(list_shared(deps, ctx)) == 3, 30, "the engines to be given")
    shared = {row.build_digest: row for row in list_shared(deps, ctx)}
    assert {row.device_id for row in shared.values()} == {LAB}
    alike, tampered, swapped = (shared[digest_of(fleet.files[name])] for name in FACTORS)
    # The bytes are others on the controller's disk; the database names another build's engine.
    path = deps.blobs.local_path(tampered.digest)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with deps.store.write() as conn:
        wrong = {name: getattr(alike, name) for name in ("digest", "length", "statement")}
        put_engine(
            conn, "default", type(swapped)(**{**_fields(swapped), **wrong,
            "signatures": alike.signatures}),
        )  # fmt: skip
    fleet.bring(FIELD, *FACTORS)
    assert wait_for(lambda: fleet.told(FIELD, "engine_taken"), 20, "the engine to be told of")
    assert fleet.told(FIELD, "engine_taken") == [f"compiled by {LAB}"]
    refused = sorted(fleet.told(FIELD, "engine_refused"))
    assert len(refused) == 2
    assert refused[0].startswith("the engine is for another key: build")
    assert refused[1].startswith("the engine's bytes are not those that were signed")
    assert len(fleet.compiled(LAB) & fleet.compiled(FIELD)) >= 1
    assert len(fleet.compiled(FIELD)) == 3, "compiled for itself what was refused"
    assert {row.device_id for row in list_shared(deps, ctx)} == {LAB}, "and kept it for itself"


def _fields(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in type(row).__slots__}  # type: ignore[attr-defined]


def test_what_a_field_device_uploads_is_refused_over_the_wire(fleet: Fleet) -> None:
    deps, ctx = fleet.controller.deps, fleet.controller.ctx()
    before = list_shared(deps, ctx)
    key = json.dumps(before[0].key)
    with caller(fleet.agents[FIELD]) as field, pytest.raises(LinkError, match="no builder") as said:
        field.publish_engine(key, digest_of(b"evil"), b"evil", 10)
    assert said.value.fault is LinkFault.DENIED
    assert list_shared(deps, ctx) == before
    with caller(fleet.agents[LAB]) as lab:
        lab.publish_engine(key, digest_of(b"new"), b"new", 10)
    assert list_shared(deps, ctx) != before, "the same call of a builder is taken"


@contextmanager
def caller(agent: AgentProcess) -> Iterator[ControllerClient]:
    """Speaks with the agent's own certificate."""
    identity = FileIdentityStore(agent.state_dir / "identity").current()
    assert identity is not None
    client = ControllerClient(parse_endpoint(identity.grpc_endpoint), credentials_of(identity))
    try:
        yield client
    finally:
        client.close()


def is_settled(agent: AgentProcess) -> bool:
    """Whether nothing is on trial; asks what has to prove itself."""
    facts = agent.facts()
    assert facts is not None
    for model in facts.models:
        answer(agent, str(model["model"]))
    return all(model["phase"] == "COMMITTED" for model in facts.models)


def build_on(controller: ControllerWorld) -> Wish:
    """A version with one build that passed, made of a real file."""
    world = World(controller.deps, controller.ctx())
    world.push(variants=[("only", tiny_onnx(1))])
    profile = controller.device(LAB).profile or ""
    start_build(
        world.deps, world.ctx, model="digits", version="1.0.0", profiles=[profile],
        recipes=["onnxruntime-fp32"],
    )  # fmt: skip
    job = claim_job(world.deps, world.ctx, Capabilities(arch="x86_64"))
    assert job is not None
    (build,), data = job.spec["builds"], tiny_onnx(1)
    of = {"job_id": job.job_id, "lease": job.lease}
    put_output(world.deps, world.ctx, **of, digest=digest_of(data), length=len(data), chunks=[data])
    result = {"schema": 1, "host": {}, "builds": [result_row(build["build_id"], data)]}
    complete_job(world.deps, world.ctx, **of, ok=True, result_json=json.dumps(result))
    return Wish("digits", "1.0.0", profile, f"device={LAB}", soak_s=0.3, measure_s=0.3)


def test_a_build_is_measured_when_nobody_asks_and_not_before(fleet: Fleet) -> None:
    deps, ctx, lab = fleet.controller.deps, fleet.controller.ctx(), fleet.agents[LAB]
    if answer(lab, "photo") is None:
        fleet.bring(LAB, "photo")
    wait_for(lambda: is_settled(lab), 30, "every model to be proven")
    names = {"model": "digits", "version": "1.0.0", "profile": ""}
    with Client(lab, pause_s=0.1) as client:
        wish = build_on(fleet.controller)
        names["profile"] = wish.profile
        start_tuning(deps, ctx, wish)
        wait_for(lambda: fleet.told(LAB, "tuning_waits"), 30, f"it to wait\n{lab.tail()}")
        wait_for(lambda: len(client.answers) > 20, 30, "requests")
        (share,) = get_tuning(deps, ctx, **names).shares
        assert share.build_ids, "nothing is measured beside requests"
        assert "requests came" in share.note
    wait_for(lambda: get_tuning(deps, ctx, **names).state == "done", 60, f"a word\n{lab.tail()}")
    view = get_tuning(deps, ctx, **names)
    assert (view.on_device, view.proposed) != (False, ())
    (standing,) = view.standings
    assert standing.figures is not None
    assert standing.figures.devices == 1
    assert 0 < standing.figures.p50_ms <= standing.figures.p95_ms
    assert standing.figures.rss_bytes > 10**7
    assert not list((lab.state_dir / "tuning").glob("*"))
