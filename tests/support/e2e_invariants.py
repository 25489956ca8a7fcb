"""I1 to I8 of a whole running fleet, by one function that every end-to-end test ends with.

Looks with other eyes than the product: raw SQL, the agents' files, what the cameras were answered.
Refuses to wait for anything but the end of rollouts and of what is on its way to devices.
"""

import hashlib
import json
import sqlite3
from collections import defaultdict
from itertools import pairwise
from typing import Any

import grpc

from agent.domain.assignment import Slot
from agent.domain.desired import DesiredModel
from agent.domain.manifest import parse_model
from agent.ids import boot_counter
from agent.store.journal import FileJournal
from agent.store.slots import FileSlots
from agent.store.spool import FileSpool
from examples.fleet.clock import wait_until
from lighterman.oip import inference_pb2, inference_pb2_grpc
from tests.support.e2e_world import TERMINAL, Fleet

LEFT = ("ROLLING_BACK", "ROLLED_BACK", "FAILED")
_SETTLE_S = 60.0

Row = dict[str, Any]
Rows = dict[str, list[Row]]


def check_invariants(fleet: Fleet) -> None:
    """I1 to I8 once all is quiet; AssertionError names the one that does not hold."""
    wait_settled(fleet)
    judge(fleet, read_rows(fleet))


def judge(fleet: Fleet, rows: Rows) -> None:
    """All of it on these rows and on the devices' disks; waits for nothing but telemetry."""
    for name in _serving_devices(fleet):
        _check_slots(fleet, rows, name)
        _check_generations(fleet, rows, name)
    for rollout in rows["rollout"]:
        check_exposure(rollout, rows)
    _check_told_once(rows)
    check_event_log(rows)
    _check_real(fleet, rows)


def wait_settled(fleet: Fleet) -> None:
    """Until no rollout is open and every device that is there has applied and told everything."""

    def open_rollouts() -> list[str]:
        with fleet.database() as conn:
            found = conn.execute("SELECT rollout_id, phase FROM rollout").fetchall()
        return [row["rollout_id"] for row in found if row["phase"] not in TERMINAL]

    def behind() -> list[str]:
        with fleet.database() as conn:
            found = conn.execute(
                "SELECT d.device_id, d.applied_generation, w.generation FROM device d"
                " JOIN desired w USING (device_id) WHERE d.state = 'ACTIVE'"
            ).fetchall()
        return [
            f"{row['device_id']} applied {row['applied_generation']} of {row['generation']}"
            for row in found
            if row["applied_generation"] != row["generation"]
        ]

    def untold() -> list[str]:
        return [name for name in _serving_devices(fleet) if _pending(fleet, name)]

    for what, find in (
        ("the end of rollouts", open_rollouts),
        ("devices to apply", behind),
        ("spools to empty", untold),
    ):
        wait_until(lambda find=find: not find(), _SETTLE_S, f"{what}: {find()}")  # type: ignore[misc]


def _serving_devices(fleet: Fleet) -> list[str]:
    return [name for name, agent in fleet.agents.items() if agent.running]


def _pending(fleet: Fleet, name: str) -> int:
    folder = fleet.agents[name].state_dir / "spool"
    boots = sorted(path.name for path in folder.iterdir())
    return len(FileSpool(folder, boots[-1]).pending(1000)) if boots else 0


def read_rows(fleet: Fleet) -> Rows:
    """The controller's tables, as they are at one moment."""
    with fleet.database() as conn:
        return rows_of(conn)


def rows_of(conn: sqlite3.Connection) -> Rows:
    """The same of any controller's database."""
    tables = ("rollout", "wave", "assignment", "desired", "device", "device_boot", "event")
    conn.row_factory = sqlite3.Row
    conn.execute("BEGIN")
    return {
        table: [dict(row) for row in conn.execute(f"SELECT * FROM {table} ORDER BY rowid")]
        for table in tables
    }


# -- the device ------------------------------------------------------------------------------------


def slots_of(fleet: Fleet, name: str) -> dict[str, tuple[Slot | None, Slot | None, Slot | None]]:
    """Current, previous and staged slot per model, from the device's disk."""
    store = FileSlots(fleet.agents[name].state_dir)
    return {model: store.slots(model) for model in store.models()}


