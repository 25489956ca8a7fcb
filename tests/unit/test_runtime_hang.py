"""An inference that does not end is called off; memory that a model may not have is refused."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.domain.ports import InferResult
from agent.domain.probation import Cause, RollBack, Trial
from agent.errors import InferenceError, LoadError
from tests.support.poison import POISONS, endless
from tests.support.serving import Bench, make_release, scaled, values
from tests.support.wait import wait_for


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.host.call_off(0.0)
    made.host.close()


class Asked:
    """One request in a thread of its own."""

    def __init__(self, bench: Bench) -> None:
        self.answer: InferResult | None = None
        self.error = ""
        self._bench = bench
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.answer = self._bench.infer(1.0, 1.0, 1.0, 1.0)
        except InferenceError as error:
            self.error = error.message

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()


def hang(bench: Bench, with_return: bool) -> Asked:
    """A request that is inside an endless loop."""
    back = bench.serve("1.0.0", {"heavy": scaled(2.0)}) if with_return else None
    bench.serve("2.0.0", {"heavy": POISONS["endless"]()}, Trial.PROBATION, back)
    asked = Asked(bench)
    wait_for(lambda: (bench.host.longest() or ("", 0.0))[1] > 0.3, 20, "an inference that hangs")
    return asked


def test_a_hanging_inference_is_answered_by_the_version_before(bench: Bench) -> None:
    asked = hang(bench, with_return=True)
    assert bench.host.call_off(600.0) == (), "it has not run that long"
    assert not asked.over
    assert bench.host.call_off(0.2) == ("photo rung 'heavy'",)
    wait_for(lambda: asked.over, 10, "an answer")
    assert bench.host.call_off(0.0) == (), "nothing is inside any more"
    assert asked.answer is not None
    assert (asked.answer.version, values(asked.answer)) == ("1.0.0", [2.0] * 4)
    (decision,) = bench.decisions
    assert isinstance(decision.verdict, RollBack)
    assert decision.verdict.cause is Cause.CRASH
    assert bench.infer(1.0, 1.0, 1.0, 1.0).version == "1.0.0"


def test_without_a_version_to_return_to_the_client_is_told(bench: Bench) -> None:
    asked = hang(bench, with_return=False)
    bench.host.call_off(0.2)
    wait_for(lambda: asked.over, 10, "an end")
    assert "terminate flag" in asked.error


def test_negative_control_nobody_calls_it_off(bench: Bench) -> None:
    asked = hang(bench, with_return=True)
    with pytest.raises(AssertionError, match="an answer"):
        wait_for(lambda: asked.over, 1.0, "an answer")


def test_a_called_off_inference_leaves_the_next_ones_alone(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": POISONS["endless"]()})
    asked = Asked(bench)
    wait_for(lambda: (bench.host.longest() or ("", 0.0))[1] > 0.1, 20, "an inference that hangs")
    bench.host.call_off(0.0)
    wait_for(lambda: asked.over, 10, "an end")
    assert values(bench.infer(0.5, 0.5, 0.5, 0.5)) == [0.5] * 4


@pytest.mark.parametrize(("kind", "said"), [("empty", "[0,4]"), ("misshapen", "[2,4]")])
def test_as_many_rows_come_out_as_went_in(bench: Bench, kind: str, said: str) -> None:
    bench.serve("1.0.0", {"heavy": POISONS[kind]()})
    assert values(bench.infer(0.5, 0.5, 0.5, 0.5)) == [0.5] * 4
    with pytest.raises(InferenceError, match="expected FP32") as failed:
        bench.infer(1.0, 1.0, 1.0, 1.0)
    assert said in failed.value.message


def test_a_first_inference_that_hangs_fails_the_load(bench: Bench) -> None:
    data = endless(at_once=True)
    release = make_release("1.0.0", {"heavy": data})
    bench.host.load(release, bench.paths({"heavy": data}))
    failed: list[LoadError] = []

    def warm() -> None:
        try:
            bench.host.warm("photo", release.slot_id)
        except LoadError as error:
            failed.append(error)

    thread = threading.Thread(target=warm, daemon=True)
    thread.start()
    wait_for(lambda: (bench.host.longest() or ("", 0.0))[1] > 0.1, 20, "a warm-up that hangs")
    bench.host.call_off(0.0)
    thread.join(10)
    assert len(failed) == 1
    assert "fails its first inference" in failed[0].message


EATER = """
import sys
from pathlib import Path
from agent.process import limit_memory
from tests.support.poison import POISONS
from tests.support.serving import Bench, values
bench = Bench(Path(sys.argv[1]))
bench.serve("1.0.0", {"heavy": POISONS["greedy"]()})
assert values(bench.infer(0.5, 0.5, 0.5, 0.5)) == [0.5] * 4
if sys.argv[2] == "limited":
    assert limit_memory(300_000_000)
try:
    bench.infer(1.0, 1.0, 1.0, 1.0)
    print("it was given")
except Exception as error:
    print("refused:", type(error).__name__)
print(values(bench.infer(0.5, 0.5, 0.5, 0.5)))
"""


@pytest.mark.parametrize(
    ("how", "said"), [("limited", "refused: InferenceError"), ("unlimited", "it was given")]
)
def test_a_model_that_eats_memory_fails_alone(tmp_path: Path, how: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EATER, str(tmp_path), how],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [said, "[0.5, 0.5, 0.5, 0.5]"], done.stderr


ANEW = """
import os, sys, threading
from agent.process import start_anew
if os.environ.get("STARTED") == "once":
    print("again", os.getpid(), sys.argv[1])
    raise SystemExit(0)
os.environ["STARTED"] = "once"
threading.Thread(target=threading.Event().wait).start()  # one that would never let it end
print("first", os.getpid(), sys.argv[1])
start_anew()
"""


def test_a_process_starts_anew_with_its_arguments_and_number(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANEW, "word"], capture_output=True, text=True, timeout=60, check=True
    )
    first, again = (line.split() for line in done.stdout.splitlines())
    assert (first[0], again[0]) == ("first", "again")
    assert first[1:] == again[1:]
