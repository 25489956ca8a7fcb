"""A process of its own that times files of one runtime or shows the memory of one: nothing else is
loaded.

Called as `python -m controller.optimize.measure RUNTIME speed|memory SECONDS SIGNATURE FILE…`;
writes one line of JSON. Reads no settings, writes no file.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from controller.domain.model import Signature
from controller.optimize.builder import Builder, find_builder
from controller.optimize.rows import numpy_type, sizes_of
from controller.optimize.stopwatch import Stopwatch

WARM_UP_CALLS = 3
MIN_CALLS = 8
MAX_CALLS = 200


def main(arguments: list[str]) -> int:
    """Measure and print."""
    runtime, what, seconds, described, *files = arguments
    builder, signature = find_builder(runtime), Signature.from_json(json.loads(described))
    calls = [_Call(builder, Path(file), signature) for file in files]
    if what == "memory":
        for call in calls:
            call.timed()
        result: Sequence[dict[str, Any]] = [{"peak_rss_bytes": _peak_rss_bytes()}]
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
        self._runner = builder.open_build(file, signature)
        random = np.random.default_rng(0)
        self._inputs = [
            random.random(sizes_of(spec, 1)).astype(numpy_type(spec)) for spec in signature.inputs
        ]

    def timed(self) -> float:
        """Seconds of one call."""
        watch = Stopwatch()
        self._runner.run(self._inputs)
        return watch.elapsed_s()


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
