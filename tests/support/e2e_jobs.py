"""The main job as a person does it, step by step, and what was seen on the way."""

from dataclasses import dataclass
from typing import Any

import grpc

from examples.fleet.clock import wait_until
from examples.fleet.ctl import Ran
from lighterman.oip import inference_pb2, inference_pb2_grpc
from tests.support.e2e_models import Shape
from tests.support.e2e_world import DIGITS, TERMINAL, WAVES, Fleet


@dataclass(frozen=True, slots=True)
class FirstJob:
    """What fleetctl printed at each step of the first rollout."""

    dataset: Any
    version: Any
    builds: list[Any]
    plan: Any
    plan_text: str
    wrong_count: Ran
    rollout: str
    watched: Ran
    shown: Any
    answering: dict[str, str]  # the version that answers, by device


def first_job(fleet: Fleet) -> FirstJob:
    """Push, build, plan, start and watch the first version of digits."""
    ref = f"{DIGITS}:1.0.0"
    dataset = fleet.ctl.json("admin", "dataset", "push", DIGITS, str(fleet.files / "digits.npz"))
    assert fleet.push_digits() == "1.0.0"
    version = fleet.ctl.json("model", "show", ref)
    fleet.shape = Shape.of(version["signature"])
    builds = fleet.build(DIGITS, "1.0.0")
    plan = fleet.ctl.json("rollout", "plan", ref, "--to", "all", *WAVES)
    plan_text = fleet.ctl.run("rollout", "plan", ref, "--to", "all", *WAVES).out
    wrong = fleet.ctl.run("rollout", "start", ref, "--to", "all", *WAVES, "--yes=3", expect=(1, 2))
    rollout = fleet.begin(DIGITS, "1.0.0", waves=WAVES)
    open_cameras(fleet, rollout)
    watched = fleet.ctl.run("rollout", "watch", rollout, "--timeout", "300s", expect=(0, 3))
    shown = fleet.show(rollout)
    answering = {name: fleet.runs(name)[0] for name in fleet.agents}
    return FirstJob(
        dataset, version, builds, plan, plan_text, wrong, rollout, watched, shown, answering
    )


def open_cameras(fleet: Fleet, rollout: str) -> None:
    """A camera on each device as soon as digits answer there."""
    open_cameras_on(fleet, rollout, DIGITS, list(fleet.agents))


def open_cameras_on(fleet: Fleet, rollout: str, model: str, devices: list[str]) -> None:
    """The same for some devices and another model."""

    def all_open() -> bool:
        waiting = [name for name in devices if (name, model) not in fleet.cameras]
        for name in waiting:
            if model_ready(fleet.agents[name].endpoint, model):
                fleet.open_camera(name, model)
        return not waiting or fleet.show(rollout)["phase"] in TERMINAL

    wait_until(all_open, 300, f"{rollout} to reach every device", every_s=0.3)


def model_ready(endpoint: str, model: str) -> bool:
    """Whether the model answers requests there."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return bool(
                stub.ModelReady(inference_pb2.ModelReadyRequest(name=model), timeout=5).ready
            )
        except grpc.RpcError:
            return False
