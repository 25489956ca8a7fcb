"""Swapping under load: no request fails, none is answered by a version that was freed."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.ports import InferResult
from agent.domain.probation import Trial, begin
from agent.domain.tensor import Tensor
from agent.errors import LoadError, RequestError, UnavailableError, UnknownModelError
from agent.runtime import host
from agent.runtime.backend import Backend
from agent.runtime.served import ServedModel
from agent.runtime.slot import LoadedRung
from tests.support.serving import Bench, make_release, scaled, tensor, values
from tests.support.wait import wait_for

FACTOR = {"1.0.0": 2.0, "1.1.0": 3.0}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.host.close()


class Load:
    """Clients that ask without pause and keep every answer and every error."""

    def __init__(self, bench: Bench, clients: int = 4) -> None:
        self.bench = bench
        self.answers: list[InferResult] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_beyond(self, seen: int) -> None:
        """Until there are more answers than `seen`."""
        wait_for(lambda: len(self.answers) > seen, 5, "an answer after the change")

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self.bench.infer())
            except Exception as error:  # noqa: BLE001 - every failure is what is counted
                self.errors.append(error)


def test_swap_200_times_under_load_fails_no_request(bench: Bench) -> None:
    rungs = {v: {"heavy": scaled(f), "light": scaled(f + 10)} for v, f in FACTOR.items()}
    made = {v: make_release(v, rungs[v]) for v in FACTOR}
    bench.serve("1.0.0", rungs["1.0.0"])
    now = "1.0.0"
    with Load(bench) as load:
        for _ in range(200):
            seen = len(load.answers)
            then = "1.1.0" if now == "1.0.0" else "1.0.0"
            # Loaded anew every time: a freed version must never answer.
            bench.host.load(made[then], bench.paths(rungs[then]))
            bench.host.warm("photo", made[then].slot_id)
            row = begin(bench.clock.monotonic())
            old = bench.host.swap("photo", made[then].slot_id, Trial.COMMITTED, row, None)
            assert old == made[now].slot_id
            bench.host.unload("photo", made[now].slot_id)
            now = then
            load.wait_beyond(seen)
    assert load.errors == []
    assert {a.version for a in load.answers} == set(FACTOR)
    for answer in load.answers:
        assert values(answer)[0] == FACTOR[answer.version]


def test_rungs_change_under_load_fails_no_request(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    with Load(bench) as load:
        for i in range(200):
            seen = len(load.answers)
            bench.host.set_rung("photo", ("light", "heavy")[i % 2])
            load.wait_beyond(seen)
    assert load.errors == []
    assert {(a.rung, values(a)[0]) for a in load.answers} == {("heavy", 2.0), ("light", 3.0)}


class Held:
    """A backend that answers when it is let go, and notes when it was closed."""

    def __init__(self) -> None:
        self.entered, self.go, self.closed = (threading.Event() for _ in range(3))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.entered.set()
        assert self.go.wait(10)
        return {"y": replace(inputs["x"], name="y")}

    def call_off(self, thread: int) -> None:
        return None

    def signature(self) -> None:
        return None

    def close(self) -> None:
        self.closed.set()


def unload_under_a_request(folder: Path) -> tuple[bool, bool, int]:
    """Whether the backend was closed under the request, and after it; how many were answered."""
    held = Held()
    bench = Bench(folder, open_backend=lambda *_: held)
    release = make_release("1.0.0", {"heavy": b"h"})
    bench.host.load(release, bench.paths({"heavy": b"h"}))
    bench.host.swap("photo", release.slot_id, Trial.COMMITTED, begin(0.0), None)
    answers: list[InferResult] = []
    client = threading.Thread(target=lambda: answers.append(bench.infer()))
    client.start()
    assert held.entered.wait(5)
    # Gives up waiting for the request, which then has to free the backend itself.
    bench.host.unload("photo", release.slot_id)
    with pytest.raises(UnknownModelError):
        bench.infer()
    under = held.closed.is_set()
    held.go.set()
    client.join()
    return under, held.closed.is_set(), len(answers)


def test_unload_frees_after_the_last_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_DRAIN_S", 0.05)
    assert unload_under_a_request(tmp_path) == (False, True, 1)


def test_unload_negative_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that forgets who is in flight must be caught by the test above."""

    def careless(served: ServedModel, rung: LoadedRung) -> Backend | None:
        return rung.backend if rung.retired else None

    monkeypatch.setattr(host, "_DRAIN_S", 0.05)
    monkeypatch.setattr(ServedModel, "_closable", careless)
    assert unload_under_a_request(tmp_path)[0]


def test_errors_name_what_is_wrong(bench: Bench) -> None:
    with pytest.raises(UnknownModelError, match="'photo' is not served here"):
        bench.infer()
    first = bench.load("1.0.0", {"heavy": scaled(2.0)})
    with pytest.raises(UnavailableError, match="no version loaded yet"):
        bench.infer()
    assert bench.host.card("photo").not_ready == "model photo is being loaded"
    bench.host.swap("photo", first.slot_id, Trial.COMMITTED, begin(0.0), None)
    with pytest.raises(RequestError, match="missing input: x"):
        bench.host.infer("photo", [])
    with pytest.raises(RequestError, match="output 'z' is unknown"):
        bench.host.infer("photo", [tensor()], ["z"])
    with pytest.raises(LoadError, match=r"slot 9\.9 of model photo is not loaded"):
        bench.host.swap("photo", "9.9", Trial.COMMITTED, begin(0.0), None)
    with pytest.raises(UnavailableError, match="no rung 'medium'"):
        bench.host.set_rung("photo", "medium")
    bench.host.close()
    with pytest.raises((UnavailableError, UnknownModelError)):
        bench.infer()


def test_a_failed_load_keeps_what_serves(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    for rungs, options, story in (
        ({"heavy": b"not onnx"}, {}, "onnxruntime cannot load"),
        ({"heavy": scaled(3.0), "light": b"cut off"}, {}, "onnxruntime cannot load"),
        ({"heavy": scaled(3.0)}, {"runtime": "absent"}, "runtime 'absent' is not known"),
    ):
        with pytest.raises(LoadError, match=story):
            bench.load("1.1.0", rungs, **options)
        assert values(bench.infer())[0] == 2.0
    serving = bench.host.serving("photo")
    assert serving is not None
    assert serving.version == "1.0.0"


def test_windows_tell_each_build_and_rung_once(bench: Bench) -> None:
    made = bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    for _ in range(3):
        bench.infer()
    bench.host.set_rung("photo", "light")
    bench.infer()
    windows = bench.host.take_windows()
    assert [(w.version, w.rung, w.digest, w.service.count) for w in windows] == [
        ("1.0.0", "heavy", made.targets[0].digest, 3),
        ("1.0.0", "light", made.targets[1].digest, 1),
    ]
    assert bench.host.take_windows() == ()
    measured = bench.host.measure("photo")
    assert measured.p95_s is not None
    assert measured.queue_age_s is not None
