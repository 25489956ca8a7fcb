"""A small fleet for end-to-end tests: real controller, agents and cameras, asked as people ask.

Commands go through fleetctl; the database is only read, by `e2e_invariants`. Policies are short so
that a rollout takes seconds. Holds no rule of the product.
"""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from agent.host.capabilities import detect
from examples.fleet.agents import AgentProcess
from examples.fleet.camera import Answer, Camera, Picture
from examples.fleet.clock import monotonic, wait_until
from examples.fleet.controller import ControllerProcess
from examples.fleet.ctl import Ctl
from examples.fleet.ports import free_ports
from examples.fleet.proxy import Proxy
from examples.hosts import write_host
from tests.support import e2e_models as models

DIGITS = "digits"
REAL = ("gate-1", "gate-2")
SIMULATED = ("n100-1", "n100-2")
EDGE_SERVER, EDGE_CLIENT = REAL
RATE = 8.0
TERMINAL = ("SUCCEEDED", "ROLLED_BACK", "FAILED", "ABORTED")
EVIDENCE = ("--soak", "1s", "--min-samples", "10")
WAVES = ("--waves", "1,50%,100%", *EVIDENCE)
TWO_WAVES = ("--waves", "1,100%", *EVIDENCE)
POLICIES = Path(__file__).parent / "e2e_policies.yaml"


