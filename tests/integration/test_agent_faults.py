"""What must not stop a device: forged orders, rotten files, full disks, heat, a short-lived key."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from sqlalchemy import update

from agent.domain.desired import DesiredModel
from agent.store.journal import FileJournal
from controller.store.tables import desired as desired_table
from tests.support.agent_world import AgentProcess, Client, ControllerWorld
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for
from tests.support.world_invariants import check_agent, check_database, checked_controller

PROBATION = {"min_inferences": 5, "min_s": 0.1, "max_s": 600}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerWorld]:
    with checked_controller(tmp_path / "controller", presence_grace_s=1.0) as world:
        yield world


@pytest.fixture
def agent(controller: ControllerWorld, tmp_path: Path) -> Iterator[AgentProcess]:
    made = enrolled(controller, tmp_path / "agent")
    yield made
    if made.process is not None:
        made.stop()
        check_agent(controller.settings.data_dir, made)


def enrolled(controller: ControllerWorld, state_dir: Path, **settings: str) -> AgentProcess:
    made = AgentProcess(state_dir, **settings)
    done = made.enrol(controller.url, controller.token())
    assert done.returncode == 0, done.stderr
    return made


def release_of(version: str, *factors: float, **policy: object) -> tuple[DesiredModel, list[bytes]]:
    names = ("heavy", "light")
    files = [scaled(factor) for factor in factors]
    rungs = dict(zip(names, files, strict=False))
    changes: dict[str, object] = {"probation": PROBATION, **policy}
    release = make_release(version, rungs, **changes)  # type: ignore[arg-type]
    return release, files


def bring(controller: ControllerWorld, agent: AgentProcess, version: str, *factors: float,
          **policy: object) -> None:  # fmt: skip
    release, files = release_of(version, *factors, **policy)
    generation = controller.publish(agent.device_id, release, f"r-{version}", files)
    wait_for(lambda: answer(agent) == factors[0], 30, f"{version} to answer\n{agent.tail()}")
    with Client(agent):
        wait_for(
            lambda: controller.device(agent.device_id).applied_generation == generation,
            30,
            f"{version} to be applied\n{agent.tail()}",
        )


def answer(agent: AgentProcess) -> float | None:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


def test_a_forged_order_is_refused_told_once_and_changes_nothing(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    assert agent.stop() == 0
    release, files = release_of("6.6.6", 6.0)
    controller.publish("dev-1", release, "r-forged", files)
    with controller.deps.store.write() as conn:
        row = conn.execute(desired_table.select()).one()
        forged = row.manifest.replace(b'"6.6.6"', b'"6.6.7"')
        conn.execute(update(desired_table).values(manifest=forged))
    agent.start()
    refused = wait_for(
        lambda: controller.events("dev-1", "manifest_refused"), 20, f"the event\n{agent.tail()}"
    )
    assert "not signed by a key this device knows" in (refused[0].reason or "")
    assert answer(agent) == 2.0
    assert len(controller.events("dev-1", "manifest_refused")) == 1


def test_an_order_that_does_not_fit_is_refused_with_figures(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    release, _ = release_of("2.0.0", 3.0)
    rung = release.rungs[0]
    assert rung.target is not None
    huge = replace(rung, target=replace(rung.target, digest="sha256:" + "7" * 64, length=1 << 39))
    controller.publish("dev-1", replace(release, rungs=(huge,)), "r-huge", [])
    wait_for(lambda: controller.states("dev-1", "r-huge")[-1:] == ["REFUSED"], 20, "the refusal")
    reasons = [e.reason or "" for e in controller.events("dev-1") if e.rollout_id == "r-huge"]
    assert any("no room" in reason and "MB are left" in reason for reason in reasons)
    assert answer(agent) == 2.0


def spoil(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


ROT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "flipped": lambda data: data[:40] + bytes([data[40] ^ 0x10]) + data[41:],
    "noise": lambda _: b"\xff\xfe{]garbage\n" * 50,
}


@pytest.mark.parametrize("how", sorted(ROT))
def test_a_rotten_journal_is_survived(
    controller: ControllerWorld, agent: AgentProcess, how: str
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    assert agent.stop() == 0
    spoil(agent.state_dir / "journal", ROT[how])
    agent.start()
    assert answer(agent) == 2.0, agent.tail()
    bring(controller, agent, "1.1.0", 3.0)


@pytest.mark.parametrize("name", ["boot", "status.json"])
def test_other_rotten_files_are_survived(
    controller: ControllerWorld, agent: AgentProcess, name: str
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    assert agent.stop() == 0
    (agent.state_dir / name).write_bytes(b"\x00garbage")
    agent.start()
    assert answer(agent) == 2.0, agent.tail()
    bring(controller, agent, "1.1.0", 3.0)


def test_rotten_spool_files_are_told_not_fatal(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    assert agent.stop() == 0
    for path in (agent.state_dir / "spool").iterdir():
        path.write_bytes(b"\x00garbage\n")
    agent.start()
    assert answer(agent) == 2.0, agent.tail()
    bring(controller, agent, "1.1.0", 3.0)


def test_a_rotten_identity_stops_updates_never_serving(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    assert agent.stop() == 0
    (agent.state_dir / "identity" / "pointer").write_bytes(b"garbage")
    agent.start()
    assert answer(agent) == 2.0, agent.tail()
    said = agent.command("doctor")
    assert said.returncode == 1
    assert "is damaged" in said.stdout


def test_a_rotten_model_file_is_never_run_and_is_fetched_again(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    bring(controller, agent, "1.1.0", 3.0)
    assert agent.stop() == 0
    files = [p for p in (agent.state_dir / "blobs").iterdir() if p.is_file()]
    newest = max(files, key=lambda p: p.stat().st_mtime_ns)
    spoil(newest, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    agent.start()
    assert answer(agent) == 2.0, f"the spare answers\n{agent.tail()}"
    with Client(agent):
        wait_for(lambda: answer(agent) == 3.0, 30, f"the repaired version\n{agent.tail()}")


def write_host(root: Path, celsius: float) -> None:
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text(f"{int(celsius * 1000)}\n")


def test_heat_steps_down_and_back_with_events_and_no_failure(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    root = tmp_path / "host"
    write_host(root, 50)
    agent = enrolled(controller, tmp_path / "agent", LIGHTERMAN_HOST_ROOT=str(root))
    agent.start()
    ladder = {**BODY_LADDER, "dwell_down_s": 0.5, "dwell_up_s": 1.0}
    try:
        bring(controller, agent, "1.0.0", 2.0, 2.5, ladder=ladder)
        with Client(agent) as client:
            write_host(root, 85)
            wait_for(lambda: answer(agent) == 2.5, 20, f"the light rung\n{agent.tail()}")
            write_host(root, 50)
            wait_for(lambda: answer(agent) == 2.0, 20, f"the heavy rung again\n{agent.tail()}")
        assert client.failures == []
        wait_for(lambda: len(controller.events("dev-1", "rung_changed")) == 2, 10, "both events")
        changes = controller.events("dev-1", "rung_changed")
        told = [(c.details["from"], c.details["to"], c.details["cause"]) for c in changes]
        assert told == [("heavy", "light", "temperature"), ("light", "heavy", "recovered")]
        wait_for(lambda: rung_shown(agent) == "heavy", 10, "status to show it")
    finally:
        agent.stop()
    check_agent(controller.settings.data_dir, agent)


def rung_shown(agent: AgentProcess) -> str:
    shown = json.loads(agent.command("status", "--output", "json").stdout)
    return str(shown["models"][0]["rung"])


BODY_LADDER = {
    "p95_budget_ms": 1000, "p95_recover_pct": 70, "queue_age_ms": 5000,
    "temperature_down_c": 80, "temperature_up_c": 74, "memory_down_pct": 100,
    "memory_up_pct": 100, "cpu_down_pct": 1000, "cpu_up_pct": 1000, "link_down_ms": 150,
    "link_up_ms": 80, "link_loss_pct": 20, "dwell_down_s": 3, "dwell_up_s": 30, "window_s": 10,
}  # fmt: skip


def test_a_certificate_is_renewed_while_the_device_stays_online(tmp_path: Path) -> None:
    settings = {"presence_grace_s": 1.0, "device_certificate_s": 15.0}
    with checked_controller(tmp_path / "controller", **settings) as controller:
        agent = enrolled(controller, tmp_path / "agent")
        agent.start()
        try:
            bring(controller, agent, "1.0.0", 2.0)
            told = "the certificate was renewed"
            wait_for(lambda: told in agent.tail(), 60, f"the renewal\n{agent.tail()}")
            # A doorbell over the new session proves that it works.
            bring(controller, agent, "1.1.0", 3.0)
            wait_for(lambda: controller.device("dev-1").online, 20, "presence")
        finally:
            agent.stop()
        check_agent(controller.settings.data_dir, agent)
        # One event for each certificate, and nothing of it worries anybody.
        serials = [e.details["serial"] for e in controller.events("dev-1", "certificate_renewed")]
        assert serials
        assert len(set(serials)) == len(serials)
        assert "WARNING" not in agent.tail(), agent.tail()


def change_database(data_dir: Path, statement: str) -> None:
    with closing(sqlite3.connect(data_dir / "lighterman.db")) as conn:
        assert conn.execute(statement).rowcount == 1
        conn.commit()


BROKEN = {
    "I3": "UPDATE desired SET generation = generation - 1",
    "I6": "UPDATE event SET details = json_set(details, '$.generation', '9') WHERE rowid ="
          " (SELECT min(rowid) FROM event WHERE details LIKE '%applied%' AND seq IS NOT NULL)",
    "I7": "UPDATE device SET applied_generation = applied_generation - 1",
    "I8": "DELETE FROM event WHERE seq = 3",
}  # fmt: skip


def check_both(data_dir: Path, agent: AgentProcess) -> None:
    check_agent(data_dir, agent)
    check_database(data_dir)


def test_negative_control_what_every_test_here_ends_with_finds_it(tmp_path: Path) -> None:
    """Each broken on purpose on a copy, and found by its name."""
    data_dir = tmp_path / "controller"
    with checked_controller(data_dir) as controller:
        agent = enrolled(controller, tmp_path / "agent")
        agent.start()
        bring(controller, agent, "1.0.0", 2.0)
        bring(controller, agent, "1.1.0", 3.0)
        assert agent.stop() == 0
    check_both(data_dir, agent)
    for name, statement in BROKEN.items():
        copy = tmp_path / name
        shutil.copytree(data_dir, copy, ignore=shutil.ignore_patterns("run", "*lock*"))
        change_database(copy, statement)
        with pytest.raises(AssertionError, match=name):
            check_both(copy, agent)
    journal = FileJournal(agent.state_dir / "journal")
    state = journal.latest("model")["photo"]
    journal.append("model", "photo", {**state, "phase": "PROBATION"})
    with pytest.raises(AssertionError, match=r"I7: photo of r-1\.1\.0 is PROBATION"):
        check_agent(data_dir, agent)
