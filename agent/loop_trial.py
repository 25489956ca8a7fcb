"""One measurement by a child process, watched from outside: see `loop_tuning`.

Refuses to go on when anybody asks the device anything, when it is too hot, or unasked: the child is
killed in any case before `run` returns.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.domain.ports import Clock
from agent.domain.tuning import Activity, Candidate, TuningOrder, is_hot, must_stop
from agent.errors import AgentError
from agent.host.energy import EnergyMeter
from agent.host.sensors import memory_available_bytes

LOOK_S = 0.1
# Beyond the times asked for: loading and compiling may take long on small boards.
LOAD_S = 900.0
SPARE_MEMORY_BYTES = 128 * 1024**2
CHILD = ("-P", "-m", "agent.runtime.trial")


class GaveWayError(AgentError):
    """The measurement ended for others; it is tried again."""


class UnmeasurableError(AgentError):
    """This build cannot be measured here; that is its result."""


@dataclass(frozen=True, slots=True)
class TrialParts:
    """What measuring is made of. `activity` looks anew each time."""

    clock: Clock
    activity: Callable[[], Activity]
    host_root: Path
    runtime_python: str = ""
    command: tuple[str, ...] = CHILD


class Trial:
    """`run` it once; `holds` says whether it is still asked for."""

    def __init__(
        self,
        parts: TrialParts,
        order: TuningOrder,
        one: Candidate,
        path: Path,
        holds: Callable[[], bool],
    ) -> None:
        self._parts, self._order, self._one, self._path = parts, order, one, path
        self._holds = holds
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._meter = EnergyMeter(parts.host_root)
        self._hottest: float | None = None
        self._measuring = False
        self._phase = "start"

    def run(self) -> dict[str, Any]:
        """The figures, as the report has them; GaveWayError, UnmeasurableError."""
        available = memory_available_bytes(self._parts.host_root)
        need = 2 * self._one.target.length + SPARE_MEMORY_BYTES
        if available is not None and available < need:
            raise UnmeasurableError(
                f"{available:,} bytes of memory are free, about {need:,} are needed"
            )
        child = subprocess.Popen(
            [sys.executable, *self._parts.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.sep,
        )
        try:
            return self._watch(child)
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def _watch(self, child: "subprocess.Popen[bytes]") -> dict[str, Any]:
        clock, order = self._parts.clock, self._order
        assert child.stdin is not None
        began = self._parts.activity()
        self._hottest = began.temperature_c
        with contextlib.suppress(OSError):  # it died at once: its silence says so
            child.stdin.write(json.dumps(self._question()).encode() + b"\n")
            child.stdin.flush()
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        deadline = clock.monotonic() + LOAD_S
        deadline += order.warmup_s + order.soak_s + 2 * order.measure_s
        while True:
            if not self._holds():
                raise GaveWayError("it is not asked for any more")
            self._look(began, deadline)
            with contextlib.suppress(queue.Empty):
                said = self._said.get(timeout=LOOK_S)
                if said is None:
                    raise UnmeasurableError(f"its process died at {self._phase}{_cause(child)}")
                if "failed" in said:
                    raise UnmeasurableError(str(said["failed"]))
                if "result" in said:
                    return self._figures(said["result"], began)
                self._begins(str(said.get("phase")))

    def _look(self, began: Activity, deadline: float) -> None:
        now, seen = self._parts.clock.monotonic(), self._parts.activity()
        if seen.temperature_c is not None:
            self._hottest = max(self._hottest or seen.temperature_c, seen.temperature_c)
        if self._measuring:
            self._meter.look(now)
        why = must_stop(began, seen, self._order.heat_limit_c)
        if why and is_hot(seen, self._order.heat_limit_c):
            raise UnmeasurableError(f"{why}: too hot to sustain it, at {self._phase}")
        if why:
            raise GaveWayError(why)
        if now > deadline:
            raise UnmeasurableError(f"it took too long, at {self._phase}")

    def _begins(self, phase: str) -> None:
        self._phase = phase
        if phase == "measure":
            self._measuring = True
            self._meter.begin(self._parts.clock.monotonic())
        elif phase == "end":
            self._meter.look(self._parts.clock.monotonic())
            self._measuring = False

    def _question(self) -> dict[str, Any]:
        one, order = self._one, self._order
        return {
            "runtime": one.runtime,
            "path": str(self._path),
            "python": self._parts.runtime_python,
            "options": {
                "intra_op_threads": 1, "digest": one.target.digest, **dict(one.options),
            },
            "inputs": [
                {"name": spec.name, "dtype": spec.dtype.value, "shape": list(spec.shape)}
                for spec in order.inputs
            ],
            "warmup_s": order.warmup_s,
            "soak_s": order.soak_s,
            "measure_s": order.measure_s,
        }  # fmt: skip

    def _listen(self, child: "subprocess.Popen[bytes]") -> None:
        assert child.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in child.stdout:
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if isinstance(said, dict):
                        self._said.put(said)
        self._said.put(None)

    def _figures(self, result: Mapping[str, Any], began: Activity) -> dict[str, Any]:
        joules, n = self._meter.joules, int(result["n"])
        return {
            **{name: result[name] for name in ("p50_ms", "p95_ms", "first_p50_ms", "n")},
            "rss_bytes": result.get("rss_bytes") or None,
            "temperature_start_c": began.temperature_c,
            "temperature_max_c": self._hottest,
            "energy_mj": None if joules is None else 1000 * joules / n,
            "energy_source": None if joules is None else self._meter.source,
        }


def _cause(child: "subprocess.Popen[bytes]") -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = child.wait(1.0)
        return f" by signal {-code}" if code < 0 else f" with exit code {code}"
    return ""
