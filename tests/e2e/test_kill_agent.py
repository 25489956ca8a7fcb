"""kill -9 of an agent at random points of an update: it always serves, and always converges."""

import os
import random
import secrets

import grpc
import pytest

from examples.fleet.clock import monotonic, wait_until
from examples.fleet.processes import ChildError
from lighterman.oip import inference_pb2, inference_pb2_grpc
from tests.support import e2e_models as models
from tests.support.e2e_invariants import check_invariants, slots_of
from tests.support.e2e_jobs import open_cameras_on
from tests.support.e2e_world import TERMINAL, TWO_WAVES, Fleet, say

MODEL = "wide"
DEVICE = "n100-2"
ROUNDS = 5
LATEST_S = 3.0  # an update takes about two, and a second of probation


@pytest.fixture(scope="module")
def wide_versions(started: Fleet, first: object) -> list[str]:
    """Three versions of other bytes, the first of them brought to the device."""
    assert started.shape is not None
    versions = []
    for seed in (1, 2, 3):
        version = started.push_onnx(MODEL, models.wide(started.shape, seed))
        started.build_fp32(MODEL, version)
        versions.append(version)
    rollout = started.begin(MODEL, versions[0], to=f"device={DEVICE}")
    open_cameras_on(started, rollout, MODEL, [DEVICE])
    started.watch(rollout, 0)
    return versions


def first_answer(fleet: Fleet, timeout_s: float) -> tuple[str, float]:
    """The version that answers first after a start, and how long that took."""
    began = monotonic()
    picture = fleet.pictures()[0]
    request = inference_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name=picture.name, datatype="FP32", shape=picture.shape)
    request.raw_input_contents.append(picture.data)

    def answer() -> str:
        fleet.agents[DEVICE].check()
        with grpc.insecure_channel(fleet.agents[DEVICE].endpoint) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                said = stub.ModelInfer(request, timeout=5)
            except grpc.RpcError as error:
                # Before it listens, nothing; once it listens, an answer (I4).
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise ChildError(f"I4: {error.code()}: {error.details()}") from error
                return ""
        return str(said.parameters["lighterman_version"].string_param)

    version = wait_until(answer, timeout_s, f"I4: {MODEL} to answer after a restart")
    return version, monotonic() - began


@pytest.mark.slow
def test_a_killed_agent_serves_at_once_and_converges(
    fleet: Fleet, wide_versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("E2E_SEED", secrets.randbelow(10**6)))
    chance = random.Random(seed)
    agent = fleet.agents[DEVICE]
    for number in range(ROUNDS):
        point = chance.uniform(0, LATEST_S)
        before = fleet.runs(DEVICE, MODEL)[0]
        version = wide_versions[(wide_versions.index(before) + 1) % len(wide_versions)]
        # A kill in probation may have made the device leave this version in a round before.
        again = ("--override", "rolled-back", "--reason", "another round")
        rollout = fleet.begin(MODEL, version, to=f"device={DEVICE}", waves=(*TWO_WAVES, *again))
        until = monotonic() + point
        wait_until(lambda until=until: monotonic() >= until, 10, "the kill", every_s=0.02)  # type: ignore[misc]
        agent.kill()
        current = slots_of(fleet, DEVICE)[MODEL][0]
        agent.start()
        served, took_s = first_answer(fleet, 30)
        assert current is not None
        assert served in (before, version), f"I4: {served}, not {before} or {version}"
        fleet.open_camera(DEVICE, MODEL)
        fleet.ctl.run("rollout", "watch", rollout, "--timeout", "90s", expect=(0, 3))
        shown = fleet.show(rollout)
        assert shown["phase"] in TERMINAL, shown
        wanted = version if shown["phase"] == "SUCCEEDED" else before
        fleet.wait_running(wanted, DEVICE, model=MODEL)
        say(
            capsys,
            f"E2E_SEED={seed} round {number}: {before} to {version}, killed after {point:.2f} s;"
            f" {served} answered {took_s:.1f} s after the start; {shown['phase']}",
        )
    fleet.open_camera(DEVICE)
    fleet.wait_running(fleet.runs("gate-1")[0], DEVICE)
    check_invariants(fleet)
