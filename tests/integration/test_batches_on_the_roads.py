"""What waits on a road is inferred together, answered one by one, and left by who gives up."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from agent.domain.batching import Curve
from agent.domain.tensor import Tensor
from agent.runtime.backend import Backend, Options
from agent.runtime.registry import open_backend
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.http_api import PATH, HttpApi, Wire, json_body, request
from tests.support.serving import scaled, tensor
from tests.support.wait import wait_for

WAIT_S = 30.0


class Held:
    """ONNX Runtime whose runs wait until they may; `rows` are those of each of them."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.rows: list[int] = []
        self.fails_at: int | None = None

    def open(self, runtime: str, path: str, options: Options) -> Backend:
        backend = open_backend(runtime, path, options)
        run = backend.run

        def held(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            self.rows.append(inputs["x"].shape[0])
            assert self.go.wait(WAIT_S)
            if inputs["x"].shape[0] == self.fails_at:
                raise ValueError("not so many")
            return run(inputs)

        backend.run = held  # type: ignore[method-assign]
        return backend


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def api(tmp_path: Path, held: Held) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path, open_backend=held.open)
    held.go.set()
    made.bench.serve("1.0.0", {"heavy": scaled(2.0)})
    served = made.bench.host._served("photo")
    assert served.active is not None
    batches = served.active.current.batches
    batches.curve = Curve(0.001, ((2, 0.001), (4, 0.001)))
    batches.proof.wanted = 0
    held.go.clear()
    held.rows.clear()
    yield made
    held.go.set()
    made.close()


class GrpcRoad:
    """Requests over one channel."""

    def __init__(self, api: HttpApi, stack: ExitStack) -> None:
        channel = stack.enter_context(grpc.insecure_channel(api.grpc_address))
        self._stub = pb_grpc.GRPCInferenceServiceStub(channel)

    def ask(self, first: float, timeout_s: float | None = None) -> Any:
        asked = pb.ModelInferRequest(model_name="photo")
        asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        asked.raw_input_contents.append(bytes(tensor(first, 1.0, 1.0, 1.0).data))
        return self._stub.ModelInfer.future(asked, timeout=timeout_s)

    def answer(self, call: Any) -> float:
        return float(np.frombuffer(call.result(WAIT_S).raw_output_contents[0], "f4")[0])

    def give_up(self, call: Any) -> None:
        call.cancel()


class HttpRoad:
    """Requests over a connection each."""

    def __init__(self, api: HttpApi, stack: ExitStack) -> None:
        self._api, self._stack = api, stack

    def ask(self, first: float) -> Wire:
        wire = self._stack.enter_context(self._api.wire())
        wire.send(request("POST", PATH, json_body(data=[first, 1, 1, 1])))
        return wire

    def answer(self, wire: Wire) -> float:
        return float(wire.reply().json["outputs"][0]["data"][0])

    def give_up(self, wire: Wire) -> None:
        wire.close()


Road = GrpcRoad | HttpRoad


@pytest.fixture(params=[GrpcRoad, HttpRoad])
def road(api: HttpApi, request: pytest.FixtureRequest) -> Iterator[Road]:
    with ExitStack() as stack:
        kind: Callable[[HttpApi, ExitStack], Road] = request.param
        yield kind(api, stack)


def begin(api: HttpApi, road: Any, held: Held, count: int) -> list[Any]:
    """One request that is inside the runtime, and `count` that wait for it."""
    asked = [road.ask(0.0)]
    wait_for(lambda: held.rows, WAIT_S, "the first one to run")
    for number in range(count):
        asked.append(road.ask(float(number + 1)))
        wait_for(lambda at=number: waiting(api) > at, WAIT_S, "it to wait")  # type: ignore[misc]
    return asked


def waiting(api: HttpApi) -> int:
    return api.bench.host.queues()["photo"][0]


def test_what_waits_is_inferred_together(api: HttpApi, road: Any, held: Held) -> None:
    asked = begin(api, road, held, 7)
    held.go.set()
    assert [road.answer(one) for one in asked] == [2.0 * number for number in range(8)]
    assert held.rows == [1, 4, 2, 1]
    (statistics,) = api.grpc.desk.statistics("photo")
    assert (statistics.success, statistics.inferences, statistics.executions) == (8, 8, 4)
    assert api.grpc.desk.ledger.outcomes() == {("photo", "ok"): 8}


def test_who_gives_up_is_not_inferred(api: HttpApi, road: Any, held: Held) -> None:
    asked = begin(api, road, held, 5)
    for at in (2, 4):
        road.give_up(asked.pop(at if at == 2 else 3))
    wait_for(lambda: waiting_tickets(api) == 3, WAIT_S, "the agent to see it")
    held.go.set()
    assert [road.answer(one) for one in asked] == [0.0, 2.0, 6.0, 10.0]
    assert sum(held.rows) == 4


def waiting_tickets(api: HttpApi) -> int:
    """How many of those who wait in lanes are wanted."""
    roads: list[Any] = [api.grpc._infer, api.server._infer]
    lanes = [one._lanes for one in roads]
    return sum(
        not item.ticket.gone
        for one in lanes
        for lane in one._lanes.values()
        for item in lane.waiting
    )


def test_a_batch_that_fails_is_asked_one_by_one(api: HttpApi, road: Any, held: Held) -> None:
    asked = begin(api, road, held, 4)
    held.fails_at = 4
    held.go.set()
    assert [road.answer(one) for one in asked] == [2.0 * number for number in range(5)]
    assert held.rows == [1, 4, 1, 1, 1, 1]
    (window,) = api.bench.host.take_windows()
    assert (window.service.count, window.errors) == (5, 0)


def test_a_deadline_keeps_a_batch_small(api: HttpApi, held: Held) -> None:
    served = api.bench.host._served("photo")
    assert served.active is not None
    # A batch of four would take longer than the second of them has.
    served.active.current.batches.curve = Curve(0.001, ((2, 0.001), (4, 1000.0)))
    with ExitStack() as stack:
        road = GrpcRoad(api, stack)
        asked = begin(api, road, held, 1)
        asked.append(road.ask(2.0, timeout_s=100.0))
        asked += [road.ask(3.0), road.ask(4.0)]
        wait_for(lambda: waiting(api) == 4, WAIT_S, "all to wait")
        held.go.set()
        assert [road.answer(one) for one in asked] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert held.rows == [1, 2, 2]
