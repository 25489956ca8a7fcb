"""A Mosquitto that somebody else runs: its files are kept in a folder here, a command brings them.

Starts and ends no broker, and cannot know whether the broker reads what it is given.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from controller.mqtt.broker_config import CONFIG_FILE, BrokerLimits, render_external_config
from controller.mqtt.broker_files import write_files

log = logging.getLogger("lighterman.broker")

RELOAD_S = 30.0
RETRY_S = 5.0


class ExternalBroker:
    """Same verbs as `Broker`. `refresh` gives the files (certificates, lists) as they are now."""

    def __init__(
        self,
        directory: Path,
        address: tuple[str, int],
        listen_port: int,
        command: Sequence[str],
        refresh: Callable[[], Mapping[str, bytes]],
        limits: BrokerLimits | None = None,
    ) -> None:
        self.directory = directory
        self.host, self.port = address
        self._listen_port = listen_port
        self._command = tuple(command)
        self._refresh = refresh
        self._limits = limits or BrokerLimits()

    @property
    def reach(self) -> str:
        """The host that a client connects to."""
        return self.host

    def start(self) -> None:
        """Write all files, the configuration too, and have them read. Waits for no broker."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = render_external_config(self._listen_port, self._limits)
        self.reload({**self._refresh(), CONFIG_FILE: config.encode()})

    def alive(self) -> bool:
        """Whether there is a process to speak of: always, it is not ours."""
        return True

    def reload(self, files: Mapping[str, bytes]) -> bool:
        """Write `files` and run the command; False when that failed and is to be tried again."""
        write_files(self.directory, files, None)
        if not self._command:
            log.warning(
                "the broker's files in %s are new: bring them to the broker and reload it "
                "(broker.reload names a command that does)",
                self.directory,
            )
            return True
        try:
            done = subprocess.run(
                self._command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RELOAD_S,
                check=False,
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            log.error("broker.reload cannot be run: %s", error)
            return False
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            log.error(
                "broker.reload ended with status %d: %s",
                done.returncode,
                said[-1] if said else "it said nothing",
            )
            return False
        return True

    def stop(self) -> None:
        """Leave the broker as it is."""
