"""One controller on a database, wherever its data directory is: a second one is refused."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from controller.errors import RefusedError, UnavailableError
from controller.store.session import Store, migrate
from tests.support.wait import wait_for

pytestmark = pytest.mark.postgres


def end_holder(url: str) -> None:
    """What a restart of PostgreSQL does to the connection that holds the database."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'lighterman %'"
        )


def write(store: Store) -> None:
    with store.write() as conn:
        conn.execute(text("SELECT 1"))


def test_a_second_controller_on_the_database_is_refused(postgres_url: str, tmp_path: Path) -> None:
    first = Store.open(postgres_url, tmp_path / "a")
    with pytest.raises(RefusedError) as caught:
        Store.open(postgres_url, tmp_path / "b")
    assert f"pid {os.getpid()})" in caught.value.message
    Store.open(postgres_url).close()  # commands beside a running controller
    migrate(postgres_url)
    first.close()
    second = Store.open(postgres_url, tmp_path / "b")  # and its data directory was given back
    write(second)
    second.close()


def test_negative_control_data_directories_alone_do_not_tell(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.store.sole.SoleHold.take", lambda _: None)
    both = [Store.open(postgres_url, tmp_path / name) for name in "ab"]
    for store in both:
        write(store)
        store.close()


def test_one_that_was_killed_holds_nothing(postgres_url: str, tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from controller.store.session import Store\n"
        "store = Store.open(sys.argv[1], Path(sys.argv[2])); print('held', flush=True)\n"
        "signal.pause()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, postgres_url, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "held\n"
        child.kill()
        child.wait()
    Store.open(postgres_url, tmp_path).close()


def test_a_broken_connection_is_taken_again(postgres_url: str, tmp_path: Path) -> None:
    store = Store.open(postgres_url, tmp_path / "a")
    end_holder(postgres_url)
    wait_for(lambda: took_again(store), 10, "the hold")
    with pytest.raises(RefusedError):
        Store.open(postgres_url, tmp_path / "b")
    write(store)
    store.close()


def took_again(store: Store) -> bool:
    store.keep_hold()
    return True


def test_whoever_lost_the_database_to_another_decides_nothing(
    postgres_url: str, tmp_path: Path
) -> None:
    first = Store.open(postgres_url, tmp_path / "a")
    migrate(postgres_url)
    end_holder(postgres_url)
    second = Store.open(postgres_url, tmp_path / "b")
    with pytest.raises(UnavailableError, match="another controller took the database"):
        first.keep_hold()
    for use in (write, Store.check):
        with pytest.raises(UnavailableError, match="another controller took the database"):
            use(first)
    write(second)
    second.close()
    first.keep_hold()
    write(first)
    first.close()
