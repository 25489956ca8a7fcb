"""A controller process: `lighterman-controller serve` on its embedded defaults."""

import json
import os
import socket
import subprocess
from pathlib import Path

from examples.fleet.processes import Child, ChildError, process_gone, wait_log_line

DEFAULT_PORTS = {
    "LIGHTERMAN_LISTEN_GRPC": 7443,
    "LIGHTERMAN_LISTEN_ENROLL": 7444,
    "LIGHTERMAN_LISTEN_MQTT": 8883,
    "LIGHTERMAN_LISTEN_WEB": 7080,
}


def port_free(port: int) -> bool:
    """Whether nobody listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class ControllerProcess(Child):
    """Starts, kills and restarts one controller; knows where it listens."""

    def __init__(
        self,
        binary: list[str],
        data_dir: Path,
        config_dir: Path,
        log: Path,
        settings: dict[str, str] | None = None,
    ) -> None:
        self._binary = binary
        self.data_dir = data_dir
        self.starts = 0
        env = {"LIGHTERMAN_CONFIG_DIR": str(config_dir), **(settings or {})}
        command = [*binary, "serve", "--data-dir", str(data_dir)]
        super().__init__("controller", command, env, log)

    def start(self) -> None:
        """Start and wait until it is ready; a taken default port is replaced by a free one."""
        if self.starts == 0:
            taken = [name for name, port in DEFAULT_PORTS.items() if not port_free(port)]
            self.env.update({name: "0" for name in taken if name not in self.env})
        behind = self.log.stat().st_size if self.log.exists() else 0
        super().start()
        self.starts += 1
        wait_log_line(self, "ready", 60, behind)

    @property
    def endpoints(self) -> dict[str, str]:
        """host:port of grpc, enroll, mqtt and web."""
        text = (self.data_dir / "endpoints.json").read_text(encoding="utf-8")
        endpoints: dict[str, str] = json.loads(text)
        return endpoints

    def issue(self, name: str, role: str, out: Path) -> None:
        """`lighterman-controller operator issue` beside the running controller."""
        done = subprocess.run(
            [*self._binary, "operator", "issue", name, "--role", role, "--out", str(out),
             "--data-dir", str(self.data_dir)],
            env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ChildError(f"operator issue {name} failed: {done.stderr}{done.stdout}")

    def kill_hard(self) -> int:
        """kill -9; returns the pid that is gone."""
        pid = self.pid
        self.kill()
        assert process_gone(pid)
        return pid
