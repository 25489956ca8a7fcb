"""Triton's own client, unmodified, over both roads: it finds the same by HTTP as by gRPC."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_api import HttpApi
from tests.support.serving import scaled

PROGRAM = Path(__file__).parent.parent / "support" / "triton_roads.py"

pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path)
    made.bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    yield made
    made.close()


@pytest.mark.parametrize("road", ["http", "grpc"])
def test_triton_s_client_finds_everything_it_expects(api: HttpApi, road: str) -> None:
    address = api.address if road == "http" else api.grpc_address
    key = f"/lighterman-test-{os.getpid()}-{road}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), road, address, "photo", key],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    y = [[2.0, 4.0, 6.0, 8.0]]
    assert (found["y"], found["there"], found["from_memory"]) == (y, y, y)
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["other_ready"] is False
    assert found["extensions"] == [
        "binary_tensor_data", "statistics", "model_repository", "system_shared_memory",
    ]  # fmt: skip
    assert (found["metadata"], found["inferred"]) == ("FP32", 1)
    assert found["index"] == [["photo", "1.0.0", "READY"]]
    assert "signed rollouts" in found["load"]
    assert "signed rollouts" in found["unload"]
    assert found["unknown"].startswith("model 'other' is not served here")
    assert "input 'x' has shape [1,3], expected [batch,4]" in found["wrong"]
    assert found["regions"] == [["both", key, 32]]
    assert found["in_answer"] is True
    for name, story in (
        ("again", "registered already"),
        ("too_large", "has shrunk to 32 bytes, 33 were registered"),
        ("beyond", "not inside region 'both' of 32 bytes"),
        ("unregistered", "is not registered"),
        ("gone", f"there is no shared memory {key}"),
    ):
        assert story in found[name], name
    if road == "http":
        ways = ("json", "binary", "json_binary", "binary_json", "gzip", "deflate", "async")
        assert {way: found[way] for way in ways} == dict.fromkeys(ways, y)
    else:
        assert [one for i, one in enumerate(found["stream"]) if i != 20] == [
            2 * i for i in range(50) if i != 20
        ]
        assert "has shape [1,3]" in found["stream"][20]
    assert api.bench.decisions == []
