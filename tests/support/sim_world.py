"""A real controller in this process, `fleet-sim` beside it, and versions that can be rolled out.

Builds are answered by the test instead of a worker: what a file holds is nothing to simulated
devices.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.domain.rollout import Phase
from controller.services.builds import start_build
from controller.services.devices import select_ids
from controller.services.objects import NewObject, apply_objects
from controller.services.rollouts import get_rollout, start_rollout
from controller.services.tokens import create_token
from controller.store import devices
from examples.hosts import write_host
from tests.support.catalogue import World, tiny_onnx
from tests.support.gateway import Running, running
from tests.support.wait import wait_for

PROFILE = "intel-n100"
MODEL = "digits"


@dataclass(slots=True)
class SimWorld:
    """Both, and what is asked of them."""

    home: Running
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def catalogue(self) -> World:
        """Pushes and builds, as a person now."""
        return World(self.home.deps, self.home.ctx("ana"))

    def simulate(self, count: int, *options: str, uses: int = 0) -> None:
        """Start `fleet-sim` and wait until all devices are online."""
        write_host(PROFILE, self.folder / "host")
        token = create_token(self.home.deps, self.home.ctx(), uses=uses or count).text
        with (self.folder / "sim.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.sim", "--controller",
                 f"https://{self.home.listening.enroll}", "--token", token, "--count", str(count),
                 "--host-root", str(self.folder / "host"), "--telemetry", "0.5", "--load-s", "0.05",
                 "--happenings", str(self.folder / "happenings"), "--json", *options],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def said(self) -> list[dict[str, Any]]:
        """What the simulation printed."""
        lines = (self.folder / "sim.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def happenings(self, kind: str) -> list[dict[str, Any]]:
        """What happened to the devices."""
        path = self.folder / "happenings"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [one for one in found if one["kind"] == kind]

    def log(self) -> str:
        """The end of what was printed."""
        return (self.folder / "sim.log").read_text()[-3000:]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self.process.wait(30)

    def bring(self, version: str, seed: int, waves: tuple[str, ...] = ("1", "100%")) -> str:
        """Push and build a version, start its rollout; returns its id."""
        world = self.catalogue
        world.push(f"{MODEL}:{version}", [("heavy", tiny_onnx(seed))])
        start_build(world.deps, world.ctx, model=MODEL, version=version, profiles=[PROFILE])
        world.finish_all()
        return self.start(version, waves)

    def start(self, version: str, waves: tuple[str, ...] = ("1", "100%"), to: str = "all") -> str:
        """Start a rollout of what is built."""
        world = self.catalogue
        spec = {"model": MODEL, "version": version, "selector": to, "waves": list(waves),
                "soak_s": 0.5, "min_samples": 3,
                "override_first_wave_reason": "a test" if waves == ("100%",) else ""}  # fmt: skip
        count = len(select_ids(world.deps, world.ctx, to))
        return start_rollout(world.deps, world.ctx, spec, count).rollout_id

    def wait_phase(self, rollout_id: str, *wanted: Phase, timeout_s: float = 60.0) -> None:
        """Wait until the rollout is in one of these phases."""

        def there() -> bool:
            found = get_rollout(self.home.deps, self.home.ctx(), rollout_id)
            assert found.phase in wanted, f"{found.phase}: {found.phase_reason}\n{self.log()}"
            return True

        wait_for(there, timeout_s, f"{rollout_id} to be {' or '.join(wanted)}")

    def wait_online(self, count: int) -> None:
        """Wait until so many devices are online at the controller."""

        def online() -> bool:
            with self.home.deps.store.read() as conn:
                found = devices.list_devices(conn, "default")
            return sum(one.online for one in found) == count

        wait_for(online, 60, f"{count} devices to be online\n{self.log()}")


@contextmanager
def simulated_fleet(folder: Path, **settings: Any) -> Iterator[SimWorld]:
    """A controller with a dataset and a quick policy; the simulation is started by the test."""
    with running(folder / "controller", **settings) as home:
        world = SimWorld(home, folder)
        world.catalogue.push_data(MODEL)
        quick = {"model": "*", "priority": 10,
                 "probation": {"min_inferences": 5, "min_s": 0.2, "max_s": 60}}  # fmt: skip
        apply_objects(home.deps, home.ctx(), [NewObject("Policy", "quick", quick)])
        try:
            yield world
        finally:
            world.stop()
