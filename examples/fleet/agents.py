"""An agent process: `lighterman-agent enroll`, then `run`, with a state folder of its own."""

import os
import subprocess
from pathlib import Path

from examples.fleet.ports import free_port
from examples.fleet.processes import Child, ChildError


class AgentProcess(Child):
    """One device on this machine."""

    def __init__(
        self,
        binary: list[str],
        device_id: str,
        state_dir: Path,
        log: Path,
        host_root: Path | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self._binary = binary
        self.device_id = device_id
        self.state_dir = state_dir
        self.host_root = host_root
        self.endpoint = f"127.0.0.1:{free_port()}"
        env = {
            "LIGHTERMAN_STATE_DIR": str(state_dir),
            "LIGHTERMAN_SERVE_GRPC": self.endpoint,
            "LIGHTERMAN_SERVE_METRICS": "127.0.0.1:0",
            "LIGHTERMAN_SERVE_HTTP": "127.0.0.1:0",
            "LIGHTERMAN_TELEMETRY_S": "1",
            **({"LIGHTERMAN_HOST_ROOT": str(host_root)} if host_root else {}),
            **(settings or {}),
        }
        super().__init__(device_id, [*binary, "run"], env, log)
        self._enrolling: subprocess.Popen[str] | None = None

    def begin_enrol(self, endpoint: str, token: str) -> None:
        """Start enrolment; several devices may enrol at once."""
        self._enrolling = subprocess.Popen(
            [*self._binary, "enroll", "--controller", f"https://{endpoint}",
             "--token", token, "--device-id", self.device_id],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish_enrol(self, timeout_s: float = 180) -> str:
        """Wait for enrolment; returns what it said, ChildError where it failed."""
        assert self._enrolling is not None, "begin_enrol first"
        said, _ = self._enrolling.communicate(timeout=timeout_s)
        if self._enrolling.returncode:
            raise ChildError(f"{self.device_id} did not enrol: {said}")
        return said
