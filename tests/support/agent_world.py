"""Real agents against the real controller: the controller in this process, agents as their own.

Publishes desired states straight through the controller's one writer of them, so that a test needs
no build. Holds no rule of the product.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from agent.domain.desired import DesiredModel
from agent.domain.release_json import model_to_json
from agent.status import Facts, read_facts
from controller.app import Controller, Listening
from controller.services.context import Ctx, Deps
from controller.services.desired import change_desired
from controller.services.events import EventFilter, EventView, list_events
from controller.services.tokens import create_token
from controller.settings import Settings
from controller.store import devices
from controller.store.devices import DeviceRow
from examples.fleet.ports import free_ports
from lighterman.oip import inference_pb2, inference_pb2_grpc
from tests.support.releases import digest_of
from tests.support.wait import wait_for


class ControllerWorld:
    """A controller that can go away and come back on the same data and ports."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        ports = free_ports(4)
        self.settings = Settings(
            data_dir=data_dir,
            listen_grpc=ports[0],
            listen_enroll=ports[1],
            listen_mqtt=ports[2],
            listen_web=ports[3],
            **{"workers": 0, "log_level": "warning", **settings},
        )
        self._controller: Controller | None = None
        self.listening: Listening | None = None

    def start(self) -> None:
        """Serve."""
        self._controller = Controller(self.settings, contexts=False)
        self.listening = self._controller.start()

    def stop(self) -> None:
        """Go away."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    @property
    def deps(self) -> Deps:
        """What services need."""
        assert self._controller is not None, "the controller is away"
        return self._controller._deps

    def ctx(self) -> Ctx:
        """A call that begins now."""
        assert self._controller is not None, "the controller is away"
        return self._controller.new_ctx("test")

    @property
    def url(self) -> str:
        """What people type at enrolment."""
        return f"https://127.0.0.1:{self.settings.listen_enroll}"

    def token(self, **options: Any) -> str:
        """A new enrolment token."""
        return create_token(self.deps, self.ctx(), **options).text

    def device(self, device_id: str) -> DeviceRow:
        """A device as stored."""
        with self.deps.store.read() as conn:
            row = devices.get_device(conn, device_id)
        assert row is not None, f"{device_id} is unknown"
        return row

    def events(self, device_id: str, *kinds: str) -> list[EventView]:
        """What is stored of a device, oldest first."""
        wanted = EventFilter(device_id=device_id, kinds=kinds)
        return list_events(self.deps, self.ctx(), wanted, limit=10_000)

    def publish(
        self, device_id: str, release: DesiredModel, rollout: str, files: Sequence[bytes]
    ) -> int:
        """Order a release under a rollout; gives the generation."""
        for data in files:
            self._put(data)
        entry: dict[str, Any] = {**model_to_json(release), "rollout": rollout}
        return self.order(device_id, release.model, entry)

    def order(self, device_id: str, model: str, entry: dict[str, Any] | None) -> int:
        """Change the desired entry of a model; None takes it away."""
        with self.deps.store.write() as conn:
            generation = change_desired(conn, self.deps, self.ctx(), device_id, model, entry)
        self.deps.wake()
        return generation

    def _put(self, data: bytes) -> None:
        path = self.settings.data_dir / "incoming-test"
        path.write_bytes(data)
        self.deps.blobs.put_file(path, digest_of(data))

    def states(self, device_id: str, rollout: str) -> list[str]:
        """The assignment states this device reported for a rollout, oldest first."""
        return [
            str(e.details["state"])
            for e in self.events(device_id)
            if e.rollout_id == rollout and "state" in (e.details or {})
        ]


@contextmanager
def running_controller(data_dir: Path, **settings: Any) -> Iterator[ControllerWorld]:
    """A controller for one test."""
    world = ControllerWorld(data_dir, **settings)
    world.start()
    try:
        yield world
    finally:
        world.stop()


class AgentProcess:
    """`lighterman-agent run` on a state folder of its own."""

    def __init__(self, state_dir: Path, device_id: str = "dev-1", **settings: str) -> None:
        self.state_dir = state_dir
        self.device_id = device_id
        self._env = {
            **os.environ,
            "LIGHTERMAN_STATE_DIR": str(state_dir),
            "LIGHTERMAN_SERVE_GRPC": "127.0.0.1:0",
            "LIGHTERMAN_SERVE_METRICS": "127.0.0.1:0",
            "LIGHTERMAN_SERVE_HTTP": "127.0.0.1:0",
            "LIGHTERMAN_TELEMETRY_S": "0.5",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = state_dir.parent / f"{state_dir.name}.log"

    def command(self, *words: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run another command of the agent."""
        return subprocess.run(
            [sys.executable, "-m", "agent", *words],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def enrol(self, url: str, token: str) -> "subprocess.CompletedProcess[str]":
        """Enrol; the result is the caller's to judge."""
        return self.command(
            "enroll", "--controller", url, "--token", token, "--device-id", self.device_id
        )

    def start(
        self, wait_s: float = 60, command: Sequence[str] = ("-m", "agent", "run")
    ) -> "AgentProcess":
        """Start, and wait until it serves (0: do not wait)."""
        log = self.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *command], env=self._env, stdout=log, stderr=log
        )
        log.close()
        if wait_s:
            wait_for(self._serves, wait_s, f"the agent to serve\n{self.tail()}")
        return self

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended:\n{self.tail()}"
        facts = self.facts()
        return facts is not None and bool(facts.listen_grpc)

    def facts(self) -> Facts | None:
        """What this very process wrote down of itself."""
        facts = read_facts(self.state_dir)
        if facts is None or self.process is None or facts.pid != self.process.pid:
            return None
        return facts

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def kill(self) -> None:
        """kill -9, as power and the kernel do."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return int(self.process.returncode)

    def infer(self, *values: float, model: str = "photo", timeout_s: float = 10) -> list[float]:
        """One request; grpc.RpcError when it fails."""
        facts = self.facts()
        assert facts is not None, "the agent does not run"
        with grpc.insecure_channel(facts.listen_grpc) as channel:
            return infer_on(channel, *values, model=model, timeout_s=timeout_s)


def infer_on(
    channel: grpc.Channel, *values: float, model: str = "photo", timeout_s: float = 10
) -> list[float]:
    """One request on a channel."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    data = np.array(values or (1.0, 2.0, 3.0, 4.0), np.float32)
    request.raw_input_contents.append(data.tobytes())
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    answer = stub.ModelInfer(request, timeout=timeout_s)
    return [float(v) for v in np.frombuffer(answer.raw_output_contents[0], np.float32)]


class Client:
    """Sends requests all the time, and counts what came back wrong or not at all."""

    def __init__(self, agent: AgentProcess, pause_s: float = 0.02, timeout_s: float = 10.0) -> None:
        facts = agent.facts()
        assert facts is not None
        self._channel = grpc.insecure_channel(facts.listen_grpc)
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._stop = threading.Event()
        self.answers: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._timeout_s + 5)
        self._channel.close()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            try:
                self.answers.append(self._ask())
            except grpc.RpcError as error:
                self.failures.append(str(error))

    def _ask(self) -> float:
        return infer_on(self._channel, 1.0, 1.0, 1.0, 1.0, timeout_s=self._timeout_s)[0]
