"""The demo's world: a controller, six agents of two profiles, cameras, one cuttable link.

Three agents see the real machine; three see a tree written from public documentation of an Intel
N100 board ("simulated host"): same processor, other identity and sensors. Latency and heat of
those three say nothing of a real N100.
"""

import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.demo.pressure import Burst
from examples.fleet.agents import AgentProcess
from examples.fleet.camera import Answer, Camera, Picture
from examples.fleet.clock import wait_until
from examples.fleet.controller import ControllerProcess
from examples.fleet.ctl import Ctl
from examples.fleet.proxy import Proxy
from examples.hosts import write_host

MODEL = "photo"
RATE = 4.5
REAL = ("gate-1", "gate-2", "gate-3")
SIMULATED = ("n100-1", "n100-2", "n100-3")
EDGE_SERVER = "gate-1"
EDGE_CLIENT = "n100-3"


def binary(name: str) -> list[str]:
    """The command as installed beside this Python."""
    return [str(Path(sys.executable).with_name(name))]


@dataclass(slots=True)
class World:
    """Everything that runs, and where it keeps its files."""

    root: Path
    controller: ControllerProcess
    ctl: Ctl
    agents: dict[str, AgentProcess] = field(default_factory=dict)
    cameras: dict[str, list[Camera]] = field(default_factory=dict)
    retired: list[Camera] = field(default_factory=list)
    heavy_ms: float = 0.0  # p50 of the slower heavy INT8 build, once there is one
    proxy: Proxy | None = None

    @classmethod
    def create(cls, root: Path) -> "World":
        """A world under ``root``; nothing runs yet."""
        config = root / "config"
        controller = ControllerProcess(
            binary("lighterman-controller"), root / "controller", config, root / "controller.log"
        )
        return cls(root, controller, Ctl(binary("fleetctl"), config))

    def start_controller(self) -> None:
        """Start it on its defaults; another port only where a default one is taken."""
        self.controller.start()

    def prepare_agents(self) -> None:
        """Give six agents their folders, hosts and ports, and the link that can be cut."""
        for name in (*REAL, *SIMULATED):
            host_root = None
            if name in SIMULATED:
                host_root = self.root / "hosts" / name
                write_host("intel-n100", host_root)
            self.agents[name] = AgentProcess(
                binary("lighterman-agent"),
                name,
                self.root / "agents" / name,
                self.root / f"{name}.log",
                host_root,
            )
        host, _, port = self.agents[EDGE_SERVER].endpoint.rpartition(":")
        self.proxy = Proxy(host, int(port))

    def enrol_agents(self) -> None:
        """Enrol and start them; those that wait for each other do it at once."""
        for name, agent in self.agents.items():
            labels = ["--label", f"line={'a' if name in REAL else 'b'}"]
            if name == EDGE_CLIENT:
                labels += ["--label", "uplink=edge"]
            token = self.ctl.run("admin", "token", "create", *labels).out.strip()
            agent.begin_enrol(self.controller.endpoints["enroll"], token)
        for agent in self.agents.values():
            agent.finish_enrol()
            agent.start()

    def device_ids(self) -> list[str]:
        """All six."""
        return list(self.agents)

    def wait_online(self, timeout_s: float) -> None:
        """Wait until the controller sees all six online with a profile."""

        def seen() -> bool:
            for agent in self.agents.values():
                agent.check()
            devices = self.ctl.items("device", "list")
            return sum(bool(d["online"] and d["profile"]) for d in devices) == len(self.agents)

        wait_until(seen, timeout_s, "all devices online", every_s=0.5)

    def open_cameras(self, pictures: list[Picture]) -> None:
        """One camera per device; each begins to send when its device has a model."""
        for name, agent in self.agents.items():
            camera = Camera(agent.endpoint, MODEL, pictures, RATE)
            self.cameras[name] = [camera.start()]

    def add_load(self, name: str, pictures: list[Picture], count: int) -> None:
        """More cameras on one device."""
        for _ in range(count):
            camera = Camera(self.agents[name].endpoint, MODEL, pictures, RATE)
            self.cameras[name].append(camera.start())

    def add_bursts(self, name: str, pictures: list[Picture], burst: Burst) -> None:
        """Cameras that fire at once, with several pictures in one request."""
        many = [
            Picture(p.name, p.datatype, (burst.pictures, *p.shape[1:]), p.data * burst.pictures)
            for p in pictures[: burst.cameras]
        ]
        for _ in range(burst.cameras):
            camera = Camera(
                self.agents[name].endpoint, MODEL, many, 1 / burst.every_s, in_step=True
            )
            self.cameras[name].append(camera.start())

    def drop_load(self, name: str) -> None:
        """Back to one camera on that device."""
        extra = self.cameras[name][1:]
        self.cameras[name] = self.cameras[name][:1]
        for camera in extra:
            camera.stop()
        self.retired += extra

    def answers(self, name: str, since: float = 0.0) -> list[Answer]:
        """Answers of a device's cameras, oldest first."""
        found = [a for camera in self.cameras[name] for a in camera.answers(since)]
        return sorted(found, key=lambda answer: answer.sent_at)

    def all_answers(self, since: float = 0.0) -> list[Answer]:
        """Answers of all cameras that ever sent."""
        cameras = [c for per_device in self.cameras.values() for c in per_device] + self.retired
        return [answer for camera in cameras for answer in camera.answers(since)]

    def rung_events(self, name: str) -> list[dict[str, Any]]:
        """Rung changes of one device, oldest first."""
        return self.ctl.items(
            "event", "list", "--device", name, "--kind", "rung_changed", "--limit", "200"
        )

    def close(self) -> None:
        """Stop all that was started."""
        for per_device in self.cameras.values():
            for camera in per_device:
                camera.stop()
        if self.proxy:
            self.proxy.close()
        for agent in self.agents.values():
            agent.stop()
        self.controller.stop()


def consumer_line(world: World) -> list[str]:
    """A `mosquitto_sub` command for the feed, with a consumer certificate of its own."""
    folder = world.root / "consumer"
    world.controller.issue("dashboard", role="consumer", out=folder)
    host, _, port = world.controller.endpoints["mqtt"].rpartition(":")
    return [
        "mosquitto_sub", "-h", host, "-p", port,
        "--cafile", str(folder / "ca.pem"),
        "--cert", str(folder / "cert.pem"),
        "--key", str(folder / "key.pem"),
        "-v", "-t", "lighterman/v1/feed/#",
    ]  # fmt: skip


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def apply_policies(world: World, queue_ms: float) -> None:
    """A profile for this machine, the policy with short times, one for the edge server's client."""
    assert world.proxy is not None, "prepare_agents first"
    text = (Path(__file__).parent / "policies.yaml").read_text(encoding="utf-8")
    for name, value in (
        ("EDGE_ENDPOINT", f"grpc://127.0.0.1:{world.proxy.port}"),
        ("MACHINE_ARCH", platform.machine()),
        ("MACHINE_CPU", _cpu_model()),
        ("QUEUE_MS", f"{queue_ms:.1f}"),
    ):
        text = text.replace(name, value)
    file = world.root / "policies.yaml"
    file.write_text(text, encoding="utf-8")
    world.ctl.run("apply", "-f", str(file))


def _cpu_model() -> str:
    """The processor as agents report it: the first "model name", else anything."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "*"
