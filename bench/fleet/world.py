"""What the fleet bench runs: a controller on its embedded defaults and `fleet-sim`, as processes.

Versions are pushed and built as people do it. All versions are one tiny network, so that one
compile is enough: what a device infers is pretended anyway.
"""

import json
import signal
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from ssl import create_default_context
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.fleet.commits import Commits
from bench.fleet.figures import Cpu, cpu_s, find_child
from bench.fleet.happenings import Happenings
from examples.fleet.clock import monotonic, wait_until
from examples.fleet.controller import ControllerProcess
from examples.fleet.ctl import Ctl
from examples.fleet.processes import Child
from examples.hosts import write_host

PROFILE = "intel-n100"
MODEL = "bench"
SMALL = "small"  # the second model, for orders to single devices
GOOD = ("1.0.0", "1.1.0", "1.2.0")
BAD = "1.3.0"
SINGLE = "single"  # label of the devices that get orders of their own
SINGLES = 20
TELEMETRY_S = 10.0  # the agent's default

POLICY = """\
kind: Policy
name: bench
spec:
  model: "*"
  priority: 10
  probation: {min_inferences: 10, min_s: 1, max_s: 60}
"""


@dataclass(slots=True)
class World:
    """Both processes, and what is asked of them."""

    root: Path
    controller: ControllerProcess
    ctl: Ctl
    sim: Child | None = None
    singles: list[str] = field(default_factory=list)
    happenings: Happenings = field(init=False)

    def __post_init__(self) -> None:
        self.happenings = Happenings(self.root / "happenings")

    @classmethod
    def create(cls, root: Path) -> "World":
        """A world under `root`; nothing runs yet."""
        config = root / "config"
        controller = ControllerProcess(
            [_binary("lighterman-controller")],
            root / "controller",
            config,
            root / "controller.log",
            # The one setting that is not a default: a fleet enrols in minutes, not in months.
            {"LIGHTERMAN_ENROLL_PER_MINUTE": "1000000"},
        )
        return cls(root, controller, Ctl([_binary("fleetctl")], config))

    def prepare(self) -> None:
        """Start the controller, push and build all versions."""
        self.controller.start()
        files = self.root / "files"
        files.mkdir()
        (files / "net.onnx").write_bytes(_network())
        np.savez(files / "data.npz", **_data())
        (files / "policy.yaml").write_text(POLICY, encoding="utf-8")
        self.ctl.run("apply", "-f", str(files / "policy.yaml"))
        self.ctl.run("admin", "dataset", "push", "bench", str(files / "data.npz"))
        for number, ref in enumerate((*(f"{MODEL}:{v}" for v in (*GOOD, BAD)), f"{SMALL}:1.0.0")):
            labels = files / f"labels-{number}.txt"
            labels.write_text("".join(f"{n} of {number}\n" for n in range(10)), encoding="utf-8")
            self.ctl.run("model", "push", ref, "--variant", f"heavy={files / 'net.onnx'}",
                         "--labels", str(labels))  # fmt: skip
            self.ctl.run("build", "run", ref, "--profile", PROFILE, "--recipe",
                         "onnxruntime-fp32", "--dataset", "bench", "--wait")  # fmt: skip

    def simulate(self, devices: int) -> float:
        """Enrol and connect the fleet; seconds that took."""
        began = monotonic()
        write_host(PROFILE, self.root / "host")
        token = self.ctl.run("admin", "token", "create", "--uses", str(devices)).out.strip()
        self.sim = Child(
            "fleet-sim",
            [_binary("fleet-sim"), "--controller", f"https://{self.controller.endpoints['enroll']}",
             "--token", token, "--count", str(devices), "--host-root", str(self.root / "host"),
             "--telemetry", str(TELEMETRY_S), "--bad-version", BAD, "--json",
             "--happenings", str(self.root / "happenings")],
            {}, self.root / "fleet-sim.log",
        )  # fmt: skip
        self.sim.start()
        wait_until(
            lambda: self.standing().get("connected") == devices, 240, f"{devices} devices", 0.5
        )
        wait_until(lambda: self.online() == devices, 60, "all to be online", 0.5)
        took = monotonic() - began
        self.singles = [f"sim-{number:05d}" for number in range(1, min(SINGLES, devices // 2) + 1)]
        self.ctl.run(
            "device", "label", *self.singles, f"{SINGLE}=yes", f"--yes={len(self.singles)}"
        )
        return took

    def close(self) -> None:
        """End both."""
        if self.sim is not None:
            self.sim.stop()
        self.controller.stop()

    # -- looking -----------------------------------------------------------------------------------

    def standing(self) -> dict[str, Any]:
        """The newest line of the simulation; RuntimeError-like ChildError when it ended."""
        assert self.sim is not None
        self.sim.check()
        lines = self.sim.log.read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.startswith('{"schema_version": 1, "devices"')]
        answer: dict[str, Any] = json.loads(found[-1]) if found else {}
        return answer

    def online(self) -> int:
        """Devices that the controller sees online."""
        return int(self.ctl.json("status")["devices"].get("online", 0))

    def cpu(self) -> Cpu:
        """CPU seconds of every process up to now."""
        assert self.sim is not None
        pids = self.pids()
        return Cpu(monotonic(), {name: cpu_s(pid) for name, pid in pids.items()})

    def pids(self) -> dict[str, int]:
        """Process ids of controller, broker, worker and simulation."""
        assert self.sim is not None
        return {
            "controller": self.controller.pid,
            "broker": find_child(self.controller.pid, "mosquitto"),
            "worker": find_child(self.controller.pid, "worker"),
            "sim": self.sim.pid,
        }

    def metrics(self) -> dict[str, float]:
        """What /metrics says, summed over labels."""
        context = create_default_context(cafile=str(self.controller.data_dir / "ca.pem"))
        url = f"https://{self.controller.endpoints['web']}/metrics"
        with urllib.request.urlopen(url, context=context, timeout=20) as answer:
            text = answer.read().decode("utf-8")
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                short = name.partition("{")[0]
                found[short] = found.get(short, 0.0) + float(value)
        return found

    def commits(self) -> Commits:
        """Watches what the controller stores."""
        return Commits(self.controller.data_dir / "lighterman.db")

    # -- acting ------------------------------------------------------------------------------------

    def poll_all(self) -> None:
        """Let every simulated device fetch and verify its desired state once."""
        assert self.sim is not None
        assert self.sim.process is not None
        self.sim.process.send_signal(signal.SIGUSR1)


def _binary(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _network() -> bytes:
    """A linear classifier of 8x8 pictures."""
    weights = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "bench",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _data() -> dict[str, Any]:
    """Pictures for the gate; each is its own source."""
    chance = np.random.default_rng(2)
    return {
        "x": chance.normal(size=(200, 1, 8, 8)).astype(np.float32),
        "y": np.arange(200) % 10,
        "source": np.arange(200),
    }
