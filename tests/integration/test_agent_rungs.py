"""The ladder on real agents: a remote rung while its link is good, a lighter one under load."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from controller.services.events import EventView
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.serving import make_release, products_for, scaled, slow
from tests.support.wait import wait_for

PROBATION = {"min_inferences": 5, "min_s": 0.1, "max_s": 600}
LADDER = {
    "p95_budget_ms": 5000, "p95_recover_pct": 70, "queue_age_ms": 5000,
    "temperature_down_c": 200, "temperature_up_c": 200, "memory_down_pct": 100,
    "memory_up_pct": 100, "cpu_down_pct": 1000, "cpu_up_pct": 1000, "link_down_ms": 400,
    "link_up_ms": 300, "link_loss_pct": 40, "dwell_down_s": 0.5, "dwell_up_s": 1, "window_s": 5,
}  # fmt: skip


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path / "controller", presence_grace_s=1.0) as world:
        yield world


def started(controller: ControllerWorld, root: Path, device_id: str, end: ExitStack,
            **settings: str) -> AgentProcess:  # fmt: skip
    agent = AgentProcess(root / device_id, device_id, **settings)
    done = agent.enrol(controller.url, controller.token())
    assert done.returncode == 0, done.stderr
    end.callback(agent.stop)
    return agent.start()


def answer(agent: AgentProcess) -> float | None:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


def changes(controller: ControllerWorld, device_id: str) -> list[tuple[str, str, str]]:
    def told(event: EventView) -> tuple[str, str, str]:
        return tuple(str(event.details[key]) for key in ("from", "to", "cause"))  # type: ignore[return-value]

    return [told(e) for e in controller.events(device_id, "rung_changed")]


def test_a_remote_rung_answers_while_its_link_is_good(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    with ExitStack() as end:
        edge = started(controller, tmp_path, "edge-1", end, LIGHTERMAN_SERVE_GRPC=free_address())
        data = scaled(7.0)
        release = make_release("1.0.0", {"heavy": data}, probation=PROBATION, ladder=LADDER)
        controller.publish("edge-1", release, "r-1", [data])
        wait_for(lambda: answer(edge) == 7.0, 30, f"the edge to answer\n{edge.tail()}")
        device = started(controller, tmp_path, "dev-1", end)
        facts = edge.facts()
        assert facts is not None
        endpoint = f"grpc://{facts.listen_grpc}"
        local = scaled(2.0)
        release = make_release(
            "1.0.0", {"heavy": local}, remote=endpoint, probation=PROBATION, ladder=LADDER
        )
        controller.publish("dev-1", release, "r-2", [local])
        wait_for(lambda: answer(device) == 2.0, 30, f"the local rung first\n{device.tail()}")
        with Client(device) as client:
            wait_for(lambda: answer(device) == 7.0, 30, f"the remote rung\n{device.tail()}")
            edge.kill()
            wait_for(lambda: answer(device) == 2.0, 30, f"the local rung again\n{device.tail()}")
            wait_for(lambda: len(changes(controller, "dev-1")) == 2, 20, "the events")
            edge.start()
            wait_for(lambda: answer(device) == 7.0, 30, f"the remote rung again\n{device.tail()}")
        assert client.failures == []
        assert changes(controller, "dev-1")[:2] == [
            ("heavy", "edge", "recovered"),
            ("edge", "heavy", "network"),
        ]


def test_an_edge_server_with_another_version_is_not_used_and_that_is_told(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    def bring(device_id: str, version: str, data: bytes, remote: str | None = None) -> None:
        release = make_release(
            version, {"heavy": data}, remote=remote, probation=PROBATION, ladder=LADDER
        )
        controller.publish(device_id, release, f"r-{device_id}-{version}", [data])

    def why() -> str:
        facts = device.facts()
        return str(facts.models[0]["rung_reason"]) if facts and facts.models else ""

    with ExitStack() as end:
        edge = started(controller, tmp_path, "edge-1", end, LIGHTERMAN_SERVE_GRPC=free_address())
        bring("edge-1", "1.0.0", scaled(7.0))
        wait_for(lambda: answer(edge) == 7.0, 30, f"the edge to answer\n{edge.tail()}")
        facts = edge.facts()
        assert facts is not None
        address = facts.listen_grpc
        device = started(controller, tmp_path, "dev-1", end)
        bring("dev-1", "1.1.0", scaled(2.0), remote=f"grpc://{address}")
        wait_for(lambda: answer(device) == 2.0, 30, f"the local rung\n{device.tail()}")
        with Client(device) as client:
            told = f"edge is not used: {address} serves photo:1.0.0, not 1.1.0"
            wait_for(lambda: told in why(), 20, "the reason")
            bring("edge-1", "1.1.0", scaled(8.0))
            wait_for(lambda: answer(edge) == 8.0, 30, f"the edge to follow\n{edge.tail()}")
            wait_for(lambda: answer(device) == 8.0, 30, f"the remote rung\n{device.tail()}")
            bring("edge-1", "1.2.0", scaled(9.0))
            wait_for(lambda: answer(edge) == 9.0, 30, f"the edge to go on\n{edge.tail()}")
            wait_for(lambda: answer(device) == 2.0, 30, f"the local rung again\n{device.tail()}")
            told = f"{address} serves photo:1.2.0, not 1.1.0"
            wait_for(lambda: told in why(), 20, "the reason")
        assert client.failures == []
        # 7 and 9 are the edge server's other versions: never told as 1.1.0.
        assert set(client.answers) == {2.0, 8.0}


def free_address() -> str:
    from examples.fleet.ports import free_port

    return f"127.0.0.1:{free_port()}"


def test_requests_that_wait_step_down_and_calm_steps_up(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    heavy, light = slow(2.0, products_for(0.05)), scaled(2.5)
    ladder = {**LADDER, "queue_age_ms": 150}
    release = make_release(
        "1.0.0", {"heavy": heavy, "light": light}, probation=PROBATION, ladder=ladder,
        slow_threshold_ms=5000,
    )  # fmt: skip
    with ExitStack() as end:
        device = started(controller, tmp_path, "dev-1", end)
        generation = controller.publish("dev-1", release, "r-1", [heavy, light])
        wait_for(lambda: answer(device) == 2.0, 30, f"an answer\n{device.tail()}")
        with Client(device, 0.1) as calm:
            wait_for(
                lambda: controller.device("dev-1").applied_generation == generation, 30, "commit"
            )
            with ExitStack() as crowd:
                clients = [crowd.enter_context(Client(device, 0.0)) for _ in range(12)]
                wait_for(lambda: changes(controller, "dev-1"), 30, f"the step\n{device.tail()}")
            wait_for(lambda: len(changes(controller, "dev-1")) == 2, 30, "the way up")
        assert [c.failures for c in (calm, *clients)] == [[]] * 13
        assert changes(controller, "dev-1") == [
            ("heavy", "light", "load"),
            ("light", "heavy", "recovered"),
        ]
