"""Batches of what waits: the same answers as alone, and only where rows are independent."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from agent.domain.batching import Curve
from agent.domain.ports import InferResult, Request
from agent.domain.probation import RollBack, Trial, begin
from agent.domain.tensor import DType, Signature, Tensor, TensorSpec
from agent.errors import InferenceError, RequestError
from agent.runtime import joining
from agent.runtime.joining import Batches
from agent.runtime.onnxruntime import load
from tests.support.serving import (
    Bench,
    ScriptedClock,
    ScriptedRuntime,
    _model,
    crashing,
    make_release,
    scaled,
    slow,
    tensor,
    values,
)  # fmt: skip

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, ("batch", 4)),), (TensorSpec("y", DType.FP32, ("batch", 4)),)
)
PAYS = Curve(0.001, ((2, 0.0012), (4, 0.0014)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, batching=True)
    yield made
    made.host.close()


def request(*numbers: float, outputs: tuple[str, ...] = ()) -> Request:
    return Request([tensor(*numbers)], outputs, 0.25)


def ask(bench: Bench, *requests: Request) -> list[InferResult]:
    found = bench.host.infer_together("photo", requests)
    assert all(isinstance(one, InferResult) for one in found), found
    return [one for one in found if isinstance(one, InferResult)]


def with_batches(bench: Bench, curve: Curve = PAYS, *, proven: bool = True) -> None:
    """As if they had been measured so."""
    served = bench.host._served("photo")
    assert served.active is not None
    batches = served.active.current.batches = Batches(curve)
    batches.proof.wanted = 0 if proven else 3


def across(kind: str) -> bytes:
    """Models whose rows look at each other: `sum` along the batch, or its largest value."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    seen = {
        "sum": helper.make_node("CumSum", ["x", "zero"], ["y"]),
        "largest": helper.make_node("Add", ["x", "most"], ["y"]),
    }[kind]
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    most = helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=1)
    return _model([most, seen] if kind == "largest" else [seen], [axes, zero])


