"""One fleet for all end-to-end tests; every test ends with the invariants of the whole of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.digits import generate
from tests.support.e2e_invariants import check_invariants
from tests.support.e2e_jobs import FirstJob, first_job
from tests.support.e2e_world import TERMINAL, Fleet


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Controller and agents, nothing pushed yet."""
    fleet = Fleet.create(tmp_path_factory.mktemp("fleet"), generate(Path(".cache") / "digits"))
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="session")
def first(started: Fleet) -> FirstJob:
    """The main job: digits 1.0.0 pushed, built, brought to all devices; what was seen of it."""
    return first_job(started)


@pytest.fixture
def fleet(started: Fleet, first: FirstJob, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The fleet, all of it on a good version of digits. Afterwards: I1 to I8."""
    yield started
    outcome: Any = getattr(request.node, "outcome", None)
    if outcome is not None and outcome.failed:
        _clear_away(started)
        return
    check_invariants(started)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Let fixtures know how their test ended."""
    report = yield
    if report.when == "call":
        item.outcome = report  # type: ignore[attr-defined]
    return report


def _clear_away(fleet: Fleet) -> None:
    """A failed test must not fail the next one."""
    if not fleet.controller.running:
        fleet.controller.start()
    for agent in fleet.agents.values():
        if not agent.running and agent.device_id in ("gate-1", "gate-2", "n100-1", "n100-2"):
            agent.start()
    for rollout in fleet.ctl.items("rollout", "list"):
        if rollout["phase"] not in TERMINAL:
            fleet.ctl.run("rollout", "rollback", rollout["rollout_id"], "--yes=1", expect=(0, 1, 2))
