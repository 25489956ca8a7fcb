"""Which rungs stay in memory, which are loaded on a step, and who is freed when memory is short."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.ladder import Pressure
from agent.domain.probation import StepDown, Trial, begin
from agent.errors import LoadError, UnavailableError
from agent.runtime.backend import Backend, Options
from agent.runtime.registry import open_backend
from tests.support.serving import Bench, crashing, make_release, scaled, values

MB = 1_000_000
# The host keeps 64 MiB free beside every rung.
RESERVE = 64 * 1024 * 1024
RUNGS = {"heavy": scaled(2.0), "light": scaled(3.0)}


class Device:
    """So much free memory, of which every loaded backend takes 100 MB."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.loaded = 0

    def available(self) -> int:
        return self.free_bytes - self.loaded * 100 * MB

    def open(self, runtime: str, path: str, options: Options) -> Backend:
        backend = open_backend(runtime, path, options)
        self.loaded += 1
        close = backend.close

        def closed() -> None:
            self.loaded -= 1
            close()

        backend.close = closed  # type: ignore[method-assign]
        return backend


def resident(bench: Bench) -> tuple[str, ...]:
    serving = bench.host.serving("photo")
    assert serving is not None
    return serving.resident


def test_heavy_and_light_are_both_resident_when_memory_allows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, memory_available=lambda: RESERVE + 200 * MB)
    bench.serve("1.0.0", RUNGS, memory_bytes=100 * MB)
    assert resident(bench) == ("heavy", "light")
    assert bench.infer().rung == "heavy"


def test_without_a_figure_everything_is_loaded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, memory_available=lambda: None)
    bench.serve("1.0.0", RUNGS, memory_bytes=100 * MB)
    assert resident(bench) == ("heavy", "light")


def test_a_step_loads_what_memory_kept_out_and_frees_the_other(tmp_path: Path) -> None:
    device = Device(RESERVE + 150 * MB)
    bench = Bench(tmp_path, memory_available=device.available, open_backend=device.open)
    bench.serve("1.0.0", RUNGS, memory_bytes=100 * MB)
    assert resident(bench) == ("heavy",)
    serving = bench.host.serving("photo")
    assert serving is not None
    assert serving.usable == ("heavy", "light")
    for rung, factor in (("light", 3.0), ("heavy", 2.0), ("light", 3.0)):
        bench.host.set_rung("photo", rung)
        assert resident(bench) == (rung,)
        answer = bench.infer()
        assert (answer.rung, values(answer)[0]) == (rung, factor)
    # Room for both came back: the next step keeps the other one, too.
    device.free_bytes = RESERVE + 500 * MB
    bench.host.set_rung("photo", "heavy")
    assert resident(bench) == ("heavy", "light")


def test_a_step_up_that_does_not_fit_is_refused_and_may_be_tried_again(tmp_path: Path) -> None:
    free = [RESERVE + 50 * MB]
    bench = Bench(tmp_path, memory_available=lambda: free[0])
    heavy, light = RUNGS["heavy"], RUNGS["light"]
    made = make_release("1.0.0", RUNGS, memory_bytes=100 * MB)
    small = replace(made.rungs[1], memory_bytes=10 * MB)
    made = replace(made, rungs=(made.rungs[0], small))
    bench.host.load(made, bench.paths({"heavy": heavy, "light": light}))
    bench.host.swap("photo", made.slot_id, Trial.COMMITTED, begin(0.0), None)
    with pytest.raises(UnavailableError, match="not enough memory for rung 'heavy'"):
        bench.host.set_rung("photo", "heavy")
    assert bench.infer().rung == "light"
    free[0] = RESERVE + 500 * MB
    bench.host.set_rung("photo", "heavy")
    assert resident(bench) == ("heavy", "light")


def test_a_step_under_memory_pressure_frees_the_heavy_rung(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", RUNGS)
    bench.host.feel(Pressure(memory_pct=95.0))
    bench.host.set_rung("photo", "light")
    assert resident(bench) == ("light",)
    bench.host.feel(Pressure(memory_pct=60.0))
    bench.host.set_rung("photo", "heavy")
    assert resident(bench) == ("heavy", "light")


def test_a_version_that_does_not_fit_beside_the_running_one_is_refused(tmp_path: Path) -> None:
    free = [RESERVE + 500 * MB]
    bench = Bench(tmp_path, memory_available=lambda: free[0])
    bench.serve("1.0.0", RUNGS, memory_bytes=100 * MB)
    free[0] = RESERVE + 50 * MB
    with pytest.raises(LoadError, match=r"not enough memory for photo:1\.1\.0 beside what runs"):
        bench.load("1.1.0", {"heavy": scaled(4.0)}, memory_bytes=100 * MB)
    assert bench.infer().version == "1.0.0"


def test_a_start_serves_the_lightest_rung_whatever_memory_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path, memory_available=lambda: 10 * MB)
    bench.serve("1.0.0", RUNGS, memory_bytes=100 * MB)
    assert resident(bench) == ("light",)
    assert bench.infer().rung == "light"


def test_a_rung_that_cannot_be_loaded_on_a_step_is_not_chosen_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, memory_available=lambda: RESERVE + 150 * MB)
    bench.serve("1.0.0", {"heavy": scaled(2.0), "light": b"rotten"}, memory_bytes=100 * MB)
    with pytest.raises(LoadError, match="onnxruntime cannot load"):
        bench.host.set_rung("photo", "light")
    serving = bench.host.serving("photo")
    assert serving is not None
    assert (serving.rung, serving.usable) == ("heavy", ("heavy",))
    assert bench.infer().rung == "heavy"


def test_a_step_down_to_a_rung_that_is_not_loaded_is_told_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, memory_available=lambda: RESERVE + 150 * MB)
    bench.serve("1.0.0", {"heavy": crashing(), "light": scaled(3.0)}, memory_bytes=100 * MB)
    bench.infer(0.0, 0.0, 0.0, 0.0)
    for _ in range(8):
        with pytest.raises(Exception, match="failed"):
            bench.infer()
    (decision,) = bench.decisions
    assert isinstance(decision.verdict, StepDown)
    assert decision.swapped_to is None
    bench.host.set_rung("photo", "light")
    assert bench.infer().rung == "light"


def test_off_answers_nothing_and_says_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", RUNGS, off=True)
    bench.host.set_rung("photo", "off")
    with pytest.raises(UnavailableError, match=r"photo:1\.0\.0 is switched off by its ladder"):
        bench.infer()
    assert bench.host.card("photo").not_ready == "model photo is switched off by its ladder"
    bench.host.set_rung("photo", "heavy")
    assert bench.infer().rung == "heavy"


def test_reconfigure_takes_over_policy_and_rungs_without_loading_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", RUNGS, Trial.COMMITTED)
    changed = make_release("1.0.0", RUNGS, off=True, remote="grpc://127.0.0.1:1", slow_count=7)
    (tmp_path / changed.targets[0].digest.removeprefix("sha256:")).unlink()
    bench.host.reconfigure(changed)
    serving = bench.host.serving("photo")
    assert serving is not None
    assert serving.usable == ("edge", "heavy", "light", "off")
    assert bench.infer().rung == "heavy"
    bench.host.set_rung("photo", "edge")
    bench.host.reconfigure(make_release("1.0.0", RUNGS))
    assert bench.infer().rung == "heavy"
