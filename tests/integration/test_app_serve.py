"""`lighterman-controller` as people run it: starts, tells where it listens, ends, resumes."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.app import Controller
from controller.errors import LightermanError, UnavailableError
from examples.fleet.ports import free_ports
from lighterman.v1 import fleet_pb2
from tests.support.gateway import Context, Running, channel, free_settings, read_context, running
from tests.support.wait import wait_for

ENDED = 20.0


def environ(folder: Path) -> dict[str, str]:
    names = ("GRPC", "ENROLL", "MQTT", "WEB")
    return {
        **{n: v for n, v in os.environ.items() if not n.startswith("LIGHTERMAN_")},
        **{f"LIGHTERMAN_LISTEN_{name}": "0" for name in names},
        "LIGHTERMAN_CONFIG_DIR": str(folder / "config"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A controller in a process of its own that said `ready`, and what it printed."""
    command = [sys.executable, "-m", "controller", "serve", "--data-dir", str(folder / "data")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=log, text=True, env=environ(folder)
        )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if lines[-1] == "ready":
                break
        assert lines[-1:] == ["ready"], (folder / "log").read_text()
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(ENDED)
        process.stdout.close()


def ours(folder: Path) -> list[int]:
    """Processes that work in or for this folder, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_text()
            cwd = os.readlink(entry / "cwd")
        except OSError:
            continue
        if stat != "Z" and (str(folder) in command or cwd.startswith(str(folder))):
            found.append(int(entry.name))
    return found


def status(folder: Path) -> fleet_pb2.GetStatusResponse:
    context = read_context(folder / "data" / "operator.json")
    with channel(context) as opened:
        call = opened.unary_unary(
            "/lighterman.v1.FleetService/GetStatus",
            request_serializer=fleet_pb2.GetStatusRequest.SerializeToString,
            response_deserializer=fleet_pb2.GetStatusResponse.FromString,
        )
        answer: fleet_pb2.GetStatusResponse = call(
            fleet_pb2.GetStatusRequest(), timeout=10, wait_for_ready=True
        )
        return answer


def test_it_serves_and_a_signal_ends_everything_with_exit_0(tmp_path: Path) -> None:
    with serving(tmp_path, "--log", "json") as (process, lines):
        told = json.loads((tmp_path / "data" / "endpoints.json").read_text())
        assert sorted(told) == ["enroll", "grpc", "mqtt", "web"]
        for name, line in zip(("grpc", "enroll", "mqtt", "web"), lines, strict=False):
            assert line.startswith(name)
            assert told[name] in line
        wait_for(lambda: status(tmp_path).broker_ok, 20, "the broker")
        wait_for(lambda: status(tmp_path).worker_count == 1, 60, "the build worker")
        process.send_signal(signal.SIGINT)
        assert process.wait(ENDED) == 0
    wait_for(lambda: not ours(tmp_path), 20, "all processes to be gone")
    for line in (tmp_path / "log").read_text().splitlines():
        assert json.loads(line)["level"] in ("info", "warning"), line


def test_the_context_of_this_host_is_current(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "workers=0"):
        config = tmp_path / "config"
        name = (config / "current").read_text().strip()
        context = config / "contexts" / f"{name}.json"
        assert context.stat().st_mode & 0o077 == 0
        assert json.loads(context.read_text())["schema"] == 1
        fleetctl = subprocess.run(
            [sys.executable, "-m", "controller.cli", "status"],
            env=environ(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert fleetctl.returncode == 0, fleetctl.stderr
        assert "nothing is wrong" in fleetctl.stdout


def test_kill_9_leaves_nothing_behind_and_a_restart_resumes(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        first = status(tmp_path)
        process.kill()
        process.wait(ENDED)
        wait_for(lambda: not ours(tmp_path), 20, "broker and worker to end after their controller")
    with serving(tmp_path, "--set", "workers=0"):
        again = status(tmp_path)
        assert again.started_at.ToDatetime() > first.started_at.ToDatetime()
        wait_for(lambda: status(tmp_path).broker_ok, 20, "the broker")


def test_it_can_be_killed_and_started_at_once_on_the_same_ports(tmp_path: Path) -> None:
    ports = dict(zip(("grpc", "enroll", "mqtt", "web"), free_ports(4), strict=True))
    flags = [f"--set=listen.{name}={port}" for name, port in ports.items()]
    for _ in range(4):
        with serving(tmp_path, "--set=workers=0", *flags) as (process, lines):
            assert str(ports["mqtt"]) in lines[2]
            wait_for(lambda: status(tmp_path).broker_ok, 20, "the broker")
            process.kill()


def test_a_second_controller_on_the_data_is_told_who_holds_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "workers=0") as (process, _):
        second = subprocess.run(
            [sys.executable, "-m", "controller", "serve", "--data-dir", str(tmp_path / "data")],
            env=environ(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert second.stdout == ""
        assert f"pid {process.pid}" in second.stderr
        assert second.stderr.startswith("error: ")
        assert len(second.stderr.splitlines()) == 2


def test_operators_are_issued_beside_a_running_controller(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "workers=0"):
        data = str(tmp_path / "data")
        issue = [sys.executable, "-m", "controller", "operator", "issue", "--data-dir", data]
        made = subprocess.run(
            [*issue, "bea", "--out", str(tmp_path / "bea.json")],
            env=environ(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "fleetctl --context" in made.stdout
        (tmp_path / "data" / "operator.json").write_bytes((tmp_path / "bea.json").read_bytes())
        assert status(tmp_path).broker_ok
        consumer = subprocess.run(
            [*issue, "dash", "--role", "consumer", "--out", str(tmp_path / "dash")],
            env=environ(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "mosquitto_sub" in consumer.stdout
        assert (tmp_path / "dash" / "key.pem").stat().st_mode & 0o077 == 0
        taken = subprocess.run(
            [*issue, "bea", "--role", "worker", "--out", str(tmp_path / "w.json")],
            env=environ(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 1
        assert "bea" in taken.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("app") / "data") as started:
        yield started


def test_health_is_told_over_https(home: Running) -> None:
    trust = ssl.create_default_context(cafile=str(home.folder / "ca.pem"))

    def ready() -> bool:
        address = f"https://{home.listening.web}/readyz"
        try:
            with urllib.request.urlopen(address, context=trust, timeout=5) as answer:
                body = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            return False
        assert body["checks"] == {"store": "ok", "broker": "ok"}
        return bool(body["ready"])

    wait_for(ready, 20, "readiness")
    with urllib.request.urlopen(
        f"https://{home.listening.web}/healthz", context=trust, timeout=5
    ) as answer:
        assert answer.read() == b"ok\n"


@pytest.mark.parametrize("port", ["listen_grpc", "listen_enroll", "listen_mqtt", "listen_web"])
def test_a_taken_port_is_an_error_and_everything_is_ended(
    home: Running, tmp_path: Path, port: str
) -> None:
    taken = getattr(home.controller.settings, port)
    second = Controller(free_settings(tmp_path / "data", **{port: taken}), contexts=False)
    with pytest.raises(UnavailableError) as caught:
        second.start()
    assert str(taken) in caught.value.text()
    assert not ours(tmp_path)
    free = Controller(free_settings(tmp_path / "data"), contexts=False)
    free.start()
    free.stop()
    assert not ours(tmp_path)


def test_damaged_keys_are_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder):
        pass
    file = folder / "trust" / "authority.pem"
    file.write_bytes(b"damaged")
    with pytest.raises(LightermanError, match="cannot be read"):
        Controller(free_settings(folder), contexts=False).start()
    assert file.read_bytes() == b"damaged"


def test_contexts_are_kept_over_restarts_and_made_anew_for_another_database(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"

    def certificate() -> bytes:
        with running(folder):
            context: Context = read_context(folder / "operator.json")
        return context.certificate_pem

    first = certificate()
    assert certificate() == first
    for file in folder.glob("lighterman.db*"):
        file.unlink()
    assert certificate() != first


def told_endpoints(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "data" / "endpoints.json").read_text())
    return found


def test_ports_left_to_chance_stay_over_a_restart_and_a_kill(tmp_path: Path) -> None:
    with serving(tmp_path, "--set=workers=0") as (process, _):
        first = told_endpoints(tmp_path)
        process.kill()
    with serving(tmp_path, "--set=workers=0") as (process, _):
        assert told_endpoints(tmp_path) == first
        wait_for(lambda: status(tmp_path).broker_ok, 20, "the broker")
        process.terminate()
        process.wait(ENDED)
    host, _, port = first["web"].rpartition(":")
    with socket.create_server((host, int(port))), serving(tmp_path, "--set=workers=0"):
        again = told_endpoints(tmp_path)
        assert again["web"] != first["web"]  # somebody else has it: a free one
        assert {**again, "web": ""} == {**first, "web": ""}
