"""The supervised Mosquitto: started, watched, restarted, told to reload, and always ended.

Its log lines go through our logger. Knows no message; certificates and lists come as bytes.
"""

import contextlib
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.clock import Clock
from controller.errors import UnavailableError
from controller.mqtt import guardian
from controller.mqtt.broker_config import CONFIG_FILE, PID_FILE, BrokerLimits, render_config
from controller.mqtt.broker_files import write_files

log = logging.getLogger("lighterman.broker")

RELOADED = "Reloading config."
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 10.0
SEARCH = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"))


def find_mosquitto() -> str:
    """Path of the broker's binary; UnavailableError names the package that is missing."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=SEARCH)
    if found is None:
        raise UnavailableError(
            "mosquitto is not installed, the controller needs it as its message broker",
            "install the package `mosquitto`, for example: apt-get install mosquitto",
        )
    return found


def check_port_free(host: str, port: int, what: str) -> None:
    """UnavailableError when somebody listens on `host:port` already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UnavailableError(
                f"port {port} on {host} cannot be used for {what}: {error.strerror}",
                f"end the process that holds it (`ss -ltnp 'sport = :{port}'`), or choose another",
            ) from error


class Broker:
    """One broker process behind its guardian. `files` are what its configuration names.

    `refresh` gives the files (certificates, lists) anew before every start.
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        port: int,
        clock: Clock,
        refresh: Callable[[], Mapping[str, bytes]],
        limits: BrokerLimits | None = None,
    ) -> None:
        self.directory = directory
        self.host = host
        self.port = port
        self._clock = clock
        self._refresh = refresh
        self._limits = limits or BrokerLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._reloaded = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last_line = ""

    @property
    def reach(self) -> str:
        """The host that a client on this machine connects to."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the broker and return when it accepts connections.

        Raises UnavailableError: no binary, port taken, or it ended at once (with its last line).
        """
        binary = find_mosquitto()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        end_stale(self.directory, self._clock)
        check_port_free(self.host, self.port, "the message broker")
        self._spawn(binary)
        self._thread = threading.Thread(
            target=self._supervise, args=(binary,), name="broker", daemon=True
        )
        self._thread.start()
        deadline = self._clock.monotonic() + timeout_s
        while not self.accepts():
            process = self._process
            ended = process is None or process.poll() is not None
            if ended or self._clock.monotonic() > deadline:
                self.stop()
                raise UnavailableError(
                    f"the message broker does not listen on {self.host}:{self.port}",
                    f"its last line: {self._last_line or 'none'}",
                    f"see for yourself: cd {self.directory} && {binary} -v -c {CONFIG_FILE}",
                )
            self._stopping.wait(0.05)

    def accepts(self) -> bool:
        """Whether something accepts connections on the broker's port."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1.0):
            return True
        return False

    def alive(self) -> bool:
        """Whether the guardian runs."""
        process = self._process
        return process is not None and process.poll() is None

    def reload(self, files: Mapping[str, bytes], timeout_s: float = 3.0) -> bool:
        """Write `files` and have the broker read them; True when it said that it did."""
        with self._lock:
            self._write(files)
            self._reloaded.clear()
            process = self._process
            if process is None or process.stdin is None:
                return False
            try:
                process.stdin.write(b"H")
                process.stdin.flush()
            except (OSError, ValueError):  # ended, or closed because it ended
                return False
        return self._reloaded.wait(timeout_s)

    def stop(self) -> None:
        """End the broker and wait for it."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            self._close_input(process)
            try:
                process.wait(guardian.TERM_S + 5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        end_stale(self.directory, self._clock)

    def _close_input(self, process: "subprocess.Popen[bytes]") -> None:
        """The end of its input is what the guardian ends the broker for."""
        with self._lock:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def _spawn(self, binary: str) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            user = broker_user()
            config = render_config(self.host, self.port, user, self._limits)
            self._write({**self._refresh(), CONFIG_FILE: config.encode()})
            # Isolated and without site: the guardian is small and starts at once.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guardian.__file__), binary, "-c", CONFIG_FILE],
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the controller
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            )

    def _supervise(self, binary: str) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            process, started = self._process, self._clock.monotonic()
            if process is not None and process.stderr is not None:
                for line in process.stderr:
                    self._note(line.decode("utf-8", "replace").rstrip())
                process.wait()
                process.stderr.close()
                self._close_input(process)
            if self._stopping.is_set():
                return
            if self._clock.monotonic() - started > 30.0:
                backoff_s = BACKOFF_FIRST_S
            log.error(
                "mosquitto ended by itself (last line: %s), next start in %.1f s",
                self._last_line,
                backoff_s,
            )
            if self._stopping.wait(backoff_s):
                return
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            end_stale(self.directory, self._clock)
            self._spawn(binary)

    def _note(self, line: str) -> None:
        if not line:
            return
        self._last_line = line
        if line.startswith(RELOADED):
            self._reloaded.set()
        level = logging.WARNING if line.startswith(("Error", "Warning")) else logging.DEBUG
        log.log(level, "%s", line)

    def _write(self, files: Mapping[str, bytes]) -> None:
        write_files(self.directory, files, _owner())


def broker_user() -> str:
    """The user that the broker becomes when we are root, else our own.

    One without a name (a container may run as any number) is none: only root's broker changes it.
    """
    if os.geteuid() != 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(os.geteuid()).pw_name
        return "nobody"
    for name in ("mosquitto", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return "root"


def _owner() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(broker_user())
    return entry.pw_uid, entry.pw_gid


def end_stale(directory: Path, clock: Clock) -> None:
    """End a broker of this directory that an earlier controller left behind.

    The pid alone proves nothing: command line and working directory must be ours too.
    """
    pid_file = directory / PID_FILE
    try:
        pid = int(pid_file.read_text("ascii").strip())
    except (OSError, ValueError):
        return
    born = _started(pid)
    if born is not None and _is_ours(pid, directory):
        _end(pid, born, clock)
    with contextlib.suppress(FileNotFoundError):
        pid_file.unlink()


def _end(pid: int, born: str, clock: Clock) -> None:
    """Signal until the process is gone.

    It is known by its start time: one that is ending has lost its command line and still holds
    its port.
    """
    deadline = clock.monotonic() + 5.0
    number = signal.SIGTERM
    waiting = threading.Event()
    while _started(pid) == born:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if clock.monotonic() > deadline:
            number = signal.SIGKILL
        waiting.wait(0.05)


def _started(pid: int) -> str | None:
    """When the process was started (kernel ticks); None when it is gone.

    An orphan may stay a zombie for ever: it holds no port and counts as gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return None


def _is_ours(pid: int, directory: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        where = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return False
    return CONFIG_FILE.encode() in command and where == directory.resolve()