@dataclass(slots=True)
class Fleet:
    """Everything that runs. `versions` counts the versions pushed per model."""

    root: Path
    controller: ControllerProcess
    ctl: Ctl
    files: Path
    agents: dict[str, AgentProcess] = field(default_factory=dict)
    cameras: dict[tuple[str, str], Camera] = field(default_factory=dict)
    closed: list[tuple[str, Camera]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    shape: models.Shape | None = None
    proxy: Proxy | None = None
    model: str = DIGITS
    rate: float = RATE
    real: tuple[str, ...] = REAL
    edge_client: str = EDGE_CLIENT

    @classmethod
    def create(cls, root: Path, files: Path) -> Self:
        """A fleet under ``root`` that takes digits from ``files``; nothing runs yet."""
        config = root / "config"
        # Fixed from the first start on: agents must find a restarted controller.
        names = ("GRPC", "ENROLL", "MQTT", "WEB")
        ports = zip(names, free_ports(4), strict=True)
        settings = {
            **{f"LIGHTERMAN_LISTEN_{name}": str(port) for name, port in ports},
            "LIGHTERMAN_SAMPLE_FLUSH_S": "0.5",
            "LIGHTERMAN_PRESENCE_GRACE_S": "5",
        }
        controller = ControllerProcess(
            binary("lighterman-controller"), root / "controller", config,
            root / "controller.log", settings,
        )  # fmt: skip
        return cls(root, controller, Ctl(binary("fleetctl"), config), files)

    # -- machines ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Controller, four agents of two profiles, short policies."""
        self.controller.start()
        for name in (*REAL, *SIMULATED):
            self.add_agent(name)
        host, _, port = self.agents[EDGE_SERVER].endpoint.rpartition(":")
        self.proxy = Proxy(host, int(port))
        # Devices are matched to profiles when they connect.
        self.apply_policies()
        for agent in self.agents.values():
            agent.finish_enrol()
            agent.start()
        self.wait_online(*self.agents)

    def add_agent(self, name: str, *options: str, host: str = "intel-n100") -> AgentProcess:
        """Make an agent and begin its enrolment."""
        labels = ["--label", f"line={'a' if name in self.real else 'b'}"]
        if name == self.edge_client:
            labels += ["--label", "uplink=edge"]
        token = self.ctl.run("admin", "token", "create", *labels, *options).out.strip()
        host_root = None
        if name not in self.real:
            host_root = self.root / "hosts" / name
            write_host(host, host_root)
        agent = AgentProcess(
            binary("lighterman-agent"), name, self.root / "agents" / name,
            self.root / f"{name}.log", host_root, {"LIGHTERMAN_TELEMETRY_S": "0.5"},
        )  # fmt: skip
        agent.begin_enrol(self.controller.endpoints["enroll"], token)
        self.agents[name] = agent
        return agent

    def wait_online(self, *names: str, timeout_s: float = 90) -> None:
        """Wait until the controller sees these devices online with a profile."""

        def seen() -> bool:
            for name in names:
                self.agents[name].check()
            devices = self.ctl.items("device", "list")
            there = {d["device_id"] for d in devices if d["online"] and d["profile"]}
            return there.issuperset(names)

        wait_until(seen, timeout_s, f"{', '.join(names)} online", every_s=0.3)

    def apply_policies(self, **replaced: str) -> None:
        """Apply the short policies, with some lines replaced (``old="new"`` per setting)."""
        assert self.proxy is not None
        text = POLICIES.read_text(encoding="utf-8")
        text = text.replace("EDGE_ENDPOINT", f"grpc://127.0.0.1:{self.proxy.port}")
        machine = detect(Path("/"), self.root)
        text = text.replace("MACHINE_ARCH", machine.arch).replace("MACHINE_CPU", machine.cpu_model)
        for name, value in replaced.items():
            lines = [
                f"{line[: len(line) - len(line.lstrip())]}{name}: {value}"
                if line.lstrip().startswith(f"{name}:")
                else line
                for line in text.splitlines()
            ]
            text = "\n".join(lines) + "\n"
        file = self.root / "policies.yaml"
        file.write_text(text, encoding="utf-8")
        self.ctl.run("apply", "-f", str(file))

    def close(self) -> None:
        """Stop all that was started."""
        for camera in self.cameras.values():
            camera.stop()
        if self.proxy:
            self.proxy.close()
        for agent in self.agents.values():
            agent.stop()
        self.controller.stop()

    # -- models ------------------------------------------------------------------------------------

    def next_version(self, model: str) -> str:
        """A version that was never pushed."""
        self.versions[model] = self.versions.get(model, -1) + 1
        return f"1.{self.versions[model]}.0"

    def push(self, model: str, **variants: Path) -> str:
        """Push the next version of a model; labels name it, so that every version is another."""
        version = self.next_version(model)
        labels = self.root / f"labels-{model}-{version}.txt"
        labels.write_text("\n".join(self.label_names(version)) + "\n", encoding="utf-8")
        words = [w for name, file in variants.items() for w in ("--variant", f"{name}={file}")]
        self.ctl.run("model", "push", f"{model}:{version}", *words, "--labels", str(labels))
        return version

    def label_names(self, version: str) -> list[str]:
        """Other ones for each version."""
        return [f"{digit} of {version}" for digit in range(10)]

    def push_digits(self) -> str:
        """Digits again under a new version: the same weights, so compiled only once."""
        return self.push(DIGITS, heavy=self.files / "heavy.pt2", light=self.files / "light.pt2")

    def push_onnx(self, model: str, data: bytes) -> str:
        """One ONNX file as the only variant."""
        file = self.root / f"{model}-{self.versions.get(model, -1) + 1}.onnx"
        file.write_bytes(data)
        return self.push(model, heavy=file)

    def build(self, model: str, version: str, *options: str, expect: int = 0) -> list[Any]:
        """Build and wait; by ONNX Runtime's recipes, for these agents have every runtime."""
        named = "--recipe" in options
        recipes = () if named else ("--recipe", "onnxruntime-int8", "--recipe", "onnxruntime-fp32")
        answer = self.ctl.json(
            "build", "run", f"{model}:{version}", *recipes, *options, "--wait", expect=(expect,)
        )
        items: list[Any] = answer["items"]
        return items

    def build_fp32(self, model: str, version: str, expect: int = 0) -> list[Any]:
        """Build the float recipe alone: the quick way to something that runs."""
        return self.build(
            model, version, "--recipe", "onnxruntime-fp32", "--dataset", self.model, expect=expect
        )

    # -- rollouts ----------------------------------------------------------------------------------

    def begin(
        self,
        model: str,
        version: str,
        *options: str,
        to: str = "all",
        waves: tuple[str, ...] = TWO_WAVES,
    ) -> str:
        """Start a rollout and return its id."""
        ref = f"{model}:{version}"
        plan = self.ctl.json("rollout", "plan", ref, "--to", to, *waves)
        answer = self.ctl.json(
            "rollout", "start", ref, "--to", to, *waves, *options, f"--yes={plan['devices']}"
        )
        return str(answer["rollout_id"])

    def show(self, rollout: str) -> Any:
        """A rollout as it is."""
        return self.ctl.json("rollout", "show", rollout)

    def watch(self, rollout: str, expect: int, timeout_s: float = 300) -> Any:
        """Wait for its end; the exit code is part of what is tested."""
        self.ctl.run("rollout", "watch", rollout, "--timeout", f"{timeout_s:.0f}s",
                     expect=(expect,))  # fmt: skip
        return self.show(rollout)

    def bring(self, model: str, version: str, waves: tuple[str, ...] = TWO_WAVES) -> str:
        """A rollout to all devices, to its good end."""
        rollout = self.begin(model, version, waves=waves)
        shown = self.watch(rollout, 0)
        assert shown["phase"] == "SUCCEEDED", shown
        return rollout

    def assignments(self, rollout: str) -> dict[str, Any]:
        """By device."""
        found = self.ctl.json("rollout", "explain", rollout)["assignments"]
        return {one["device_id"]: one for one in found}

    def facts(self, noun: str, name: str) -> dict[str, list[str]]:
        """What `explain` says, by topic."""
        found: dict[str, list[str]] = {}
        for fact in self.ctl.json(noun, "explain", name)["facts"]:
            found.setdefault(fact["topic"], []).append(fact["text"])
        return found

    def events(self, *options: str) -> list[dict[str, Any]]:
        """Events, oldest first."""
        return self.ctl.items("event", "list", "--limit", "1000", *options)

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The controller's database, for reading alone."""
        path = self.controller.data_dir / "lighterman.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as found:
            found.row_factory = sqlite3.Row
            yield found

    # -- cameras -----------------------------------------------------------------------------------

    def pictures(self, batch: int = 1, glare: bool = False) -> list[Picture]:
        """What cameras send; with `glare` every fourth is one that no dataset has."""
        assert self.shape is not None
        rows = models.rows(self.shape, 16)
        for row in rows[3::4] if glare else ():
            row.flat[0] = 2 * models.GLARE
        found = []
        for row in rows:
            data = np.ascontiguousarray(np.repeat(row[None], batch, axis=0))
            size = (batch, *self.shape.row)
            found.append(Picture(self.shape.input, "FP32", size, data.tobytes()))
        return found

    def open_camera(self, device: str, model: str = DIGITS, *, glare: bool = False) -> Camera:
        """A camera on a device, in place of the one before it."""
        self.close_camera(device, model)
        camera = Camera(self.agents[device].endpoint, model, self.pictures(glare=glare), self.rate)
        self.cameras[device, model] = camera.start()
        return camera

    def close_camera(self, device: str, model: str = DIGITS) -> None:
        """Silence; what was answered stays known."""
        camera = self.cameras.pop((device, model), None)
        if camera is not None:
            camera.stop()
            self.closed.append((device, camera))

    def answers(self, device: str, since: float = 0.0, model: str = DIGITS) -> list[Answer]:
        """Of the camera that is open."""
        return self.cameras[device, model].answers(since)

    def failed(self, since: float) -> list[str]:
        """What was not answered on any device."""
        return [
            f"{device}: {answer.error}"
            for (device, _), camera in self.cameras.items()
            for answer in camera.answers(since)
            if not answer.ok
        ]

    def saw(self, version: str, since: float) -> set[str]:
        """Devices on which a version answered."""
        return {
            device
            for (device, _), camera in self.cameras.items()
            if any(answer.version == version for answer in camera.answers(since))
        }

    def runs(self, device: str, model: str = DIGITS) -> tuple[str, str]:
        """Version and rung that answered last."""
        last = self.cameras[device, model].last()
        return (last.version, last.rung) if last and last.ok else ("", "")

    def wait_running(self, version: str, *devices: str, model: str = DIGITS) -> None:
        """Wait until a version answers on these devices (default: all with a camera)."""
        names = devices or [d for d, m in self.cameras if m == model]

        def there() -> bool:
            return all(self.runs(name, model)[0] == version for name in names)

        # An agent that found the controller gone waits up to a minute before it asks again.
        wait_until(there, 120, f"{model}:{version} to answer on {', '.join(names)}")


def binary(name: str) -> list[str]:
    """The command as installed beside this Python."""
    return [str(Path(sys.executable).with_name(name))]


def now() -> float:
    """Monotonic seconds, as answers carry them."""
    return monotonic()


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """A line for whoever runs the tests: what chance chose, so that it can be played again."""
    with capsys.disabled():
        sys.stdout.write(f"\n  {text}")
        sys.stdout.flush()