def _check_slots(fleet: Fleet, rows: Rows, name: str) -> None:
    """I1, I2: what the pointers name are the signed bytes; the one active slot answers."""
    store = FileSlots(fleet.agents[name].state_dir)
    wanted = _desired_models(rows, name)
    slots = slots_of(fleet, name)
    assert slots.keys() >= wanted.keys(), f"I4: {name} has {set(slots)}, desired is {set(wanted)}"
    for model, (current, previous, staged) in slots.items():
        assert staged is None, f"I1: {name} still has a staged slot of {model}"
        for slot in (current, previous):
            for target in slot.release.targets if slot else ():
                with open(store.path(target.digest), "rb") as file:
                    data = file.read()
                digest = "sha256:" + hashlib.sha256(data).hexdigest()
                assert (digest, len(data)) == (target.digest, target.length), f"I1: {name} {model}"
        if model not in wanted:
            continue
        assert current is not None, f"I4: {name} has no {model} any more"
        assert current.committed, f"I1: {name} runs {model}:{current.release.version} unproven"
        assert current.slot_id == wanted[model].slot_id, (
            f"I7: {name} runs {model}:{current.release.version},"
            f" {wanted[model].version} is desired and signed"
        )
        version = _answering_version(fleet, name, model)
        assert version == current.release.version, f"I1: {name} answers with {model}:{version}"


def _desired_models(rows: Rows, name: str) -> dict[str, DesiredModel]:
    """The entries of the manifest as it was signed."""
    for row in rows["desired"]:
        if row["device_id"] == name:
            digest = hashlib.sha256(row["manifest"]).hexdigest()
            assert row["manifest_digest"].endswith(digest), f"I2: manifest of {name}"
            manifest = json.loads(row["manifest"])
            assert (manifest["device"], manifest["generation"]) == (name, row["generation"])
            return {one["model"]: parse_model(one, "models") for one in manifest["models"]}
    return {}


def _answering_version(fleet: Fleet, name: str, model: str) -> str:
    """The version that the inference API itself names."""
    with grpc.insecure_channel(fleet.agents[name].endpoint) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = inference_pb2.ModelMetadataRequest(name=model)
        answer = stub.ModelMetadata(request, timeout=10)
    (version,) = answer.versions
    return str(version)


def _check_generations(fleet: Fleet, rows: Rows, name: str) -> None:
    """I3, I6: generations never go down, on the device, in its reports and between two checks."""
    journal = FileJournal(fleet.agents[name].state_dir / "journal")
    assert journal.is_sound, f"I3: the journal of {name}: {journal.damage}"
    known = {key: int(str(v["value"])) for key, v in journal.latest("generation").items()}
    desired = [row["generation"] for row in rows["desired"] if row["device_id"] == name]
    if desired:
        assert known == dict.fromkeys(known, desired[0]), f"I3: {name} {known}, {desired[0]} told"
    last = fleet.generations.get(name, 0)
    assert max(known.values(), default=0) >= last, f"I3: {name} went from {last} to {known}"
    fleet.generations[name] = max(known.values(), default=0)
    check_applied(rows, name)


def check_applied(rows: Rows, name: str) -> None:
    """I6: what a device says that it applied never goes down."""
    told = [
        int(json.loads(row["details"])["generation"])
        for row in rows["event"]
        if row["device_id"] == name and row["seq"] and _is_applied(row)
    ]
    assert told == sorted(told), f"I6: {name} applied generations {told}"


def _is_applied(row: Row) -> bool:
    return "applied" in json.loads(row["details"])


# -- the controller --------------------------------------------------------------------------------


