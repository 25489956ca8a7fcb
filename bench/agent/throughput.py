"""Requests per second of a served model against the runtime alone, on the same single core.

The agent, the least gRPC server that is possible (`bench.agent.bare`), one without any protocol
(`bench.agent.plain`) and the raw loop take turns on core 0, whoever asks sits on core 1. Rates
count only in rounds in which the raw loop had its core for itself; on a machine that is never quiet
the ratio is that of requests and inferences per CPU second, which others disturb little.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.agent.processes import cpu_s, pin
from bench.agent.world import MODEL
from examples.fleet.agents import AgentProcess

IN_FLIGHT = (8, 1)
SERVER_CORE, CLIENT_CORE = 0, 1
QUIET_SHARE = 0.97
QUIET_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, under which name, and who asks."""

    name: str
    pid: int
    client: "Peer"


class Peer:
    """A `bench.agent.peer` of one kind."""

    def __init__(self, *words: str, core: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.agent.peer", *words, str(core)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._read()

    def round(self, seconds: float) -> dict[str, Any]:
        """Work so long."""
        self.begin(seconds)
        return self.end()

    def begin(self, seconds: float) -> None:
        """Start to work so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """What came of it."""
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer ended with code {self._process.wait(10)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def measure(agent: AgentProcess, file: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over alternating rounds; failed requests are counted, not left out."""
    pin(agent.pid, SERVER_CORE)
    with ExitStack() as stack:

        def peer(*words: str, core: int) -> Peer:
            made = Peer(*words, core=core)
            stack.callback(made.close)
            return made

        raw = peer("raw", str(file), core=SERVER_CORE)
        bare = stack.enter_context(_server("bare", file))
        plain = stack.enter_context(_server("plain", file))
        turns = [
            Turn(
                str(number), agent.pid,
                peer("ask", agent.endpoint, MODEL, str(number), core=CLIENT_CORE),
            )
            for number in IN_FLIGHT
        ]  # fmt: skip
        # Right after the agent's turn with as many in flight: these two are compared.
        asks_bare = peer("ask", bare["address"], MODEL, str(IN_FLIGHT[0]), core=CLIENT_CORE)
        turns.insert(1, Turn("bare", bare["pid"], asks_bare))
        sends = peer("send", plain["address"], str(IN_FLIGHT[0]), core=CLIENT_CORE)
        turns.insert(2, Turn("plain", plain["pid"], sends))
        for one in (raw, *(turn.client for turn in turns)):
            one.round(0.5)
        found = [_with_bare(take_round(raw, turns, seconds)) for _ in range(rounds)]
    return _medians(found)


@contextmanager
def _server(name: str, file: Path) -> Iterator[dict[str, Any]]:
    """A `bench.agent.NAME` as long as the block runs: its address and pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"bench.agent.{name}", str(file), str(SERVER_CORE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(20)


def take_round(raw: Peer, turns: list[Turn], seconds: float) -> dict[str, float]:
    """The raw loop before and after each turn of a server: a machine gets faster and slower."""
    before = raw.round(seconds / 2)
    found = {"share": before["cpu_s"] / before["took_s"]}
    for turn in turns:
        name = turn.name
        used = cpu_s(turn.pid)
        served = turn.client.round(seconds)
        used = cpu_s(turn.pid) - used
        after = raw.round(seconds / 2)
        inferred = before["done"] + after["done"]
        at_most = inferred / (before["took_s"] + after["took_s"])
        rate = served["done"] / served["took_s"]
        cpu_ms = 1000 * used / served["done"]
        raw_cpu_ms = 1000 * (before["cpu_s"] + after["cpu_s"]) / inferred
        found |= {
            f"raw_per_s_{name}": at_most,
            f"served_per_s_{name}": rate,
            f"ratio_{name}": rate / at_most,
            f"cpu_ratio_{name}": raw_cpu_ms / cpu_ms,
            f"cpu_ms_{name}": cpu_ms,
            f"raw_cpu_ms_{name}": raw_cpu_ms,
            f"p99_ms_{name}": served["p99_ms"],
            f"failed_{name}": served["failed"],
        }
        found["share"] = min(found["share"], after["cpu_s"] / after["took_s"])
        before = after
    return found


def _with_bare(found: dict[str, float]) -> dict[str, float]:
    """And how the agent does by the least server of the same round."""
    found["of_bare"] = found["ratio_8"] / found["ratio_bare"]
    found["cpu_of_bare"] = found["cpu_ratio_8"] / found["cpu_ratio_bare"]
    return found


def _medians(found: list[dict[str, float]]) -> dict[str, Any]:
    quiet = [one for one in found if one["share"] >= QUIET_SHARE]
    by_rate = len(quiet) >= QUIET_ROUNDS
    counted = quiet if by_rate else found
    ratio = "ratio" if by_rate else "cpu_ratio"
    medians = {name: statistics.median(one[name] for one in counted) for name in found[0]}
    return {
        "throughput_ratio_8": round(medians[f"{ratio}_8"], 3),
        "throughput_ratio_1": round(medians[f"{ratio}_1"], 3),
        "bare_ratio_8": round(medians[f"{ratio}_bare"], 3),
        "plain_ratio_8": round(medians[f"{ratio}_plain"], 3),
        "throughput_of_bare": round(medians["of_bare" if by_rate else "cpu_of_bare"], 3),
        "throughput_ratio_by": "rate" if by_rate else "cpu time: the machine was never quiet",
        "throughput_quiet_rounds": len(quiet),
        "throughput_rounds": [
            {"rate": round(one["ratio_8"], 3), "cpu": round(one["cpu_ratio_8"], 3),
             "bare_rate": round(one["ratio_bare"], 3), "bare_cpu": round(one["cpu_ratio_bare"], 3),
             "plain_rate": round(one["ratio_plain"], 3),
             "plain_cpu": round(one["cpu_ratio_plain"], 3),
             "raw_share": round(one["share"], 2)}
            for one in found
        ],
        "served_per_s_8": round(medians["served_per_s_8"], 1),
        "raw_per_s": round(medians["raw_per_s_8"], 1),
        "cpu_ms_per_request_8": round(medians["cpu_ms_8"], 3),
        "cpu_ms_per_raw_inference": round(medians["raw_cpu_ms_8"], 3),
        "cpu_ms_per_bare_request_8": round(medians["cpu_ms_bare"], 3),
        "cpu_ms_per_plain_request_8": round(medians["cpu_ms_plain"], 3),
        "p99_ms_8": round(medians["p99_ms_8"], 1),
        "failed_requests": int(
            sum(one[f"failed_{turn}"] for one in found for turn in ("8", "1", "bare", "plain"))
        ),
    }  # fmt: skip