def test_each_gets_its_own_answer_and_the_batch_counts_as_one_run(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    with_batches(bench)
    two_rows = replace(request(1.0), inputs=[two(5.0, 6.0)])
    found = ask(bench, request(1.0, 2.0, 3.0, 4.0), two_rows, request(7.0, 7.0, 7.0, 7.0))
    assert [values(one) for one in found] == [
        [2.0, 4.0, 6.0, 8.0], [10.0] * 4 + [12.0] * 4, [14.0] * 4,
    ]  # fmt: skip
    assert [one.rows for one in found] == [1, 2, 1]
    assert [one.executions for one in found] == [1, 0, 0]
    assert all(one.queue_s >= 0.25 for one in found)
    (window,) = bench.host.take_windows()
    assert window.service.count == 3


def two(first: float, second: float) -> Tensor:
    return Tensor("x", DType.FP32, (2, 4), np.array([[first] * 4, [second] * 4], "f4").tobytes())


def test_a_wrong_request_is_refused_alone(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    with_batches(bench)
    wrong = Request([replace(tensor(), name="z")])
    first, second, third = bench.host.infer_together("photo", [request(), wrong, request()])
    assert isinstance(first, InferResult)
    assert isinstance(second, RequestError)
    assert isinstance(third, InferResult)
    assert third.executions == 0, "the two others went together"


def test_a_request_that_makes_the_runtime_fail_fails_alone(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": crashing()})
    with_batches(bench)
    good, bad = request(0.0, 0.0, 0.0, 0.0), request(1.0, 1.0, 1.0, 1.0)
    first, second = bench.host.infer_together("photo", [good, bad])
    assert isinstance(first, InferResult)
    assert values(first) == [0.0] * 4
    assert isinstance(second, InferenceError)
    # Nothing of the failed batch was counted, and it is not tried again.
    (window,) = bench.host.take_windows()
    assert (window.service.count, window.errors) == (1, 1)
    assert bench.host.curve("photo").most == 1


def test_a_batch_says_of_a_version_what_one_alone_would(tmp_path: Path) -> None:
    """Else a long queue would roll back a good version: five in a row over the threshold."""
    clock = ScriptedClock()
    runtime = ScriptedRuntime(clock)
    bench = Bench(
        tmp_path,
        clock=clock,
        open_backend=runtime.open,
        thread_cpu=clock.thread_cpu,
        batching=False,
    )
    back = bench.serve("1.0.0", {"heavy": b"old 0.010"})
    bench.serve("2.0.0", {"heavy": b"new 0.160"}, Trial.PROBATION, back, slow_threshold_ms=100)
    # Four take 160 ms together, and one of them 40 ms alone.
    with_batches(bench, Curve(0.040, ((4, 0.160),)))
    for _ in range(4):
        found = ask(bench, *[request()] * 4)
        assert found[0].service_s == pytest.approx(0.160), "clients are told what it took"
    assert bench.decisions == []
    # The negative control: where each of them would take as long, it is five in a row.
    with_batches(bench, Curve(0.159, ((4, 0.160),)))
    for _ in range(2):
        ask(bench, *[request()] * 4)
    (decision,) = bench.decisions
    assert isinstance(decision.verdict, RollBack)
    assert {one.version for one in ask(bench, *[request()] * 4)} == {"1.0.0"}


def four(at: int) -> list[Request]:
    """Four requests that nobody has asked before."""
    return [request(*[float(10 * at + number)] * 4) for number in range(4)]


def executions(found: list[InferResult]) -> int:
    return sum(one.executions for one in found)


def test_the_first_batches_are_answered_one_by_one_as_well(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    with_batches(bench, proven=False)
    runs = [executions(ask(bench, *four(at))) for at in range(1, 5)]
    assert runs == [4, 4, 4, 1]
    assert bench.host.curve("photo").most == 4


def test_batches_of_the_same_prove_nothing_and_are_given_up(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    with_batches(bench, proven=False)
    runs = [executions(ask(bench, *[request()] * 4)) for _ in range(14)]
    assert runs == [4] * 14
    assert bench.host.curve("photo").most == 1


@pytest.mark.parametrize("kind", ["sum", "largest"])
def test_rows_that_look_at_each_other_are_never_answered_together(bench: Bench, kind: str) -> None:
    bench.serve("1.0.0", {"heavy": across(kind)})
    alone = [[values(bench.infer(*[float(10 * at + n)] * 4)) for n in range(4)] for at in range(6)]
    with_batches(bench, proven=False)
    assert [[values(one) for one in ask(bench, *four(at))] for at in range(6)] == alone
    assert bench.host.curve("photo").most == 1
    # The negative control: without the proof, the answers of the others get in.
    with_batches(bench, proven=True)
    assert [[values(one) for one in ask(bench, *four(at))] for at in range(6)] != alone


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (("time", 4), ("time", 4)),
        (("batch", 4), (1, 4)),
        ((1, 4), (1, 4)),
        (("batch", "length"), ("batch", 4)),
        (("batch", 4), ("rows", 4)),
    ],
)
def test_an_axis_that_is_no_batch_is_never_joined(
    inputs: tuple[int | str, ...], outputs: tuple[int | str, ...]
) -> None:
    signature = Signature(
        (TensorSpec("x", DType.FP32, inputs),), (TensorSpec("y", DType.FP32, outputs),)
    )
    assert not joining.is_joinable(signature)
    assert joining.is_joinable(SIGNATURE)


def measure(backend: Any, clock: Callable[[], float], most_s: float) -> Curve:
    zeros = {"x": Tensor("x", DType.FP32, (1, 4), bytes(16))}
    return joining.measure(backend, zeros, SIGNATURE, clock, most_s)


def test_what_is_as_quick_alone_is_not_joined(tmp_path: Path) -> None:
    """By a clock that counts rows: nothing is gained by a batch."""
    path = tmp_path / "model.onnx"
    path.write_bytes(scaled(2.0))
    backend, now = load(str(path), {}), [0.0]
    run = backend.run

    def timed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        now[0] += inputs["x"].shape[0] ** cost
        return run(inputs)

    backend.run = timed  # type: ignore[method-assign, assignment]
    cost = 1.0
    assert measure(backend, lambda: now[0], 100.0).most == 1
    cost = 0.5
    curve = measure(backend, lambda: now[0], 4.0)
    assert [rows for rows, _ in curve.batches] == [2, 4, 8, 16], "32 rows take longer than 4 s"
    assert curve.alone(16) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("batching", "threshold_ms", "joins"),
    [(True, 10_000, True), (True, 10, False), (False, 10_000, False)],
)
def test_what_is_loaded_is_measured(
    tmp_path: Path, batching: bool, threshold_ms: int, joins: bool
) -> None:
    """The model takes as long for four rows as for one; no batch takes half of the threshold."""
    bench = Bench(tmp_path, batching=batching)
    bench.serve("1.0.0", {"heavy": slow(2.0, 1)}, slow_threshold_ms=threshold_ms)
    assert (bench.host.curve("photo").most > 1) is joins
    bench.host.close()


def test_a_file_that_is_loaded_again_is_known(bench: Bench) -> None:
    first = bench.serve("1.0.0", {"heavy": scaled(2.0)})
    served = bench.host._served("photo")
    assert served.active is not None
    batches = served.active.current.batches
    bench.serve("1.1.0", {"heavy": scaled(3.0)})
    assert served.active.current.batches is not batches
    bench.host.unload("photo", first.slot_id)
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    assert served.active.current.batches is batches


def test_swaps_between_joined_requests_fail_none(bench: Bench) -> None:
    factor = {"1.0.0": 2.0, "1.1.0": 3.0}
    made = {v: make_release(v, {"heavy": scaled(f)}) for v, f in factor.items()}
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    with_batches(bench)
    errors: list[object] = []
    seen: dict[str, int] = {"1.0.0": 0, "1.1.0": 0}
    over = threading.Event()

    def load_on() -> None:
        while not over.is_set():
            for one in bench.host.infer_together("photo", [request(1.0, 1.0, 1.0, 1.0)] * 4):
                if not isinstance(one, InferResult) or values(one) != [factor[one.version]] * 4:
                    errors.append(one)
                else:
                    seen[one.version] += 1

    threads = [threading.Thread(target=load_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    now = "1.0.0"
    for _ in range(60):
        then = "1.1.0" if now == "1.0.0" else "1.0.0"
        bench.host.load(made[then], bench.paths({"heavy": scaled(factor[then])}))
        bench.host.warm("photo", made[then].slot_id)
        row = begin(bench.clock.monotonic())
        bench.host.swap("photo", made[then].slot_id, Trial.COMMITTED, row, None)
        with_batches(bench)
        bench.host.unload("photo", made[now].slot_id)
        now = then
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert min(seen.values()) > 0
