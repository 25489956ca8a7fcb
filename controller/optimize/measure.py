"""A process of its own that times files of one runtime or shows the memory of one: nothing else is
loaded.

Called as `python -m controller.optimize.measure RUNTIME speed|memory SECONDS SIGNATURE FILE…`;
writes one line of JSON. Reads no settings, writes no file.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from controller.domain.model import Signature
from controller.optimize.builder import Builder, find_builder
from controller.optimize.rows import Array, numpy_type, sizes_of
from controller.optimize.stopwatch import Stopwatch

WARM_UP_CALLS = 3
MIN_CALLS = 8
MAX_CALLS = 200
BATCHES = (1, 2, 4, 8, 16, 32)
CURVE_CALLS, CURVE_MOST = 5, 40


def main(arguments: list[str]) -> int:
    """Measure and print."""
    runtime, what, seconds, described, *files = arguments
    builder, signature = find_builder(runtime), Signature.from_json(json.loads(described))
    calls = [_Call(builder, Path(file), signature) for file in files]
    if what == "memory":
        for call in calls:
            call.timed()
        # Batches come after it: they take memory that a device at batch 1 does not need.
        peak = {"peak_rss_bytes": _peak_rss_bytes()}
        result: Sequence[dict[str, Any]] = [{**peak, "batches": calls[0].curve(float(seconds))}]
    else:
        result = _times(calls, float(seconds))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _peak_rss_bytes() -> int:
    """Of this program; getrusage would count what the parent held when it forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


class _Call:
    """One loaded file, called with fixed inputs on one thread."""

    def __init__(self, builder: Builder, file: Path, signature: Signature) -> None:
        self._runner, self._signature = builder.open_build(file, signature), signature
        self._inputs = self._filled(1)

    def _filled(self, batch: int) -> list[Array]:
        random = np.random.default_rng(0)
        return [
            random.random(sizes_of(spec, batch, self._signature.axes)).astype(numpy_type(spec))
            for spec in self._signature.inputs
        ]

    def timed(self, inputs: list[Array] | None = None) -> float:
        """Seconds of one call."""
        watch = Stopwatch()
        self._runner.run(inputs or self._inputs)
        return watch.elapsed_s()

    def curve(self, seconds: float) -> list[tuple[int, float]]:
        """Batch and median in ms, from 1 up as far as ``seconds`` allow.

        Nothing where an input takes one number of rows only.
        """
        specs = self._signature.inputs
        if not seconds or not all(one.shape and isinstance(one.shape[0], str) for one in specs):
            return []
        found, watch = list[tuple[int, float]](), Stopwatch()
        for place, batch in enumerate(BATCHES):
            inputs = self._filled(batch)
            first_s = self.timed(inputs)  # takes the memory of the batch
            if found and watch.elapsed_s() + CURVE_CALLS * first_s > seconds:
                break
            until = seconds * (place + 1) / len(BATCHES)
            times = [self.timed(inputs) for _ in range(CURVE_CALLS)]
            while len(times) < CURVE_MOST and watch.elapsed_s() < until:
                times.append(self.timed(inputs))
            found.append((batch, 1000 * median(times)))
        return found


def _times(calls: list[_Call], seconds: float) -> list[dict[str, list[float]]]:
    """Call the files in turn, so that what else the machine does meets them alike."""
    for call in calls:
        for _ in range(WARM_UP_CALLS if call.timed() < 0.1 else 1):
            call.timed()
    times: list[list[float]] = [[] for _ in calls]
    watch = Stopwatch()
    while len(times[0]) < MIN_CALLS or (watch.elapsed_s() < seconds and len(times[0]) < MAX_CALLS):
        for place, call in enumerate(calls):
            times[place].append(call.timed())
    return [{"times_s": measured} for measured in times]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
