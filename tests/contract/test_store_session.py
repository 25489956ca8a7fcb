"""The store's promises: one schema, whole transactions, one writer, named refusals, one owner."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import CheckConstraint, inspect, text

from controller.errors import ConflictError, InvariantError, RefusedError, UnavailableError
from controller.store import events
from controller.store.builds import add_build, put_gate
from controller.store.models import VariantRow, add_version
from controller.store.projects import ensure_project
from controller.store.session import (
    Connection,
    ConstraintConflictError,
    ConstraintInvariantError,
    Store,
    fresh_id,
    make_engine,
    migrate,
    schema_drift,
)
from controller.store.tables import build, build_job, metadata
from tests.support.stores import (
    NOW,
    PROJECT,
    build_row,
    digest,
    gate_row,
    seed_assignment,
    seed_device,
    seed_rollout,
    seed_version,
)


def test_migrations_from_empty_equal_the_tables(store_url: str) -> None:
    migrate(store_url)
    assert schema_drift(store_url) == []
    # The comparison above does not look at checks.
    wanted = {
        str(check.name)
        for table in metadata.tables.values()
        for check in table.constraints
        if isinstance(check, CheckConstraint)
    }
    engine = make_engine(store_url)
    inspector = inspect(engine)
    found = {
        str(check["name"])
        for table in metadata.tables
        for check in inspector.get_check_constraints(table)
    }
    engine.dispose()
    assert found == wanted


def test_a_missing_migration_is_seen(store_url: str) -> None:
    # Negative control: a database that lacks an index must be told from a good one.
    migrate(store_url)
    store = Store.open(store_url)
    with store.write() as conn:
        conn.exec_driver_sql("DROP INDEX uq_assignment_open")
    store.close()
    assert any("uq_assignment_open" in line for line in schema_drift(store_url))


def test_migrating_again_changes_nothing(store: Store, store_url: str) -> None:
    with store.write() as conn:
        seed_version(conn)
    migrate(store_url)
    with store.read() as conn:
        assert events.last_number(conn) == 0
    assert schema_drift(store_url) == []


def test_a_failed_write_leaves_nothing(store: Store) -> None:
    def half(conn: Connection) -> None:
        events.append(conn, PROJECT, NOW, "note", "ana")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), store.write() as conn:
        half(conn)
    with store.read() as conn:
        assert events.last_number(conn) == 0


def test_a_read_sees_one_state(store: Store) -> None:
    with store.read() as reader:
        assert events.last_number(reader) == 0
        with store.write() as writer:
            events.append(writer, PROJECT, NOW, "note", "ana")
        assert events.last_number(reader) == 0
    with store.read() as reader:
        assert events.last_number(reader) == 1


def test_a_read_cannot_write(store: Store) -> None:
    with pytest.raises(InvariantError, match="read tried to write"), store.read() as conn:
        events.append(conn, PROJECT, NOW, "note", "ana")
    with store.write() as conn:  # the connection writes again afterwards
        events.append(conn, PROJECT, NOW, "note", "ana")


def test_a_write_inside_a_write_is_refused(store: Store) -> None:
    with pytest.raises(InvariantError, match="one verb"), store.write(), store.write():
        pass


def test_writers_take_turns(store: Store, store_url: str) -> None:
    second = Store.open(store_url)  # as another process would: it shares no lock in memory

    def count_up(which: Store) -> None:
        for _ in range(10):
            with which.write() as conn:
                stored = events.list_events(conn, PROJECT, limit=1000)
                events.append(conn, PROJECT, NOW, "count", "ana", details={"n": len(stored)})

    threads = [threading.Thread(target=count_up, args=(which,)) for which in (store, second) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as conn:
        rows = events.list_events(conn, PROJECT, limit=1000)
    assert [row.details["n"] for row in rows] == [str(n) for n in range(40)]
    second.close()


def test_times_come_back_aware_and_exact(store: Store) -> None:
    with store.write() as conn:
        events.append(conn, PROJECT, NOW, "note", "ana")
        row = events.list_events(conn, PROJECT)[0]
    assert row.at == NOW
    assert row.at.utcoffset() is not None


def test_naive_times_are_refused(store: Store) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - the point of the test
    with pytest.raises(Exception, match="naive"), store.write() as conn:
        events.append(conn, PROJECT, naive, "note", "ana")


def _second_project(conn: Connection) -> None:
    from sqlalchemy import insert

    from controller.store.tables import project

    conn.execute(insert(project).values(project=PROJECT, created_at=NOW))


def _second_version(conn: Connection) -> None:
    row = seed_version(conn)
    add_version(conn, PROJECT, replace(row, content_digest=digest("other")))


def _second_target(conn: Connection) -> None:
    first = build_row("b-1", digest("source"))
    add_build(conn, PROJECT, first, NOW)
    add_build(conn, PROJECT, replace(first, build_id="b-2"), NOW)


def _second_open_assignment(conn: Connection) -> None:
    seed_version(conn)
    seed_device(conn)
    for rollout_id in ("r-1", "r-2"):
        seed_assignment(conn, seed_rollout(conn, rollout_id), "pi-1")


def _second_report(conn: Connection) -> None:
    for _ in range(2):
        events.append(conn, PROJECT, NOW, "report", "pi-1", device_id="pi-1", boot_id="1-a", seq=1)


@pytest.mark.parametrize(
    ("act", "constraint"),
    [
        (_second_project, "pk_project"),
        (_second_version, "pk_version"),
        (_second_target, "uq_build_project_target_key"),
        (_second_open_assignment, "uq_assignment_open"),
        (_second_report, "uq_event_device_id_boot_id_seq"),
    ],
)
def test_a_second_one_is_a_named_conflict(
    store: Store, act: Callable[[Connection], None], constraint: str
) -> None:
    with pytest.raises(ConstraintConflictError) as caught, store.write() as conn:
        act(conn)
    assert caught.value.constraint == constraint
    assert isinstance(caught.value, ConflictError)


def _override_without_reason(conn: Connection) -> None:
    put_gate(conn, PROJECT, replace(gate_row(None, verdict="OVERRIDDEN"), override_reason=""))


def _unknown_verdict(conn: Connection) -> None:
    put_gate(conn, PROJECT, gate_row(None, verdict="FINE"))


def _compiled_without_digest(conn: Connection) -> None:
    add_build(conn, PROJECT, replace(build_row("b-1", digest("s")), state="COMPILED"), NOW)


def _exposed_by_stealth(conn: Connection) -> None:
    from sqlalchemy import update

    from controller.store.tables import assignment

    seed_version(conn)
    seed_device(conn)
    seed_assignment(conn, seed_rollout(conn), "pi-1")
    conn.execute(update(assignment).values(state="OFFERED"))


@pytest.mark.parametrize(
    ("act", "constraint"),
    [
        (_override_without_reason, "ck_build_gate_override_named"),
        (_unknown_verdict, "ck_build_gate_verdict"),
        (_compiled_without_digest, "ck_build_compiled_has_digest"),
        (_exposed_by_stealth, "ck_assignment_ledger"),
    ],
)
def test_broken_rules_are_named(
    store: Store, act: Callable[[Connection], None], constraint: str
) -> None:
    with pytest.raises(ConstraintInvariantError) as caught, store.write() as conn:
        act(conn)
    assert caught.value.constraint == constraint


def test_an_override_without_any_reason_is_refused_too(store: Store) -> None:
    with pytest.raises(ConstraintInvariantError), store.write() as conn:
        put_gate(conn, PROJECT, gate_row(None, verdict="OVERRIDDEN"))


def test_references_must_exist(store: Store) -> None:
    with store.write() as conn:
        row = seed_version(conn)
    gone = VariantRow("tiny", 2, digest("never stored"), 1, "onnx", "")
    other = replace(row, version="2.0.0", variants=(gone,))
    with pytest.raises(ConstraintInvariantError), store.write() as conn:
        add_version(conn, PROJECT, other)
    with pytest.raises(ConstraintInvariantError), store.write() as conn:
        put_gate(conn, PROJECT, gate_row("b-none"))


def test_large_files_fit(store: Store) -> None:
    from controller.store.artifacts import artifact_length, record_artifact

    with store.write() as conn:
        record_artifact(conn, PROJECT, digest("large"), 5 * 1024**3, NOW)
    with store.read() as conn:
        assert artifact_length(conn, PROJECT, digest("large")) == 5 * 1024**3


def test_fresh_ids_are_free(store: Store) -> None:
    drawn = iter(["b-1", "b-1", "b-2"])
    with store.write() as conn:
        add_build(conn, PROJECT, build_row("b-1", digest("s")), NOW)
        assert fresh_id(conn, build.c.build_id, lambda: next(drawn)) == "b-2"
        with pytest.raises(Exception, match="all taken"):
            fresh_id(conn, build.c.build_id, lambda: "b-1")
        assert fresh_id(conn, build_job.c.job_id, lambda: "b-1") == "b-1"


def test_the_project_is_made_once(store: Store) -> None:
    with store.write() as conn:
        ensure_project(conn, PROJECT, NOW)
        ensure_project(conn, "other", NOW)


def test_a_second_owner_of_the_data_directory_is_told_who_holds_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    first = Store.open(url, tmp_path)
    program = (
        "import sys; from pathlib import Path; from controller.store.session import Store\n"
        "from controller.errors import RefusedError\n"
        "try: Store.open(sys.argv[1], Path(sys.argv[2]))\n"
        "except RefusedError as error: print(error.text()); sys.exit(7)\n"
    )
    arguments = [sys.executable, "-c", program, url, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 7, done.stderr
    import os

    assert f"pid {os.getpid()}" in done.stdout
    first.close()
    again = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 0, again.stdout + again.stderr


def test_the_schema_of_a_newer_controller_is_refused_by_name(store_url: str) -> None:
    migrate(store_url)
    engine = make_engine(store_url)
    with engine.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(RefusedError, match="9999"):
        migrate(store_url)


def test_other_databases_are_refused() -> None:
    for url in ("mysql://root@localhost/x", "sqlite://"):
        with pytest.raises(RefusedError, match="not supported"):
            Store.open(url)


def test_a_url_that_cannot_be_read_is_told_without_its_password() -> None:
    bare = ("postgresql:/u:secret@h/n", "postgresql://u:p@secret@h/n")
    for url in (*bare, "postgresql://u:p@s/secret@h/n"):
        with pytest.raises(RefusedError, match="cannot be read") as caught:
            Store.open(url)
        assert "secret" not in caught.value.text()
        assert "percent-encoded" in caught.value.text()


def test_an_absent_database_is_unavailable(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/no/such/folder.db")
    with pytest.raises(UnavailableError), store.read():
        pass
    store.close()
