"""What /healthz and /readyz answer, and when: a dead loop, a database of another schema."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from controller.app_loops import HUNG_S, Loop, watch_loops
from controller.clock import SystemClock
from controller.errors import UnavailableError
from controller.store.session import Store, make_engine, migrate
from controller.web.health import Health, make_app
from tests.support.asgi import get
from tests.support.wait import wait_for


@dataclass
class Moved(SystemClock):
    """A clock that a test moves on."""

    ahead_s: float = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def test_a_loop_in_one_endless_round_is_told_and_one_that_failed_is_not() -> None:
    clock, go_on = Moved(), threading.Event()

    def hang() -> float:
        go_on.wait(30)
        return 60.0

    def fail() -> float:
        raise RuntimeError("once")

    loops = [Loop("hangs", hang, clock), Loop("fails", fail, clock)]
    for loop in loops:
        loop.start()
    try:
        assert watch_loops(loops) == {"hangs": None, "fails": None}
        clock.ahead_s = HUNG_S + 1
        wait_for(lambda: watch_loops(loops)["fails"] is None, 10, "the failed round to be over")
        found = watch_loops(loops)
        assert found["hangs"] == "the loop hangs hangs in one round"
        status, _, body = get(make_app(Health(lambda: found, dict)), "/healthz")
        assert (status, body) == (503, "hangs: the loop hangs hangs in one round\n")
        go_on.set()
        wait_for(lambda: watch_loops(loops)["hangs"] is None, 10, "the round to end")
    finally:
        go_on.set()
        for loop in loops:
            loop.stop()
    assert "ended" in (watch_loops(loops)["fails"] or "")


def test_what_is_not_ready_is_named() -> None:
    app = make_app(Health(dict, lambda: {"store": None, "broker": "away"}))
    assert get(app, "/healthz")[2] == "ok\n"
    status, _, body = get(app, "/readyz")
    assert status == 503
    assert json.loads(body) == {"ready": False, "checks": {"store": "ok", "broker": "away"}}


def test_a_database_of_another_schema_is_not_ready(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    store = Store.open(url)
    with pytest.raises(UnavailableError, match="schema none"):
        store.check()
    migrate(url)
    store.check()
    engine = make_engine(url)
    with engine.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UnavailableError, match="schema 9999"):
        store.check()
    store.close()
