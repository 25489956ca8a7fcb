"""A controller and agents of their own for the figures, started and asked as people do it."""

import sys
from pathlib import Path
from typing import Any

from bench.agent import lite0
from examples.fleet.agents import AgentProcess
from examples.fleet.clock import wait_until
from examples.fleet.controller import ControllerProcess
from examples.fleet.ctl import Ctl

MODEL = "photo"
VERSION = "1.0.0"
PORTS = ("GRPC", "ENROLL", "MQTT", "WEB")


def binary(name: str) -> list[str]:
    """The command as installed beside this Python."""
    return [str(Path(sys.executable).with_name(name))]


class World:
    """Everything that runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = root / "config"
        self.controller = ControllerProcess(
            binary("lighterman-controller"), root / "controller", config, root / "controller.log",
            {f"LIGHTERMAN_LISTEN_{name}": "0" for name in PORTS},
        )  # fmt: skip
        self.ctl = Ctl(binary("fleetctl"), config)
        self.agents: list[AgentProcess] = []

    def add_agent(self, name: str, **settings: str) -> AgentProcess:
        """Enrol an agent with the settings that a device has, and start it."""
        token = self.ctl.run("admin", "token", "create", "--label", f"bench={name}").out.strip()
        agent = AgentProcess(
            binary("lighterman-agent"), name, self.root / name, self.root / f"{name}.log",
            settings=settings,
        )  # fmt: skip
        del agent.env["LIGHTERMAN_TELEMETRY_S"]  # the default is what is measured
        agent.env.update(settings)
        agent.begin_enrol(self.controller.endpoints["enroll"], token)
        agent.finish_enrol()
        agent.start()
        self.agents.append(agent)
        wait_until(lambda: self._is_online(name), 60, f"{name} online", every_s=0.3)
        return agent

    def _is_online(self, name: str) -> bool:
        devices = self.ctl.items("device", "list")
        return any(d["device_id"] == name and d["online"] for d in devices)

    def port(self, listener: str) -> int:
        """Where the controller listens: grpc, mqtt."""
        return int(self.controller.endpoints[listener].rpartition(":")[2])

    def build(self, files: Path) -> None:
        """Lite0 INT8 through the controller's own optimizer and gate."""
        self.ctl.run(
            "model", "push", f"{MODEL}:{VERSION}", "--variant", f"light={files / 'lite0.pt2'}",
            "--labels", str(files / "labels.txt"),
        )  # fmt: skip
        self.ctl.run("admin", "dataset", "push", MODEL, str(files / "photos.npz"))
        builds = self.ctl.json(
            "build", "run", f"{MODEL}:{VERSION}", "--recipe", "onnxruntime-int8",
            "--dataset", MODEL, "--wait", expect=(0, 1),
        )["items"]  # fmt: skip
        if any(one["state"] == "refused" for one in builds):
            # What it costs is measured here, not how well it recognises.
            for profile in {one["profile"] for one in builds if one["state"] == "refused"}:
                self.ctl.run(
                    "build", "override", f"{MODEL}:{VERSION}", "--profile", profile,
                    "--reason", "only its cost is measured",
                )  # fmt: skip

    def roll_out(self, agent: AgentProcess) -> Path:
        """Bring the build to one agent; gives its file there once it answers."""
        self.ctl.run(
            "rollout", "start", f"{MODEL}:{VERSION}", "--to", f"bench={agent.device_id}",
            "--waves", "1,100%", "--yes=1",
        )  # fmt: skip
        wait_until(lambda: self._runs(agent), 90, "the model to answer", every_s=0.3)
        (file,) = (agent.state_dir / "blobs").glob("sha256-*")
        return file

    def _runs(self, agent: AgentProcess) -> bool:
        agent.check()
        return bool(served(agent))

    def close(self) -> None:
        """Stop all that was started."""
        for agent in self.agents:
            agent.stop()
        self.controller.stop()


def served(agent: AgentProcess) -> list[Any]:
    """Its models that answer now, as `lighterman-agent status` shows them."""
    import json

    try:
        body = json.loads((agent.state_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in body.get("models", []) if one.get("version")]


__all__ = ["MODEL", "World", "lite0", "served"]
