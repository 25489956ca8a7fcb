"""What a build is worth, through its runtime on the file that ships: accuracy, agreement, speed.

Knows no runtime. Judges nothing: figures carry n and an interval, the gate decides. Refuses a
figure without rows.
"""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.domain.interval import Interval, paired_difference_pts, quantile_of, share_pct
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import Runner
from controller.optimize.outputs import Mask, check_shapes, differing, not_finite
from controller.optimize.raw import first_words
from controller.optimize.rows import Array, Feed, rows_of

NOT_A_CLASS = -1  # a result with NaN or infinity is wrong whatever the label
TOP = 5


@dataclass(frozen=True, slots=True)
class Answers:
    """What a runner said. ``classes`` is None where the first output is no row of class scores.

    Otherwise it has a column for each of the best classes, the winner first: five of them where
    there are more than five classes, else the winner alone.
    """

    rows: int
    not_finite: int  # rows with NaN or infinity in any output
    classes: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """How the float file answers beside the program it was exported from."""

    rows: int
    differing: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares in percent. None: there were no labels."""

    accuracy: Interval | None
    source_accuracy: Interval | None
    accuracy_delta_pts: Interval | None
    agreement: Interval
    top5_accuracy: Interval | None = None
    top5_delta_pts: Interval | None = None


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
) -> Answers:
    """What the runner says of each row, as far as ``go_on(rows_done)`` allows.

    ``lanes`` calls run side by side, each on one thread: threads inside one call would wait for
    each other, which on a busy machine takes longer than the call. Raises InvalidError when a call
    fails or gives outputs of another shape than the signature's.
    """
    classes: list[NDArray[np.int64] | None] = []
    done, wrong = 0, 0
    with ThreadPoolExecutor(max_workers=lanes) as pool:
        while part := list(itertools.islice(feeds, lanes)):
            if not go_on(done):
                break
            for rows, top, bad in pool.map(lambda one: _ask_batch(runner, signature, one), part):
                classes.append(top)
                done += rows
                wrong += bad
    scored = [top for top in classes if top is not None]
    whole = bool(scored) and len(scored) == len(classes)
    return Answers(done, wrong, np.concatenate(scored) if whole else None)


def _ask_batch(
    runner: Runner, signature: Signature, feed: Feed
) -> tuple[int, NDArray[np.int64] | None, int]:
    """Rows, the best classes of each (None: no class scores), and how many are no numbers."""
    inputs, real = feed
    found = runner.run(inputs)
    check_shapes(found, inputs, signature)
    wrong = not_finite(found, rows_of(inputs))[:real]
    return real, _classes(found[0][:real]), int(wrong.sum())


def _classes(scores: Array) -> NDArray[np.int64] | None:
    if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
        return None
    width = TOP if scores.shape[1] > TOP else 1
    # Sorted upside down and stable: of equal scores the first class wins, as argmax has it.
    upside_down = -scores.astype(np.float64)
    top: NDArray[np.int64] = np.argsort(upside_down, axis=1, kind="stable")[:, :width]
    top[~np.isfinite(scores).all(axis=1)] = NOT_A_CLASS
    return top


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


def compare(
    built: NDArray[np.int64], source: NDArray[np.int64], labels: NDArray[np.int64] | None
) -> Figures:
    """Figures over the rows that both sides classified; see `Answers` for the columns."""
    n = min(len(built), len(source))
    built, source = built[:n], source[:n]
    first, of_source = built[:, 0], source[:, 0]
    agreement = share_pct(int(((first == of_source) & (first != NOT_A_CLASS)).sum()), n)
    if labels is None:
        return Figures(None, None, None, agreement)
    wanted = labels[:n]
    accuracy, source_accuracy, delta = _paired(first == wanted, of_source == wanted)
    figures = Figures(accuracy, source_accuracy, delta, agreement)
    if min(built.shape[1], source.shape[1]) < TOP:
        return figures
    hits = ((one == wanted[:, None]).any(axis=1) for one in (built, source))
    top5, _, top5_delta = _paired(*hits)
    return replace(figures, top5_accuracy=top5, top5_delta_pts=top5_delta)


def _paired(right: Mask, source_right: Mask) -> tuple[Interval, Interval, Interval]:
    """Share of the build, share of the source, and the difference row by row."""
    n = len(right)
    gained, lost = int((right & ~source_right).sum()), int((source_right & ~right).sum())
    return (
        share_pct(int(right.sum()), n),
        share_pct(int(source_right.sum()), n),
        paired_difference_pts(gained, lost, n),
    )


def summarise(times_s: Sequence[float]) -> Timing:
    """p50 and p95 of single calls with their intervals. Raises InvalidError without any."""
    if not times_s:
        raise InvalidError("no call was timed")
    times_ms = [1000 * one for one in times_s]
    (p50_ms, p50), (p95_ms, p95) = quantile_of(times_ms, 0.5), quantile_of(times_ms, 0.95)
    return Timing(p50_ms, p95_ms, len(times_ms), p50, p95)


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures files of one runtime and signature, each time in a fresh process."""

    runtime: str
    signature: Signature

    def speed(self, files: list[Path], seconds: float) -> list[Timing]:
        """Time the files in turn, call by call, in one process that holds nothing else."""
        measured = self._measure("speed", files, seconds)
        return [summarise(item["times_s"]) for item in measured]

    def memory(self, file: Path) -> int:
        """Peak resident bytes of a process that loads the file and infers at batch 1."""
        return int(self._measure("memory", [file], 0.0)[0]["peak_rss_bytes"])

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
