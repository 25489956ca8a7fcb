"""Six devices behind faulty roads, one of them on a disk that can be filled.

A fleet whose agents find controller and broker through relays, each its own.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from examples.fleet.clock import wait_until
from examples.fleet.processes import process_gone
from tests.faults.fleets import FaultyFleet
from tests.proxy import Proxy
from tests.support.roads import Roads

# An inference is called off after half of it: before a camera gives up waiting (10 s).
HANG_S = 8.0
# A version that eats memory wants more at once (`operator.EATEN_BYTES`).
MODEL_MEMORY_BYTES = 1_000_000_000


class FaultyWorld:
    """The fleet and what lies between its parts."""

    def __init__(self, fleet: FaultyFleet, seed: int, breaks: str = "") -> None:
        self.fleet = fleet
        self.roads: dict[str, Roads] = {}
        self.disks: list[str] = []
        self.no_disk = ""  # why no disk can be filled
        self._seed = seed
        self._breaks = breaks
        self._mounted: Path | None = None

    def start(self) -> None:
        """Controller and agents, short policies."""
        fleet = self.fleet
        fleet.controller.start()
        self._mount(fleet.root / "agents" / fleet.small_disk)
        for name in fleet.devices:
            fleet.add_agent(name)
        host, _, port = fleet.agents[fleet.edge_server].endpoint.rpartition(":")
        fleet.proxy = Proxy(host, int(port), self._seed)
        fleet.apply_policies()
        for number, (name, agent) in enumerate(fleet.agents.items()):
            agent.finish_enrol()
            self.roads[name] = Roads.lay(agent.state_dir, self._seed + number)
            agent.command = [sys.executable, "-m", "tests.support.routed_agent", "run"]
            agent.env |= {
                "ROUTES": self.roads[name].routes,
                "BREAK": self._breaks,
                "LIGHTERMAN_HANG_S": str(HANG_S),
                "LIGHTERMAN_MODEL_MEMORY_BYTES": str(MODEL_MEMORY_BYTES),
                "TZ": "UTC",  # the times of its log are compared with those of events
            }
            agent.start()
        fleet.wait_online(*fleet.devices)

    def close(self) -> None:
        """Stop all that was started."""
        self.fleet.close()
        for roads in self.roads.values():
            roads.close()
        if self._mounted is not None:
            subprocess.run(["umount", "-l", str(self._mounted)], check=False, capture_output=True)

    # -- disk --------------------------------------------------------------------------------------

    def _mount(self, place: Path) -> None:
        """A file system of its own for one device; without the right to mount there is none."""
        place.mkdir(parents=True)
        size = f"size={self.fleet.disk_bytes},mode=700"
        how = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)]
        try:
            done = subprocess.run(how, check=False, capture_output=True, text=True)
        except OSError as error:
            self.no_disk = str(error)
            return
        if done.returncode:
            self.no_disk = done.stderr.strip() or f"mount ended with code {done.returncode}"
            return
        self._mounted = place
        self.disks = [self.fleet.small_disk]

    def fill_disk(self, device: str) -> None:
        """Until not one byte more can be written."""
        filler = self.fleet.agents[device].state_dir / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 * 1024))
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0")

    def free_disk(self, device: str) -> None:
        """Room again."""
        (self.fleet.agents[device].state_dir / "filler").unlink(missing_ok=True)

    # -- processes ---------------------------------------------------------------------------------

    def broker_pid(self) -> int:
        """Process id of the supervised broker; 0 when none is known."""
        path = self.fleet.controller.data_dir / "run" / "broker" / "mosquitto.pid"
        try:
            return int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def kill_broker(self) -> None:
        """SIGKILL to the broker alone."""
        pid = self.broker_pid()
        if pid and not process_gone(pid):
            os.kill(pid, 9)

    def kill_controller(self) -> None:
        """SIGKILL; its broker ends by itself."""
        pid = self.broker_pid()
        self.fleet.controller.kill_hard()
        if pid:
            wait_until(lambda: process_gone(pid), 20, "the broker to end with its controller")
