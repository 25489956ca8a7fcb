"""The broker process: started, restarted, ended in every case, and clear about what it lacks."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.clock import SystemClock
from controller.errors import UnavailableError
from controller.mqtt.broker import Broker, end_stale, find_mosquitto
from controller.mqtt.broker_config import PID_FILE, render_acl
from controller.trust.authority import Authority
from examples.fleet.ports import free_port
from tests.support.gateway import broker_files
from tests.support.wait import wait_for

# A controller in small: starts a broker, says so, and waits for its death.
PARENT = """
import sys, signal
from datetime import UTC, datetime
from pathlib import Path
from controller.clock import SystemClock
from controller.mqtt.broker import Broker
from controller.mqtt.broker_config import render_acl
from controller.trust.authority import Authority
from tests.support.gateway import broker_files
authority = Authority.create(datetime.now(UTC))
files = broker_files(authority, render_acl([]))
Broker(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), SystemClock(), files).start()
print("up", flush=True)
signal.pause()
"""


def make(folder: Path, port: int | None = None) -> Broker:
    files = broker_files(Authority.create(datetime.now(UTC)), render_acl([]))
    return Broker(folder, "127.0.0.1", port or free_port(), SystemClock(), files)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = make(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


def pid_of(folder: Path) -> int:
    return int((folder / PID_FILE).read_text())


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_it_starts_and_ends(tmp_path: Path) -> None:
    broker = make(tmp_path / "broker")
    broker.start()
    pid = pid_of(broker.directory)
    assert lives(pid)
    assert broker.accepts()
    broker.stop()
    assert not lives(pid)
    assert not broker.accepts()


def test_it_comes_back_when_it_is_killed(broker: Broker) -> None:
    first = pid_of(broker.directory)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not lives(first), 20, "the broker to be gone")
    wait_for(broker.accepts, 20, "the broker to be back")
    assert pid_of(broker.directory) != first


def test_keys_are_private_and_belong_to_the_brokers_user(broker: Broker) -> None:
    key = (broker.directory / "server.key").stat()
    assert key.st_mode & 0o077 == 0
    owner = os.stat(f"/proc/{pid_of(broker.directory)}").st_uid
    assert key.st_uid == owner
    if os.geteuid() == 0:
        assert owner != 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_controller(tmp_path: Path, number: signal.Signals) -> None:
    folder, port = tmp_path / "broker", free_port()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), str(port)], stdout=subprocess.PIPE, env=environ
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        pid = pid_of(folder)
        assert lives(pid)
        parent.send_signal(number)
        parent.wait(10)
    wait_for(lambda: not lives(pid), 20, "the broker to end after its controller")
    again = make(folder, port)
    again.start()
    again.stop()


def test_negative_control_without_its_guardian_a_broker_outlives_its_controller(
    tmp_path: Path,
) -> None:
    """Why there is a guardian: the same death, the broker as a plain child."""
    config, pid_file = tmp_path / "plain.conf", tmp_path / "pid"
    config.write_text(f"listener {free_port()} 127.0.0.1\nallow_anonymous true\n")
    plain = (
        "import subprocess, sys, signal\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "print('up', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", plain, find_mosquitto(), "-c", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        parent.wait(10)
    pid = int(pid_file.read_text())
    assert lives(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_broker_that_was_left_behind_is_ended_first(tmp_path: Path) -> None:
    broker = make(tmp_path / "broker")
    broker.start()
    pid = pid_of(broker.directory)
    end_stale(broker.directory, SystemClock())
    assert not lives(pid)
    broker.stop()


def test_a_pid_file_of_somebody_else_ends_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()", "mosquitto.conf"]
    ) as bystander:
        (folder / PID_FILE).write_text(f"{bystander.pid}\n")
        end_stale(folder, SystemClock())
        assert bystander.poll() is None
        bystander.kill()
    (folder / PID_FILE).write_text("no number")
    end_stale(folder, SystemClock())


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"port {port} on 127.0.0.1"):
            make(tmp_path / "broker", port).start()


def test_a_missing_binary_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("controller.mqtt.broker.SEARCH", str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        make(tmp_path / "broker").start()
    assert "apt-get install mosquitto" in caught.value.text()


def test_a_broker_that_cannot_start_tells_its_last_line(tmp_path: Path) -> None:
    def damaged() -> dict[str, bytes]:
        files = dict(broker_files(Authority.create(datetime.now(UTC)), "")())
        return {**files, "server.pem": b"nonsense"}

    broker = Broker(tmp_path / "broker", "127.0.0.1", free_port(), SystemClock(), damaged)
    with pytest.raises(UnavailableError) as caught:
        broker.start()
    assert "its last line: " in caught.value.text()
    assert "none" not in caught.value.lines[0]
