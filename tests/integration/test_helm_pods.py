"""The pods that the chart renders, as processes: what Kubernetes would start does start and end."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.clock import SystemClock
from controller.trust.authority import Authority
from controller.trust.signing import Signer
from examples.fleet.ports import free_port, free_ports
from tests.support.containerfile import last, read_containerfile
from tests.support.pods import Pod, node_can_run, processes_in, running_node
from tests.support.wait import wait_for
from tools.check_helm import CHART, ROOT, render, value_sets

pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(node_can_run()), reason=node_can_run()),
]

MOSQUITTO = ROOT / "examples" / "kubernetes" / "mosquitto.yaml"
CONFIG = ("--config", "/etc/lighterman/controller.toml")


def values_here(name: str, **more: Any) -> dict[str, Any]:
    """A value set on free ports of this machine."""
    values: dict[str, Any] = {**value_sets()[name], "advertise": ["127.0.0.1"], **more}
    ports = zip(("grpc", "enroll", "mqtt", "web"), free_ports(4), strict=True)
    values["ports"] = dict(ports)
    if values.get("service", {}).get("type") == "NodePort":
        values["service"] = {"type": "ClusterIP"}  # its ports lie where no test may take them
    return values


def issue(pod: Pod, name: str, role: str, *config: str) -> bytes:
    """What `operator issue` writes, by the command that the chart's notes show."""
    command = ("lighterman-controller", "operator", "issue", name, "--role", role)
    done = pod.run(*command, *config, "--out", "-")
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


def fleet_status(pod: Pod, folder: Path, *config: str) -> dict[str, Any]:
    """`fleetctl status` of somebody outside, with a context that the pod issued."""
    context = folder / "ana.json"
    if not context.exists():
        context.write_bytes(issue(pod, "ana", "operator", *config))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "controller.cli", "--context", str(context)),
            *("status", "--output", "json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LIGHTERMAN_CONFIG_DIR": str(folder / "config")},
    )
    assert done.stdout, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def image_health() -> list[str]:
    """The command of the image's HEALTHCHECK."""
    check = last(read_containerfile("Containerfile.controller"), "HEALTHCHECK").rest
    return [str(word) for word in json.loads(check.partition(" CMD ")[2])]


def ends_well(pod: Pod) -> None:
    """SIGTERM: exit code 0 in half of the grace period, and nothing is left."""
    code, took_s = pod.end()
    assert code == 0, pod.text()
    assert took_s < float(pod.spec["terminationGracePeriodSeconds"]) / 2
    wait_for(lambda: not processes_in(pod.folder), 10, "all processes of the pod to be gone")


def test_the_defaults_serve_build_and_end(tmp_path: Path) -> None:
    release = render(CHART, values_here("embedded"))
    assert "Job" not in {one["kind"] for one in release}
    with running_node(release, {}) as node:
        pod = node.start("Deployment", "fleet-lighterman")
        pod.wait_ready()
        assert json.loads(pod.probe("readinessProbe")[1])["checks"] == {
            "store": "ok",
            "broker": "ok",
        }
        wait_for(
            lambda: fleet_status(pod, tmp_path, *CONFIG)["worker_count"] == 1,
            90,
            f"the embedded worker: {pod.text()}",
        )
        web = str(pod.container["ports"][-1]["containerPort"])
        health = [word.replace("7080", web) for word in image_health()]
        assert pod.run(*health).returncode == 0
        if os.geteuid() == 0:
            owner = (node.claim("fleet-lighterman-data") / "lighterman.db").stat().st_uid
            assert owner == pod.uid
        ends_well(pod)
        assert pod.run(*health).returncode != 0
        # The same volume, the next pod: nothing is made anew.
        authority = node.claim("fleet-lighterman-data") / "trust" / "authority.pem"
        before = authority.read_bytes()
        again = node.start("Deployment", "fleet-lighterman")
        again.wait_ready()
        assert authority.read_bytes() == before
        assert fleet_status(again, tmp_path, *CONFIG)["broker_ok"] is True
        ends_well(again)


