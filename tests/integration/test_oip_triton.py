"""The inference API against a foreign client: Triton's own library, in its own process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.domain.probation import Trial, begin
from agent.serve.server import InferenceServer
from lighterman.oip import inference_pb2
from tests.support.serving import Bench, make_release, scaled

PROGRAM = Path(__file__).parent.parent / "support" / "triton_program.py"

# Prints every field of every message of the library's copy of the protocol.
FIELDS = """
from tritonclient.grpc import service_pb2
def walk(message):
    for f in message.fields:
        print(message.full_name, f.name, f.number, f.type, f.is_repeated)
    for nested in message.nested_types:
        walk(nested)
for message in service_pb2.DESCRIPTOR.message_types_by_name.values():
    walk(message)
"""

pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Bench, str]]:
    bench = Bench(tmp_path)
    server = InferenceServer(bench.host, bench.clock, "test", "127.0.0.1:0")
    yield bench, server.start()
    server.stop(grace_s=0)
    bench.host.close()


def run(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_triton_s_client_finds_everything_it_expects(served: tuple[Bench, str]) -> None:
    bench, address = served
    bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    found = run(address, "photo", "check")
    assert found["y"] == [[2.0, 4.0, 6.0, 8.0], [10.0, 12.0, 14.0, 16.0]]
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["other_ready"] is False
    assert (found["server"], found["platform"]) == ("lighterman-agent", "onnxruntime_onnx")
    assert (found["versions"], found["inputs"]) == (["1.0.0"], [["x", "FP32", [-1, 4]]])
    assert (found["id"], found["version"]) == ("q-7", "1.0.0")
    assert found["parameters"] == {"lighterman_version": "1.0.0", "lighterman_rung": "heavy"}
    assert found["large"] == [1_000_000, 4]
    assert found["unknown_model"][0] == "StatusCode.NOT_FOUND"
    assert found["wrong_version"][0] == "StatusCode.NOT_FOUND"
    assert found["wrong_shape"] == [
        "StatusCode.INVALID_ARGUMENT",
        "input 'x' has shape [1,5], expected [batch,4]",
    ]
    assert found["wrong_type"] == [
        "StatusCode.INVALID_ARGUMENT",
        "input 'x' is FP64, expected FP32",
    ]


def test_200_swaps_under_triton_s_load_fail_no_request(served: tuple[Bench, str]) -> None:
    bench, address = served
    factors = {"1.0.0": 2.0, "1.1.0": 3.0}
    rungs = {v: {"heavy": scaled(f), "light": scaled(f)} for v, f in factors.items()}
    made = {v: make_release(v, rungs[v]) for v in factors}
    bench.serve("1.0.0", rungs["1.0.0"])
    client = subprocess.Popen(
        [sys.executable, str(PROGRAM), address, "photo", "load", "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "first\n"
    now = "1.0.0"
    for _ in range(200):
        then = "1.1.0" if now == "1.0.0" else "1.0.0"
        bench.host.load(made[then], bench.paths(rungs[then]))
        bench.host.warm("photo", made[then].slot_id)
        row = begin(bench.clock.monotonic())
        bench.host.swap("photo", made[then].slot_id, Trial.COMMITTED, row, None)
        bench.host.unload("photo", made[now].slot_id)
        now = then
    out, _ = client.communicate("", timeout=30)
    found = json.loads(out)
    assert found["errors"] == []
    # Every answer has the factor of the version that it names.
    assert set(found["answers"]) == {"1.0.0 2", "1.1.0 3"}
    assert sum(found["answers"].values()) > 200


def test_every_field_is_triton_s(served: tuple[Bench, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIELDS], capture_output=True, text=True, timeout=60, check=True
    )
    theirs = set(done.stdout.splitlines())
    ours: set[str] = set()

    def walk(message: Any) -> None:
        for f in message.fields:
            ours.add(f"{message.full_name} {f.name} {f.number} {f.type} {f.is_repeated}")
        for nested in message.nested_types:
            walk(nested)

    for message in inference_pb2.DESCRIPTOR.message_types_by_name.values():
        walk(message)
    # KServe's map of properties is the one thing that Triton leaves out.
    own = {line for line in ours if "ModelMetadataResponse" in line and "ropert" in line}
    assert len(own) == 3
    assert ours - theirs == own
