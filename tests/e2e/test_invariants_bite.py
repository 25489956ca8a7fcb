"""Negative controls of I1 to I8: each broken on purpose, on a copy, and found by its name."""

import hashlib
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.support.e2e_invariants import (
    Row,
    Rows,
    check_exposure,
    judge,
    read_rows,
    slots_of,
    wait_settled,
)
from tests.support.e2e_world import DIGITS, Fleet

DEVICE = "gate-1"


@pytest.fixture
def rows(fleet: Fleet) -> Rows:
    """What the controller stores now that all is quiet. The same rows hold as they are."""
    wait_settled(fleet)
    found = read_rows(fleet)
    judge(fleet, deepcopy(found))
    return found


def of_device(rows: Rows, table: str) -> Row:
    return next(row for row in rows[table] if row["device_id"] == DEVICE)


def resign(row: Row, change: Callable[[dict[str, Any]], None]) -> None:
    """Another manifest under a digest that fits it."""
    manifest = json.loads(row["manifest"])
    change(manifest)
    row["manifest"] = json.dumps(manifest).encode()
    row["manifest_digest"] = "sha256:" + hashlib.sha256(row["manifest"]).hexdigest()


def offered(rows: Rows) -> Row:
    """The controller's first offer to anybody."""
    return next(
        row for row in rows["event"]
        if row["kind"] == "assignment_offered" and row["boot_id"] is None
    )  # fmt: skip


def another_manifest(rows: Rows) -> None:
    of_device(rows, "desired")["manifest"] += b" "


def generation_not_applied(rows: Rows) -> None:
    row = of_device(rows, "desired")
    row["generation"] += 1
    resign(row, lambda manifest: manifest.update(generation=row["generation"]))


def model_that_is_not_there(rows: Rows) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["models"] = [{**one, "model": "gone"} for one in manifest["models"][:1]]

    resign(of_device(rows, "desired"), rename)


def wave_without_verdict(rows: Rows) -> None:
    rows["event"] = [row for row in rows["event"] if row["kind"] != "wave_judged"]


def said_by_nobody(rows: Rows, *kinds: str) -> Row:
    """One more device, before the first offer; the offer that was the first one."""
    first = offered(rows)
    place = rows["event"].index(first)
    rows["event"][place:place] = [{**first, "device_id": "nobody", "kind": one} for one in kinds]
    return first


def one_device_too_many(rows: Rows) -> None:
    said_by_nobody(rows, "assignment_offered")


def refused_with_bytes_there(rows: Rows) -> None:
    said_by_nobody(rows, "assignment_offered", "assignment_downloading", "assignment_refused")


def offered_twice(rows: Rows) -> None:
    rows["event"].append(offered(rows))


def still_on_its_way(rows: Rows) -> None:
    of_device(rows, "assignment")["state"] = "DOWNLOADING"


def a_hole_in_the_log(rows: Rows) -> None:
    rows["event"].remove(next(row for row in rows["event"] if row["seq"] == 1))


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (another_manifest, "I2"),
        (generation_not_applied, "I3"),
        (model_that_is_not_there, "I4"),
        (wave_without_verdict, "I5"),
        (one_device_too_many, "I5"),
        (refused_with_bytes_there, "I5"),
        (offered_twice, "I6"),
        (still_on_its_way, "I7"),
        (a_hole_in_the_log, "I8"),
    ],
)
def test_what_the_controller_stores_wrongly_is_found(
    fleet: Fleet, rows: Rows, broken: Callable[[Rows], None], name: str
) -> None:
    broken(rows)
    with pytest.raises(AssertionError, match=rf"^{name}\b"):
        judge(fleet, rows)


def test_who_refused_before_a_byte_left_its_place_free(rows: Rows) -> None:
    first = said_by_nobody(rows, "assignment_offered", "assignment_refused")
    rollout = next(row for row in rows["rollout"] if row["rollout_id"] == first["rollout_id"])
    check_exposure(rollout, rows)


def test_a_flipped_byte_on_a_device_is_found(
    fleet: Fleet, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = fleet.agents[DEVICE]
    shutil.copytree(agent.state_dir, tmp_path / "copy", symlinks=True)
    current = slots_of(fleet, DEVICE)[DIGITS][0]
    assert current is not None
    digest = current.release.targets[0].digest.removeprefix("sha256:")
    monkeypatch.setattr(agent, "state_dir", tmp_path / "copy")
    judge(fleet, deepcopy(rows))  # the copy as such is sound
    (file,) = [path for path in (tmp_path / "copy").rglob(f"*{digest}*") if path.is_file()]
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(AssertionError, match=r"^I1\b"):
        judge(fleet, rows)
