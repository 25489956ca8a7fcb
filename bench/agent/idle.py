"""An idle agent: CPU, wake-ups, and what it sends and receives, scaled to a month of 30 days."""

import threading
from typing import Any

from bench.agent.processes import carried, cpu_s, wakeups
from bench.agent.world import World
from examples.fleet.agents import AgentProcess
from examples.fleet.clock import monotonic

MONTH_S = 30 * 86400.0
POLL_S = 900.0
# A device that was busy tells its last window within `telemetry_s`, and is idle from then on.
SETTLE_S = 15.0
# What an idle device says comes round every two minutes: less would count it twice, or not at all.
ROUND_S = 120.0
# A certificate of 30 days is renewed after 20: once or twice a month both roads are opened anew.
OPENINGS = 1.5
MB = 1e6


class Bytes:
    """Counts how often, and with how many bytes, an agent asks its controller for news."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid, self._port = pid, port
        self._first = carried(pid, port)
        self._last = self._first
        self.questions = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            now = carried(self._pid, self._port)
            # A question is over within a second, and the next one is ten away.
            if now.payload_bytes > self._last.payload_bytes:
                self.questions += 1
            self._last = now

    def stop(self) -> tuple[float, float]:
        """Bytes of one question: with TLS, and with TCP and IP around it."""
        self._over.set()
        self._thread.join(5)
        asked = max(1, self.questions)
        return (
            (self._last.payload_bytes - self._first.payload_bytes) / asked,
            (self._last.wire_bytes - self._first.wire_bytes) / asked,
        )


class Road:
    """Watches one connection of an agent for so many seconds, beside whatever else is measured."""

    def __init__(self, pid: int, port: int, seconds: float = ROUND_S) -> None:
        self._began, self._first = monotonic(), carried(pid, port)
        self._took_s, self._last = 0.0, self._first
        self._thread = threading.Thread(target=self._watch, args=(pid, port, seconds), daemon=True)
        self._thread.start()

    def _watch(self, pid: int, port: int, seconds: float) -> None:
        threading.Event().wait(seconds)
        self._last = carried(pid, port)
        self._took_s = monotonic() - self._began

    def figures(self) -> dict[str, float]:
        """Wait for the end; bytes a second, with TLS, and with TCP and IP around it."""
        self._thread.join()
        payload = self._last.payload_bytes - self._first.payload_bytes
        wire = self._last.wire_bytes - self._first.wire_bytes
        return {
            "broker_watched_s": round(self._took_s, 1),
            "broker_bytes_per_s": round(payload / self._took_s, 2),
            "broker_wire_bytes_per_s": round(wire / self._took_s, 2),
        }


def measure(agent: AgentProcess, seconds: float) -> dict[str, Any]:
    """Watch for so long; nobody asks it anything meanwhile."""
    began, cpu, woken = monotonic(), cpu_s(agent.pid), wakeups(agent.pid)
    threading.Event().wait(seconds)
    took_s = monotonic() - began
    return {
        "cpu_idle_pct": round(100 * (cpu_s(agent.pid) - cpu) / took_s, 3),
        "wakeups_per_s": round((wakeups(agent.pid) - woken) / took_s, 1),
    }


def opening_bytes(agent: AgentProcess, world: World) -> int:
    """What both roads of an agent without a model carried so far: handshakes, hello, reports."""
    return sum(carried(agent.pid, world.port(name)).payload_bytes for name in ("mqtt", "grpc"))


def per_month(figures: dict[str, Any], asked: Bytes) -> dict[str, Any]:
    """Broker all the time, a question every fifteen minutes, both roads opened 1.5 times."""
    question, question_wire = asked.stop()
    questions = MONTH_S / POLL_S
    fixed = OPENINGS * figures["opening_bytes"]
    payload = figures["broker_bytes_per_s"] * MONTH_S + question * questions + fixed
    wire = figures["broker_wire_bytes_per_s"] * MONTH_S + question_wire * questions + fixed
    return {
        "mb_per_month": round(payload / MB, 1),
        "mb_per_month_with_tcp_ip": round(wire / MB, 1),
        "question_bytes": round(question),
        "questions_seen": asked.questions,
    }
