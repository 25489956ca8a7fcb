"""Second operators, consumers of the feed, and the life of a device from token to retirement."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from examples.fleet.clock import wait_until
from examples.fleet.ctl import Ctl
from tests.support.e2e_invariants import check_invariants
from tests.support.e2e_jobs import model_ready
from tests.support.e2e_world import DIGITS, SIMULATED, Fleet, binary

FEED = "lighterman/v1/feed/#"


@pytest.fixture(scope="module")
def consumer(started: Fleet) -> Path:
    """A folder with a consumer's certificate."""
    folder = started.root / "consumer"
    started.controller.issue("dashboard", "consumer", folder)
    return folder


def subscribe(fleet: Fleet, folder: Path, topic: str, count: int, wait_s: int) -> Any:
    """`mosquitto_sub` as people type it."""
    host, _, port = fleet.controller.endpoints["mqtt"].rpartition(":")
    return subprocess.run(
        [
            "mosquitto_sub", "-h", host, "-p", port,
            "--cafile", str(folder / "ca.pem"),
            "--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem"),
            "-v", "-t", topic, "-C", str(count), "-W", str(wait_s),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_consumer_reads_the_health_of_every_device(fleet: Fleet, consumer: Path) -> None:
    topic = "lighterman/v1/feed/default/device/+/health"
    done = subscribe(fleet, consumer, topic, 4, 20)
    assert done.returncode == 0, done.stderr
    documents = {}
    for line in done.stdout.splitlines():
        where, _, text = line.partition(" ")
        documents[where.split("/")[-2]] = json.loads(text)
    assert len(documents) >= 1
    for document in documents.values():
        assert document["schema_version"] == 1
        assert {one["model"] for one in document["models"]} >= {DIGITS}


def test_a_consumer_reads_nothing_else(fleet: Fleet, consumer: Path) -> None:
    others = ("lighterman/v1/device/#", "lighterman/v1/device/gate-1/up/report", "$SYS/#")
    with ThreadPoolExecutor() as pool:  # each listens in vain: let them do it at once
        wild = pool.submit(subscribe, fleet, consumer, "#", 1000, 3)
        found = {t: pool.submit(subscribe, fleet, consumer, t, 1, 3) for t in others}
    lines = wild.result().stdout.splitlines()
    assert {line.split("/")[2] for line in lines if "/" in line} <= {"feed"}
    for topic, done in found.items():
        assert done.result().stdout == "", (topic, done.result().stdout)


def test_a_consumer_writes_nothing(fleet: Fleet, consumer: Path) -> None:
    host, _, port = fleet.controller.endpoints["mqtt"].rpartition(":")
    topic = "lighterman/v1/feed/default/device/nobody/health"
    subprocess.run(
        [
            "mosquitto_pub", "-h", host, "-p", port, "-r",
            "--cafile", str(consumer / "ca.pem"),
            "--cert", str(consumer / "cert.pem"), "--key", str(consumer / "key.pem"),
            "-t", topic, "-m", "{}", "-q", "1",
        ],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    done = subscribe(fleet, consumer, topic, 1, 2)
    assert done.stdout == ""


@pytest.fixture(scope="module")
def ana_file(started: Fleet) -> Path:
    """The context of a second operator."""
    file = started.root / "ana.json"
    started.controller.issue("ana", "operator", file)
    return file


def test_a_second_operator_acts_under_a_name_of_their_own(fleet: Fleet, ana_file: Path) -> None:
    file = ana_file
    assert file.stat().st_mode & 0o777 == 0o600
    ana = Ctl([*binary("fleetctl"), "--context", str(file)], fleet.root / "nowhere")
    ana.run("device", "label", "gate-1", "seen-by=ana")
    found = ana.items("device", "list", "-l", "seen-by=ana")
    assert [one["device_id"] for one in found] == ["gate-1"]
    events = fleet.events("--device", "gate-1")
    assert any(one["actor"] == "ana" for one in events), events[-5:]
    ana.run("device", "label", "gate-1", "seen-by-")
    assert ana.items("device", "list", "-l", "seen-by=ana") == []


def test_a_consumer_is_no_operator(fleet: Fleet, consumer: Path, ana_file: Path) -> None:
    context = json.loads(ana_file.read_text(encoding="utf-8"))
    context |= {
        "name": "dashboard",
        "certificate_pem": (consumer / "cert.pem").read_text(encoding="utf-8"),
        "key_pem": (consumer / "key.pem").read_text(encoding="utf-8"),
    }
    file = fleet.root / "dashboard.json"
    file.write_text(json.dumps(context), encoding="utf-8")
    file.chmod(0o600)
    dashboard = Ctl([*binary("fleetctl"), "--context", str(file)], fleet.root / "nowhere")
    refused = dashboard.run("device", "list", expect=(4,))
    assert refused.err.startswith("error: "), refused


@contextmanager
def following(fleet: Fleet, *arguments: str) -> Iterator[Callable[[], list[Any]]]:
    """A command that goes on until Ctrl-C; gives the JSON documents that it has printed so far."""
    out, errors = (fleet.root / f"{arguments[-1]}.{kind}" for kind in ("jsonl", "err"))
    with out.open("wb") as target, errors.open("wb") as said:
        process = subprocess.Popen(
            [*binary("fleetctl"), *arguments, "--output", "json"],
            stdin=subprocess.DEVNULL, stdout=target, stderr=said,
            env={**os.environ, "LIGHTERMAN_CONFIG_DIR": str(fleet.root / "config")},
        )  # fmt: skip

    def documents() -> list[Any]:
        assert process.poll() is None, errors.read_text(encoding="utf-8")
        lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    try:
        yield documents
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130), errors.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait(20)


def test_an_event_tail_shows_what_happens_while_it_runs(fleet: Fleet) -> None:
    with following(fleet, "event", "tail", "--device", "gate-2") as documents:

        def told() -> bool:
            # Again and again: when the tail has begun to listen, nobody says.
            fleet.ctl.run("device", "label", "gate-2", "tailed=yes")
            fleet.ctl.run("device", "label", "gate-2", "tailed-")
            return bool(documents())

        wait_until(told, 40, "an event in the tail")
        found = documents()
    assert {one["device_id"] for one in found} == {"gate-2"}, found
    assert any("label" in one["kind"] for one in found), found


def test_a_telemetry_tail_shows_every_device_that_was_asked_for(fleet: Fleet) -> None:
    with following(fleet, "admin", "telemetry", "tail", "-l", "line=b") as documents:
        seen = wait_until(
            lambda: documents() if {d["device"] for d in documents()} >= set(SIMULATED) else [],
            40, "health of both",
        )  # fmt: skip
    assert {one["device"] for one in seen} == set(SIMULATED), seen
    assert all(one["online"] for one in seen), seen


def test_a_selector_that_matches_nothing_says_what_was_meant(fleet: Fleet) -> None:
    version = fleet.runs("gate-1")[0]
    missed = fleet.ctl.run(
        "rollout", "plan", f"{DIGITS}:{version}", "--to", "profile=intel-n1000", expect=(1, 2)
    )
    assert "no device matches" in missed.err, missed
    assert "did you mean" in missed.err, missed
    assert "intel-n100" in missed.err, missed
    missed = fleet.ctl.run("device", "show", "gate-9", expect=(1,))
    assert "did you mean gate-" in missed.err, missed


def test_a_device_from_pending_token_to_retirement(fleet: Fleet, consumer: Path) -> None:
    agent = fleet.add_agent("late-1", "--pending")
    agent.finish_enrol()
    agent.start()
    wait_until(lambda: device(fleet)["state"] == "pending", 30, "late-1 to be pending")
    version = fleet.runs("gate-1")[0]
    refused = fleet.ctl.run(
        "rollout", "plan", f"{DIGITS}:{version}", "--to", "device=late-1", expect=(1, 2)
    )
    assert "no device matches" in refused.err, refused
    fleet.ctl.run("device", "accept", "late-1")
    fleet.wait_online("late-1", timeout_s=60)
    assert device(fleet)["state"] == "active"
    fleet.ctl.run("device", "label", "late-1", "site=berlin")
    assert device(fleet)["labels"]["site"] == "berlin"
    rollout = fleet.begin(DIGITS, version, to="site=berlin")
    wait_until(lambda: model_ready(agent.endpoint, DIGITS), 60, "digits on late-1", every_s=0.3)
    camera = fleet.open_camera("late-1")
    fleet.watch(rollout, 0)
    check_invariants(fleet)
    fleet.ctl.run("device", "retire", "late-1", "--yes=1")
    assert device(fleet)["state"] == "retired"
    wait_until(lambda: not device(fleet)["online"], 30, "its session to be ended", every_s=0.3)
    wait_until(lambda: cut_off(fleet), 30, "late-1 to know", every_s=0.5)
    # It serves on with what it has.
    sent = len(camera.answers())
    wait_until(lambda: len(camera.answers()) > sent + 5, 20, "more answers")
    assert camera.answers()[-1].version == version
    agent.stop()
    fleet.close_camera("late-1")
    del fleet.agents["late-1"]


def device(fleet: Fleet) -> Any:
    """late-1 as the controller shows it."""
    found = fleet.ctl.json("device", "show", "late-1")
    return {**found, "state": found["state"].lower()}


def cut_off(fleet: Fleet) -> bool:
    """Whether the broker and the controller refuse its certificate."""
    identity = fleet.agents["late-1"].state_dir / "identity"
    certificate = next(identity.rglob("cert*.pem"))
    key = next(identity.rglob("key*.pem"))
    authority = next(identity.rglob("ca*.pem"))
    done = subprocess.run(
        [
            "mosquitto_sub", "-h", "127.0.0.1",
            "-p", fleet.controller.endpoints["mqtt"].rpartition(":")[2],
            "--cafile", str(authority), "--cert", str(certificate), "--key", str(key),
            "-t", "lighterman/v1/device/late-1/down/desired", "-C", "1", "-W", "2",
        ],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.returncode not in (0, 27)