@pytest.mark.postgres
def test_postgresql_and_an_external_broker(tmp_path: Path, postgres_url: str) -> None:
    port = free_port()
    values = values_here("postgres-external-broker")
    values["broker"]["external"] |= {
        "address": f"127.0.0.1:{port}",
        "advertise": f"localhost:{port}",
    }
    values["ports"]["mqtt"] = port
    authority = Authority.create(SystemClock().now())
    # As people write it: without the driver, and a file that ends with its line.
    url = postgres_url.replace("postgresql+psycopg", "postgresql") + "\n"
    secrets = {
        "fleet-database": {"url": url.encode()},
        "fleet-trust": {
            "authority.pem": authority.certificate_pem + authority.key_pem,
            "signing.pem": Signer.create().key_pem(),
        },
        "fleet-metrics": {"token": b"0123456789abcdef0123456789abcdef\n"},
    }
    others = list(yaml.safe_load_all(MOSQUITTO.read_text()))
    with running_node([*render(CHART, values), *others], secrets) as node:
        job = node.start("Job", "fleet-lighterman-migrate")
        assert job.process.wait(60) == 0, job.text()
        assert "the schema is up to date" in job.text()
        assert not (node.root / "claims").exists()
        broker = node.start("Deployment", "mosquitto")
        pod = node.start("Deployment", "fleet-lighterman")
        pod.wait_ready()
        wait_for(
            lambda: fleet_status(pod, tmp_path, *CONFIG)["broker_ok"],
            30,
            f"the connection to the broker: {pod.text()}{broker.text()}",
        )
        # A person who is revoked: the broker reads its lists again, and says so.
        issue(pod, "bea", "operator", *CONFIG)
        revoked = pod.run("lighterman-controller", "operator", "revoke", "bea", *CONFIG)
        assert revoked.returncode == 0, revoked.stderr
        wait_for(lambda: "Reloading config" in broker.text(), 30, f"a reload: {pod.text()}")
        wait_for(lambda: not (node.claim("mosquitto-files") / "reload").exists(), 10, "its end")
        # The next upgrade migrates beside the running controller.
        again = node.start("Job", "fleet-lighterman-migrate")
        assert again.process.wait(60) == 0, again.text()
        ends_well(pod)
        ends_well(broker)
        data = node.claim("fleet-lighterman-data")
        assert (data / "ca.pem").read_bytes() == authority.certificate_pem
        assert not (data / "lighterman.db").exists()
        assert not (data / "trust").exists()
        key = node.claim("mosquitto-files") / "server.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.postgres
def test_the_hardened_set_serves_on_volumes_and_keys_of_others(
    tmp_path: Path, postgres_url: str
) -> None:
    values = values_here("hardened")
    authority = Authority.create(SystemClock().now())
    secrets = {
        "fleet-database": {"dsn": postgres_url.encode()},
        "fleet-trust": {
            "authority.pem": authority.certificate_pem + authority.key_pem,
            "signing.pem": Signer.create().key_pem(),
        },
    }
    with running_node(render(CHART, values), secrets) as node:
        job = node.start("Job", "fleet-migrate")
        assert job.process.wait(60) == 0, job.text()
        pod = node.start("Deployment", "fleet")
        assert (pod.uid, pod.gid) == (65532, 65532)
        pod.wait_ready()
        checks = json.loads(pod.probe("readinessProbe")[1])["checks"]
        assert checks == {"store": "ok", "broker": "ok"}
        status = fleet_status(pod, tmp_path, *CONFIG)
        assert (status["broker_ok"], status["worker_count"]) == (True, 0)
        token = pod.run("cat", "/var/lib/lighterman/metrics.token")
        assert len(token.stdout.strip()) >= 32, token.stderr
        ends_well(pod)
        data = node.claim("fleet-data")
        assert (data / "ca.pem").read_bytes() == authority.certificate_pem
        assert not (data / "trust").exists()
        assert not (data / "lighterman.db").exists()


def test_workers_of_their_own(tmp_path: Path) -> None:
    secrets: dict[str, dict[str, bytes]] = {}
    with running_node(render(CHART, values_here("workers")), secrets) as node:
        pod = node.start("Deployment", "fleet-lighterman")
        pod.wait_ready()
        assert fleet_status(pod, tmp_path, *CONFIG)["worker_count"] == 0
        secrets["fleet-workers"] = {"worker.json": issue(pod, "workers", "worker", *CONFIG)}
        worker = node.start("Deployment", "fleet-lighterman-worker")
        wait_for(
            lambda: fleet_status(pod, tmp_path, *CONFIG)["worker_count"] == 1,
            90,
            f"the worker: {worker.text()}",
        )
        ends_well(worker)
        ends_well(pod)


def test_a_pod_without_its_volume_says_so(tmp_path: Path) -> None:
    """Negative control: the user of the pod can write to its volumes and to nothing else."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become the pod's user")
    with running_node(render(CHART, values_here("embedded")), {}) as node:
        claim = node.claim("fleet-lighterman-data")
        claim.mkdir(parents=True)
        claim.chmod(0o755)
        pod = node.start("Deployment", "fleet-lighterman")
        assert pod.process.wait(60) == 1
        assert "Permission denied" in pod.text()
