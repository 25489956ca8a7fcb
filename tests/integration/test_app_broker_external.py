"""A controller with a Mosquitto that it does not run: its files, its lists, its certificates."""

import json
import os
import signal
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
from controller.errors import UnavailableError
from controller.mqtt.broker import find_mosquitto
from examples.fleet.ports import free_port
from lighterman.v1 import device_pb2, fleet_pb2, topics
from tests.support.gateway import Mqtt, Running, client_context, free_settings, running
from tests.support.wait import wait_for

# Tells the broker whose number stands beside it: what `systemctl reload mosquitto` does elsewhere.
RELOAD = """
import os, pathlib, signal
os.kill(int(pathlib.Path("pid").read_text()), signal.SIGHUP)
"""


@contextmanager
def foreign_mosquitto(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A broker started by somebody else with the controller's files, as they are."""
    wait_for((folder / "mosquitto.conf").exists, 20, "the broker's files")
    # Root's broker would become another user, who may not enter a test's folder.
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "as-is.conf").write_text(user + (folder / "mosquitto.conf").read_text())
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [find_mosquitto(), "-c", "as-is.conf"], cwd=folder, stdout=log, stderr=log
        )
    (folder / "pid").write_text(str(process.pid))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def readiness(home: Running, query: str = "") -> tuple[int, dict[str, str]]:
    """Status and checks of /readyz."""
    trust = ssl.create_default_context(cafile=str(home.folder / "ca.pem"))
    address = f"https://{home.listening.web}/readyz{query}"
    try:
        with urllib.request.urlopen(address, context=trust, timeout=5) as answer:
            return answer.status, json.loads(answer.read())["checks"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["checks"]


def broker_settings(folder: Path, port: int) -> dict[str, object]:
    """Settings of an external broker on `port`, reloaded by a script."""
    script = folder / "reload.py"
    script.write_text(RELOAD)
    return {
        "broker_address": f"127.0.0.1:{port}",
        "broker_advertise": f"localhost:{port}",
        "broker_reload": f"{sys.executable} {script}",
        "listen_mqtt": port,
    }


def hello(home: Running, device: str) -> tuple[Mqtt, str]:
    """An enrolled device with a live connection to the broker, and where it was sent."""
    token = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10).token
    enrolled = home.enrol(device, token)
    request = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
    enrolled.api().Hello(request, timeout=10)
    client = Mqtt(client_context(home.folder, enrolled.context))
    return client, enrolled.mqtt_endpoint


def test_it_serves_without_its_broker_and_uses_it_when_it_is_there(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "data" / "broker"
    with running(tmp_path / "data", **broker_settings(tmp_path, port)) as home:
        assert home.listening.mqtt == f"localhost:{port}"
        assert readiness(home)[0] == 503
        code, checks = readiness(home, "?exclude=broker")
        assert (code, checks["broker"]) == (200, "no connection to the broker")
        assert home.fleet().GetStatus(fleet_pb2.GetStatusRequest(), timeout=10).broker_ok is False
        with foreign_mosquitto(folder):
            wait_for(lambda: readiness(home)[0] == 200, 30, "the connection to the broker")
            device, endpoint = hello(home, "far-1")
            assert endpoint == f"localhost:{port}"
            assert device.open(port)
            device.subscribe(topics.device("far-1", topics.DOWN_DESIRED))
            device.close()
    assert (folder / "server.key").stat().st_mode & 0o077 == 0


def test_a_retired_device_loses_its_session_and_does_not_come_back(tmp_path: Path) -> None:
    port = free_port()
    with (
        running(tmp_path / "data", **broker_settings(tmp_path, port)) as home,
        foreign_mosquitto(tmp_path / "data" / "broker"),
    ):
        wait_for(lambda: readiness(home)[0] == 200, 30, "the connection to the broker")
        device, _ = hello(home, "far-2")
        other, _ = hello(home, "far-3")
        assert device.open(port)
        assert other.open(port)
        home.fleet().RetireDevice(fleet_pb2.DeviceRequest(device_id="far-2"), timeout=10)
        assert device.lost.wait(20)
        device.close()
        assert not hello_again(device, port)
        assert not other.lost.is_set()
        other.close()


def hello_again(device: Mqtt, port: int) -> bool:
    """Whether the broker lets the same certificate in once more."""
    context = device.client._ssl_context
    assert context is not None
    again = Mqtt(context)
    let_in = again.open(port)
    if let_in:
        again.close()
    return let_in


def test_a_failing_reload_is_tried_again_and_nobody_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    settings = broker_settings(tmp_path, port)
    with (
        running(tmp_path / "data", **settings) as home,
        foreign_mosquitto(tmp_path / "data" / "broker"),
    ):
        wait_for(lambda: readiness(home)[0] == 200, 30, "the connection to the broker")
        device, _ = hello(home, "far-4")
        assert device.open(port)
        (tmp_path / "reload.py").write_text("raise SystemExit('the road is closed')")
        home.fleet().RetireDevice(fleet_pb2.DeviceRequest(device_id="far-4"), timeout=10)
        wait_for(lambda: "the road is closed" in caplog.text, 20, "the failure to be told")
        assert not device.lost.is_set()
        (tmp_path / "reload.py").write_text(RELOAD)
        assert device.lost.wait(20)
        device.close()


def test_on_all_addresses_a_retired_device_still_loses_its_session(tmp_path: Path) -> None:
    """As in a pod: certificates carry names, never the address 0.0.0.0."""
    names = {"listen_host": "0.0.0.0", "advertise": ("127.0.0.1",)}
    with running(tmp_path / "data", **names) as home:
        wait_for(lambda: readiness(home)[0] == 200, 30, "the connection to the broker")
        port = int(home.listening.mqtt.rpartition(":")[2])
        device, _ = hello(home, "near-1")
        assert device.open(port)
        home.fleet().RetireDevice(fleet_pb2.DeviceRequest(device_id="near-1"), timeout=10)
        assert device.lost.wait(20)
        device.close()


def test_keys_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    with running(tmp_path / "first", trust_dir=str(keys)):
        pass
    assert sorted(path.name for path in keys.iterdir()) == [
        "authority.pem",
        "engines.pem",
        "signing.pem",
    ]
    assert not (tmp_path / "first" / "trust").exists()
    with running(tmp_path / "second", trust_dir=str(keys)):
        pass
    assert (tmp_path / "first" / "ca.pem").read_bytes() == (
        tmp_path / "second" / "ca.pem"
    ).read_bytes()


def test_a_folder_of_keys_that_lacks_them_and_takes_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    settings = free_settings(tmp_path / "data", trust_dir=str(file / "keys"))
    with pytest.raises(UnavailableError, match=r"keys in .*/file/keys can be neither read"):
        Controller(settings, contexts=False).start()


def test_operators_are_issued_to_standard_output(tmp_path: Path) -> None:
    with running(tmp_path / "data"):
        issue = [sys.executable, "-m", "controller", "operator", "issue", "--data-dir"]
        done = subprocess.run(
            [*issue, str(tmp_path / "data"), "bea", "--out", "-"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert json.loads(done.stdout)["name"] == "bea"
        assert done.stderr.startswith("operator bea, until ")
        assert not (tmp_path / "-").exists()
