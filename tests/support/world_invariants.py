"""I1 to I8 of a controller and its agents after a test that put faults into them.

Reads the database and the devices' disks, not what the product says of itself. Of I5 there is
nothing to see here: these tests order releases without a rollout (`e2e_invariants` has it).
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from agent.domain.assignment import ModelState, Phase
from agent.domain.state_json import state_from_json
from agent.store.journal import FileJournal
from agent.store.spool import FileSpool
from tests.support.agent_world import AgentProcess, ControllerWorld, running_controller
from tests.support.device_invariants import check_disk
from tests.support.e2e_invariants import Rows, check_applied, check_event_log, rows_of


@contextmanager
def checked_controller(data_dir: Path, **settings: Any) -> Iterator[ControllerWorld]:
    """A controller for one test; once it is stopped, what its database says is looked at."""
    with running_controller(data_dir, **settings) as world:
        yield world
    check_database(data_dir)


def check_database(data_dir: Path) -> None:
    """I6, I8 of all devices of a controller."""
    rows = read_rows(data_dir)
    check_event_log(rows)
    for device in rows["device"]:
        check_applied(rows, device["device_id"])


def check_agent(data_dir: Path, agent: AgentProcess, seen_before: int = 0) -> None:
    """I1 to I4 on the disk of an agent that has ended, and I7: what it told is what is there."""
    assert agent.process is not None
    assert agent.process.poll() is not None, f"{agent.device_id} still runs"
    check_disk(agent.state_dir, seen_before)
    rows = read_rows(data_dir)
    device, desired = (_one(rows, table, agent.device_id) for table in ("device", "desired"))
    journal = FileJournal(agent.state_dir / "journal").latest("generation")
    known = {key: int(str(value["value"])) for key, value in journal.items()}
    assert max(known.values(), default=0) <= desired["generation"], (
        f"I3: {agent.device_id} knows of {known}, generation {desired['generation']} was signed"
    )
    if _untold(agent.state_dir):
        return
    applied = known.get("applied", 0)
    assert device["applied_generation"] == applied, (
        f"I7: {agent.device_id} applied {applied},"
        f" {device['applied_generation']} is what the controller knows"
    )
    for model, state in FileJournal(agent.state_dir / "journal").latest("model").items():
        _check_told(rows, agent.device_id, state_from_json(state), model)


def _check_told(rows: Rows, device_id: str, state: ModelState, model: str) -> None:
    """I7: the last that was said of an order is where it stands."""
    if state.order is None or state.phase is Phase.IDLE:
        return
    told = [
        json.loads(row["details"])["state"]
        for row in rows["event"]
        if (row["device_id"], row["rollout_id"]) == (device_id, state.order.rollout)
        and "state" in json.loads(row["details"])
    ]
    assert told[-1:] == [state.phase], (
        f"I7: {model} of {state.order.rollout} is {state.phase} on {device_id}, it told {told}"
    )


def _one(rows: Rows, table: str, device_id: str) -> dict[str, Any]:
    (found,) = (row for row in rows[table] if row["device_id"] == device_id)
    return found


def _untold(state_dir: Path) -> int:
    """Reports that never reached the controller, of any start."""
    boots = sorted(path.name for path in (state_dir / "spool").iterdir())
    return len(FileSpool(state_dir / "spool", boots[-1]).pending(1000)) if boots else 0


def read_rows(data_dir: Path) -> Rows:
    """The tables of a controller, also of one that is stopped."""
    path = data_dir / "lighterman.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as conn:
        return rows_of(conn)
