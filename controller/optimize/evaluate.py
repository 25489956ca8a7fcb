"""What a build says, through its runtime on the file that ships, and how quick it is.

Knows no runtime and no task: judges of `tasks` read what is said. Refuses a figure without rows.
"""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.domain.batch import parse_curve
from controller.domain.interval import Interval, quantile_of
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import Runner
from controller.optimize.outputs import check_shapes, differing, not_finite
from controller.optimize.raw import first_words
from controller.optimize.rows import Array, Feed, rows_of

# What a judge makes of the outputs and inputs of one call: an answer per row.
Read = Callable[[list[Array], list[Array]], list[Any] | None]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a runner said. ``said`` has an answer per row, as the judge of the task reads it.

    None where the outputs are no such answers.
    """

    rows: int
    not_finite: int  # rows with NaN or infinity in any output
    said: list[Any] | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """How the float file answers beside the program it was exported from."""

    rows: int
    differing: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one call at batch 1 on one thread."""

    p50_ms: float
    p95_ms: float
    n: int
    p50: Interval | None  # the same with its interval; None: too few calls for one
    p95: Interval | None


def ask(
    runner: Runner,
    signature: Signature,
    feeds: Iterator[Feed],
    lanes: int,
    go_on: Callable[[int], bool],
    read: Read,
) -> Answers:
    """What the runner says of each row, as far as ``go_on(rows_done)`` allows.

    ``lanes`` calls run side by side, each on one thread: threads inside one call would wait for
    each other, which on a busy machine takes longer than the call. Raises InvalidError when a call
    fails or gives outputs of another shape than the signature's.
    """
    answers: list[Any] = []
    done, wrong, whole = 0, 0, True
    with ThreadPoolExecutor(max_workers=lanes) as pool:
        while part := list(itertools.islice(feeds, lanes)):
            if not go_on(done):
                break
            for rows, said, bad in pool.map(
                lambda one: _ask_batch(runner, signature, one, read), part
            ):
                whole = whole and said is not None
                answers += said or ()
                done += rows
                wrong += bad
    return Answers(done, wrong, answers if whole and answers else None)


def _ask_batch(
    runner: Runner, signature: Signature, feed: Feed, read: Read
) -> tuple[int, list[Any] | None, int]:
    """Rows, what was said of each (None: not what the task has), how many are no numbers."""
    inputs, real = feed
    found = runner.run(inputs)
    check_shapes(found, inputs, signature)
    wrong = not_finite(found, rows_of(inputs))[:real]
    said = read([_first(one, real) for one in found], [_first(one, real) for one in inputs])
    return real, said, int(wrong.sum())


def _first(array: Array, rows: int) -> Array:
    return array[:rows] if array.ndim else array  # one number for all rows has none to leave out


def compare_runs(
    source: Runner, built: Runner, feeds: Iterator[Feed], go_on: Callable[[int], bool]
) -> Likeness:
    """How many rows the build answers otherwise than its source, beyond rounding."""
    done, wrong = 0, 0
    for inputs, real in feeds:
        if not go_on(done):
            break
        rows = rows_of(inputs)
        wrong += int(differing(built.run(inputs), source.run(inputs), rows)[:real].sum())
        done += real
    return Likeness(done, wrong)


def summarise(times_s: Sequence[float]) -> Timing:
    """p50 and p95 of single calls with their intervals. Raises InvalidError without any."""
    if not times_s:
        raise InvalidError("no call was timed")
    times_ms = [1000 * one for one in times_s]
    (p50_ms, p50), (p95_ms, p95) = quantile_of(times_ms, 0.5), quantile_of(times_ms, 0.95)
    return Timing(p50_ms, p95_ms, len(times_ms), p50, p95)


@dataclass(frozen=True, slots=True)
class Demand:
    """Peak resident bytes at batch 1, and what a call takes by batch in ms."""

    peak_rss_bytes: int
    batch_p50_ms: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures files of one runtime and signature, each time in a fresh process."""

    runtime: str
    signature: Signature

    def speed(self, files: list[Path], seconds: float) -> list[Timing]:
        """Time the files in turn, call by call, in one process that holds nothing else."""
        measured = self._measure("speed", files, seconds)
        return [summarise(item["times_s"]) for item in measured]

    def memory(self, file: Path, seconds: float = 0.0) -> Demand:
        """What a process takes that loads the file and infers: at batch 1, then of other batches.

        For the latter it has so many ``seconds``.
        """
        (found,) = self._measure("memory", [file], seconds)
        return Demand(int(found["peak_rss_bytes"]), parse_curve(found["batches"]))

    def _measure(self, what: str, files: list[Path], seconds: float) -> list[dict[str, Any]]:
        module = (sys.executable, "-I", "-m", "controller.optimize.measure", self.runtime)
        described = json.dumps(self.signature.to_json())
        done = subprocess.run(
            [*module, what, str(seconds), described, *(str(file) for file in files)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
            raise InvalidError(f"the build cannot be run on one row{_why(done)}")
        measured: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return measured


def _why(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f": its process was ended by {signal.Signals(-done.returncode).name}"
    return first_words(done.stderr)