def check_exposure(rollout: Row, rows: Rows) -> None:
    """I5, by the order of events: never more devices than the open wave allows, none skipped.

    A device that refuses before it took a byte (no room) never had the version: its place is free.
    """
    rollout_id = rollout["rollout_id"]
    caps = [row["cumulative"] for row in rows["wave"] if row["rollout_id"] == rollout_id]
    said = [row for row in rows["event"] if row["rollout_id"] == rollout_id]
    opened, passed, exposed, took = 0, 0, set(), set()
    for row in said:
        if row["kind"] == "wave_opened":
            opened += 1
            assert passed >= opened - 1, f"I5: {rollout_id} opened wave {opened} unproven"
        elif row["kind"] == "wave_judged" and " PASSED" in row["reason"].partition(":")[0]:
            passed = opened
        elif row["kind"] in ("assignment_downloading", "assignment_activated"):
            took.add(row["device_id"])
        elif row["kind"] == "assignment_refused" and row["device_id"] not in took:
            exposed.discard(row["device_id"])
        elif row["kind"] == "assignment_offered" and row["boot_id"] is None:
            exposed.add(row["device_id"])
            assert opened, f"I5: {rollout_id} offered before a wave was open"
            cap = caps[opened - 1]
            assert len(exposed) <= cap, f"I5: {rollout_id} exposed {len(exposed)} of {cap}"
    mine = {
        row["device_id"] for row in rows["assignment"]
        if row["rollout_id"] == rollout_id and row["exposed"]
    }  # fmt: skip
    assert mine == exposed, f"I5: {rollout_id} exposed {mine}, its events say {exposed}"


def _check_told_once(rows: Rows) -> None:
    """I6: the controller offered each rollout at most once to each device, whatever was killed."""
    offers: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows["event"]:
        if row["kind"] == "assignment_offered" and row["boot_id"] is None:
            offers[row["rollout_id"], row["device_id"]] += 1
    twice = {key: count for key, count in offers.items() if count > 1}
    assert not twice, f"I6: offered more than once: {twice}"


def check_event_log(rows: Rows) -> None:
    """I8: per start of each device 1, 2, 3 … as far as was acknowledged; starts count upwards."""
    logs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows["event"]:
        if row["seq"] is not None:
            logs[row["device_id"], row["boot_id"]].append(row["seq"])
        if row["kind"] == "reports_forgotten":  # a gap that is on record is known of
            gap = row["details"] if isinstance(row["details"], dict) else json.loads(row["details"])
            first, _, last = str(gap["reports"]).partition(" to ")
            logs[row["device_id"], gap["boot_id"]] += range(int(first), int(last) + 1)
    for (device, boot), numbers in logs.items():
        numbers.sort()
        assert numbers == list(range(1, len(numbers) + 1)), f"I8: {device} {boot}: {numbers}"
    for row in rows["device_boot"]:
        stored = len(logs[row["device_id"], row["boot_id"]])
        assert stored == row["last_seq"], f"I8: {row['device_id']} {row['boot_id']}: {stored}"
    by_device: dict[str, list[int]] = defaultdict(list)
    for row in rows["device_boot"]:
        by_device[row["device_id"]].append(boot_counter(row["boot_id"]))
    for device, counters in by_device.items():
        assert all(a < b for a, b in pairwise(sorted(counters))), f"I8: boots of {device}"


def _check_real(fleet: Fleet, rows: Rows) -> None:
    """I7: what the controller says of a device is what answers there."""
    running = _serving_devices(fleet)

    def wrong() -> list[str]:
        found = []
        for device in fleet.ctl.items("device", "list"):
            if device["device_id"] not in running or device["state"].upper() != "ACTIVE":
                continue
            for model in device["models"]:
                runs = _answering_version(fleet, device["device_id"], model["model"])
                if (model["version"], model["phase"]) != (runs, "COMMITTED") and (
                    model["version"] != runs or model["phase"] not in (*LEFT, "WITHDRAWN")
                ):
                    found.append(f"{device['device_id']} says {model}, answers {runs}")
        return found

    # Telemetry is how the controller knows: it may be a second behind.
    wait_until(lambda: not wrong(), 20, f"I7: {wrong()}", every_s=0.5)
    for rollout in rows["rollout"]:
        states = {
            row["state"] for row in rows["assignment"] if row["rollout_id"] == rollout["rollout_id"]
        }
        open_states = states & {"OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ROLLING_BACK"}
        assert not open_states, f"I7: {rollout['rollout_id']} is over, devices are {open_states}"
