"""Events and the outbox are counted for years: their numbers do not end at 31 bits."""

import pytest
from alembic import command
from alembic.config import Config

from controller.errors import InvalidError
from controller.store import events, outbox
from controller.store.events import NewEvent
from controller.store.outbox import OutboxKind
from controller.store.projects import ensure_project
from controller.store.session import Store, make_engine, migrate, migrations_dir
from tests.support.stores import NOW, PROJECT

LAST = 2**31 - 1  # that 31 bits hold
COUNTED = ("event", "outbox")


def migrate_to(url: str, revision: str) -> None:
    """As `migrate`, but only so far."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    engine = make_engine(url)
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
    engine.dispose()


def spend(store: Store) -> None:
    """As if so many had been stored that 31 bits are used up."""
    with store.write() as conn:
        for table in COUNTED:
            if store.dialect == "sqlite":
                conn.exec_driver_sql(
                    f"UPDATE sqlite_sequence SET seq = {LAST} WHERE name = '{table}'"
                )
            else:
                conn.exec_driver_sql(f"SELECT setval('{table}_number_seq', {LAST})")


def tell_one(store: Store) -> tuple[int, int]:
    """Numbers of a new event and a new row of the outbox."""
    with store.write() as conn:
        number = events.append(conn, PROJECT, NOW, "told", "ana")
        return number, outbox.append(conn, NOW, OutboxKind.FEED, "rollout/x/y", b"{}")


def test_numbers_of_a_database_of_before_go_on_beyond_31_bits(store_url: str) -> None:
    migrate_to(store_url, "0001")
    store = Store.open(store_url)
    with store.write() as conn:
        ensure_project(conn, PROJECT, NOW)
    assert tell_one(store) == (1, 1)
    migrate(store_url)
    spend(store)
    assert tell_one(store) == (LAST + 1, LAST + 1)
    with store.write() as conn:
        events.append_many(conn, [NewEvent(PROJECT, NOW, "told", "ana")] * 2)
    with store.read() as conn:
        assert events.last_number(conn) == LAST + 3
        behind = events.list_events(conn, PROJECT, after=LAST + 1, newest=False)
        assert [row.number for row in behind] == [LAST + 2, LAST + 3]
        assert [row.number for row in outbox.take(conn)] == [1, LAST + 1]
    with store.write() as conn:
        outbox.done(conn, [1, LAST + 1])
    with store.read() as conn:
        assert outbox.take(conn) == []
    store.close()


def test_control_without_that_migration_postgresql_ends_there(store_url: str) -> None:
    migrate_to(store_url, "0001")
    store = Store.open(store_url)
    with store.write() as conn:
        ensure_project(conn, PROJECT, NOW)
    tell_one(store)
    spend(store)
    if store.dialect == "sqlite":
        assert tell_one(store) == (LAST + 1, LAST + 1)
    else:
        with pytest.raises(InvalidError, match="maximum value of sequence"):
            tell_one(store)
    store.close()
