"""fleetctl beside a real controller: groups applied, listed and shown, selections counted."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from controller.cli.root import run as fleetctl
from controller.services.devices import label_devices
from controller.store import devices
from tests.support.gateway import Running, running
from tests.support.stores import seed_device

PROFILE = "intel-n100"
GROUP = """
kind: Group
name: line-a
spec:
  description: the machines of line A
  selector: site=berlin,line in (a),!quarantine
---
kind: Group
name: rest
spec: {selector: "!@line-a"}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("groups") / "data") as started:
        with started.deps.store.write() as conn:
            for device_id in ("a-1", "a-2", "b-1"):
                seed_device(conn, device_id)
                devices.update_device(conn, device_id, profile=PROFILE, online=True)
        for device_id in ("a-1", "a-2"):
            label_devices(
                started.deps,
                started.ctx("ana"),
                device_ids=[device_id],
                values={"site": "berlin", "line": "a"},
            )
        yield started


def run(home: Running, *words: str, expect: int = 0) -> str:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = fleetctl(["--context", str(home.folder / "operator.json"), *words])
    assert code == expect, said.getvalue()
    return said.getvalue()


def test_a_group_is_counted_shown_and_used(home: Running, tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text(GROUP)
    assert "it holds 2 devices now" in run(home, "apply", "-f", str(file), "--dry-run")
    assert "no group line-a" in run(home, "device", "list", "-l", "@line-a", expect=1)
    run(home, "apply", "-f", str(file))
    assert "unchanged" in run(home, "apply", "-f", str(file))

    listed = run(home, "admin", "group", "list").splitlines()
    assert listed[0].split() == ["group", "selector", "description", "origin"]
    assert "site=berlin,line in (a),!quarantine" in listed[1]
    document = json.loads(run(home, "admin", "group", "list", "-o", "json"))
    assert document["kind"] == "group_list"
    assert [one["name"] for one in document["items"]] == ["line-a", "rest"]

    shown = run(home, "admin", "group", "show", "rest")
    assert "holds 1 device now" in shown
    assert "selector: '!@line-a'" in shown
    assert "did you mean rest ?" in run(home, "admin", "group", "show", "rset", expect=1)

    said = run(home, "device", "list", "-l", "@line-a")
    assert "a-1" in said
    assert "b-1" not in said
    assert "2 devices match @line-a" in said
    assert "3 devices, the first 1 shown" in run(home, "device", "list", "--limit", "1")
    wrong = run(home, "device", "label", "-l", "@rest", "spare=yes", "--yes=2", expect=2)
    assert "--yes=2 does not match: 1 device matches @rest\n  to go on, give --yes=1" in wrong
    labelled = run(home, "device", "label", "-l", "@rest", "spare=yes", "--yes=1")
    assert "labelled 1 device" in labelled


def test_an_empty_list_says_why(home: Running) -> None:
    said = run(home, "device", "list", "-l", "site=berlni").splitlines()
    assert said[0] == "no device matches  site=berlni"
    assert "  did you mean site=berlin ?" in said
    empty = json.loads(run(home, "device", "list", "-l", "site=berlni", "-o", "json"))
    assert empty["items"] == []


def test_what_cannot_be_read_is_refused_with_its_column(home: Running) -> None:
    said = run(home, "device", "list", "-l", "site=berlin,profile in (a", expect=1)
    assert "at column 26: expected `)`" in said
    said = run(home, "rollout", "plan", "digits:1.0.0", "--to", "site=berlin,version<1.3", expect=1)
    assert "at column 20: `<` compares versions alone" in said


def test_a_described_fleet_is_forecast_and_drawn(home: Running, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("classes: [{name: gate, devices: 30, inferences_per_s: 20}]\nbytes: 20MB\n")
    plan = ("rollout", "plan", "detector:1.0.0", "--to", "all", "--fleet", str(fleet))
    drawn = tmp_path / "forecast.svg"
    said = run(home, *plan, "--fails-on", "50", "--soak", "1m", "--picture", str(drawn))
    assert "fails on, devices" in said
    assert "ROLLED_BACK" in said
    assert drawn.read_text().startswith("<svg ")
    document = json.loads(run(home, *plan, "-o", "json"))
    found = document["forecast"]
    assert found["devices"] == 30
    assert found["exposed"]["p90"] == 30
    assert found == json.loads(run(home, *plan, "-o", "json"))["forecast"]
    fleet.write_text("classes: [{name: gate, devices: 30, awy_s: 1}]\n")
    assert "did you mean away_s ?" in run(home, *plan, expect=1)
