"""Versions swapped under load: each is loaded, warmed, swapped in, and the one before freed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.agent.throughput import CLIENT_CORE, SERVER_CORE, Peer
from bench.agent.world import MODEL

IN_FLIGHT = 4
AT_ONCE = 25
# The client asks as long as the swaps before took, and a little longer.
FIRST_LOAD_S, LONGER = 3.0, 1.1


def measure(file: Path, count: int) -> dict[str, Any]:
    """`swap_failures` are failed swaps, failed requests and decisions that nobody wanted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.agent.swapper", str(file), str(SERVER_CORE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["address"]
    client = Peer("ask", address, MODEL, str(IN_FLIGHT), core=CLIENT_CORE)
    done = answered = failed = decisions = 0
    failures: list[str] = []
    slowest, took_s, load_s = 0.0, 0.0, FIRST_LOAD_S
    try:
        while done < count:
            now = min(AT_ONCE, count - done)
            client.begin(load_s)
            process.stdin.write(f"{now}\n")
            process.stdin.flush()
            swapped = json.loads(process.stdout.readline())
            asked = client.end()
            done, answered = done + now, answered + asked["done"]
            failed += len(swapped["failures"]) + asked["failed"]
            failures += swapped["failures"] + asked["errors"]
            decisions = swapped["decisions"]
            took_s += swapped["took_s"]
            slowest = max(slowest, asked["p99_ms"])
            load_s = LONGER * swapped["took_s"]
    finally:
        client.close()
        process.stdin.close()
        process.wait(30)
    return {
        "swaps": done,
        "swap_failures": failed + decisions,
        "swap_ms": round(1000 * took_s / done, 1),
        "swap_answered": answered,
        "swap_p99_ms": round(slowest, 1),
        "swap_errors": failures[:5],
    }
