"""A process of its own that times ONNX files or shows the memory of one: nothing else is loaded.

Called as `python -m controller.optimize.measure_onnxruntime speed|memory SECONDS FILE…`; writes
one line of JSON. Reads no settings, writes no file.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from controller.optimize.stopwatch import Stopwatch

WARM_UP_CALLS = 3
MIN_CALLS = 8
MAX_CALLS = 200
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


def main(arguments: list[str]) -> int:
    """Measure and print."""
    what, seconds, files = arguments[0], float(arguments[1]), arguments[2:]
    calls = [_Call(file) for file in files]
    if what == "memory":
        for call in calls:
            call.timed()
        result: list[dict[str, float]] = [{"peak_rss_bytes": _peak_rss_bytes()}]
    else:
        result = _times(calls, seconds)
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

    def __init__(self, file: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        random = np.random.default_rng(0)
        self._feed: dict[str, object] = {}
        for entry in self._session.get_inputs():
            shape = [
                axis if isinstance(axis, int) else (1 if place == 0 else 8)
                for place, axis in enumerate(entry.shape)
            ]
            self._feed[entry.name] = random.random(shape).astype(_TYPES[entry.type])

    def timed(self) -> float:
        """Seconds of one call."""
        watch = Stopwatch()
        self._session.run(None, self._feed)
        return watch.elapsed_s()


def _times(calls: list[_Call], seconds: float) -> list[dict[str, float]]:
    """Call the files in turn, so that what else the machine does meets them alike."""
    for call in calls:
        for _ in range(WARM_UP_CALLS if call.timed() < 0.1 else 1):
            call.timed()
    times: list[list[float]] = [[] for _ in calls]
    watch = Stopwatch()
    while len(times[0]) < MIN_CALLS or (watch.elapsed_s() < seconds and len(times[0]) < MAX_CALLS):
        for place, call in enumerate(calls):
            times[place].append(call.timed())
    return [
        {
            "p50_ms": float(np.percentile(measured, 50)) * 1000,
            "p95_ms": float(np.percentile(measured, 95)) * 1000,
            "n": len(measured),
        }
        for measured in times
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
