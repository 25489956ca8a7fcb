"""`fleetctl status` after a rollout ended badly: said at once, and until when."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.cli.root import run as fleetctl
from controller.domain.rollout import Phase
from controller.services.status import ROLLOUT_TOLD
from controller.store import rollouts
from tests.support.gateway import Running, running
from tests.support.stores import rollout_row, seed_version
from tests.support.wait import wait_for

BACK = "digits:1.1.0 rolled back; nothing else is wrong; `fleetctl rollout explain r-b` says why"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("status") / "data") as started:
        wait_for(lambda: run(started)[0] == 0, 20, "nothing to be wrong")
        yield started


def run(home: Running, *words: str) -> tuple[int, str]:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = fleetctl(["--context", str(home.folder / "operator.json"), "status", *words])
    return code, said.getvalue()


def ended(home: Running, rollout_id: str, version: str, phase: Phase, ago: timedelta) -> None:
    at = home.ctx().now - ago
    with home.deps.store.write() as conn:
        seed_version(conn, "digits", version, at)
        row = replace(rollout_row(rollout_id, version, at), phase=phase, finished_at=at)
        spec = {**row.spec, "model": "digits", "version": version}
        reason = "5 inferences in a row over 100 ms"
        rollouts.insert_rollout(conn, replace(row, spec=spec, phase_reason=reason))


def headline(home: Running) -> tuple[int, str]:
    code, said = run(home)
    return code, said.splitlines()[0]


def test_a_version_that_came_back_is_said_until_a_newer_one_held(home: Running) -> None:
    assert headline(home) == (0, "nothing is wrong")  # the negative control
    ended(home, "r-b", "1.1.0", Phase.ROLLED_BACK, timedelta(minutes=5))
    assert headline(home) == (0, BACK)
    told = json.loads(run(home, "-o", "json")[1])
    assert [one["rollout_id"] for one in told["recent_rollouts"]] == ["r-b"]
    assert told["problems"] == []
    ended(home, "r-c", "1.2.0", Phase.SUCCEEDED, timedelta(minutes=1))
    assert headline(home) == (0, "nothing is wrong")


def test_it_is_said_for_a_day(home: Running) -> None:
    ended(home, "r-a", "1.0.0", Phase.ROLLED_BACK, ROLLOUT_TOLD + timedelta(minutes=1))
    assert headline(home) == (0, "nothing is wrong")
    ended(home, "r-b", "1.1.0", Phase.ROLLED_BACK, ROLLOUT_TOLD - timedelta(minutes=5))
    assert headline(home) == (0, BACK)


def test_one_that_failed_or_waits_for_a_person_is_a_problem(home: Running) -> None:
    ended(home, "r-f", "1.1.0", Phase.FAILED, timedelta(minutes=1))
    code, said = headline(home)
    assert code == 1
    assert said.startswith("problem    rollout r-f failed: 5 inferences in a row over 100 ms; ")
