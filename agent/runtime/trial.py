"""One build measured in a process of its own: loaded, warmed, soaked, timed. Serves nobody.

    python -P -m agent.runtime.trial       one question as JSON on stdin, lines of JSON on stdout

Says each phase as it begins, the figures at the end. Whoever asked may kill it at any moment; it
ends by itself when its stdin does, and gives way to whatever else wants the processor. Refuses to
report a first second as what a device sustains: what counts is timed behind warm-up and soak.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any

from agent.clock import SystemClock
from agent.domain.tensor import DType, Tensor
from agent.errors import AgentError
from agent.runtime.finite import all_finite
from agent.runtime.hosting import Hosting
from agent.runtime.registry import open_backend

FIRST_S = 1.0
MIN_CALLS, MAX_CALLS = 20, 200_000
# The kernel takes this process first when memory ends.
_OOM_SCORE = "1000"
_NICE = 19


def main() -> int:
    """Answer one question."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_asker, daemon=True).start()
    _give_way()
    try:
        say({"result": measure(asked, say, SystemClock().monotonic)})
    except AgentError as error:
        say({"failed": str(error)})
    # A runtime may raise anything; whatever it is, this build does not run here.
    except Exception as error:  # noqa: BLE001
        say({"failed": f"{type(error).__name__}: {error}"[:500]})
    return 0


def say(message: Mapping[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def measure(
    asked: Mapping[str, Any],
    tell: Callable[[Mapping[str, Any]], None],
    now_s: Callable[[], float],
) -> dict[str, Any]:
    """Figures of the build at `path`: milliseconds, bytes. Any error of the runtime is raised."""
    tell({"phase": "load"})
    opening = Hosting(open_backend, str(asked.get("python", "")))
    backend = opening(asked["runtime"], asked["path"], dict(asked["options"]))
    inputs = {spec["name"]: _made(spec) for spec in asked["inputs"]}
    if not all_finite(backend.run(inputs).values()):
        raise ValueError("its answers hold NaN or infinity")

    def calls(seconds: float, least: int) -> list[float]:
        times: list[float] = []
        end = now_s() + seconds
        while len(times) < MAX_CALLS and (len(times) < least or now_s() < end):
            began = now_s()
            backend.run(inputs)
            times.append(now_s() - began)
        return times

    tell({"phase": "warm-up"})
    first = calls(min(FIRST_S, float(asked["warmup_s"])), 3)
    calls(float(asked["warmup_s"]) - FIRST_S, 0)
    tell({"phase": "soak"})
    calls(float(asked["soak_s"]), 0)
    tell({"phase": "measure"})
    times = calls(float(asked["measure_s"]), MIN_CALLS)
    tell({"phase": "end"})
    return {
        "p50_ms": 1000 * quantile(times, 0.5),
        "p95_ms": 1000 * quantile(times, 0.95),
        "first_p50_ms": 1000 * quantile(first, 0.5),
        "n": len(times),
        "rss_bytes": _peak_rss_bytes(),
    }


def quantile(values: list[float], q: float) -> float:
    """The smallest value that at least the share `q` of all is not above."""
    ordered = sorted(values)
    return ordered[max(0, ceil(q * len(ordered)) - 1)]


def _made(spec: Mapping[str, Any]) -> Tensor:
    """An input that every run of this gets alike. Dynamic axes have the size 1, bytes a picture."""
    import random

    dtype = DType(spec["dtype"])
    shape = tuple(axis if isinstance(axis, int) else 1 for axis in spec["shape"])
    size = prod(shape)
    if dtype in (DType.FP32, DType.FP64):
        import array

        source = random.Random(0)
        kind = "f" if dtype is DType.FP32 else "d"
        data = array.array(kind, (source.random() for _ in range(size))).tobytes()
    elif dtype is DType.UINT8 and len(shape) > 2:
        data = random.Random(0).randbytes(size)
    else:  # places in a table, flags: 0 is always one
        data = bytes(size * dtype.item_bytes)
    return Tensor(spec["name"], dtype, shape, data)


def _peak_rss_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _give_way() -> None:
    """Serving comes first: for the processor, and when memory ends."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def _end_with_asker() -> None:
    """Whoever asked holds the other end of stdin; its end is the end of this, too."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
