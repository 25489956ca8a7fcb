"""Holds the migrations against the tables. Judges by a database, never by the text of a migration.

A SQLite database migrated to head must have the same columns, keys, checks and indexes as one made
from the tables. `--make TEXT` writes a migration for the difference.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from sqlalchemy import Engine, Inspector, create_engine, inspect, text

ROOT = Path(__file__).resolve().parent.parent

# What alembic itself keeps in a database.
OWN = "alembic_version"


def shape(engine: Engine) -> set[str]:
    """One line for each column, key, check and index."""
    inspector = inspect(engine)
    lines: set[str] = set()
    for table in inspector.get_table_names():
        if table != OWN:
            lines |= _table_lines(inspector, table)
    with engine.connect() as connection:
        # The inspector drops the predicate of a partial index; SQLite keeps the whole statement.
        rows = connection.execute(
            text("select name, sql from sqlite_master where type = 'index' and sql is not null")
        )
        lines |= {f"index {name}: {_squeeze(sql)}" for name, sql in rows}
    return lines


def _table_lines(inspector: Inspector, table: str) -> set[str]:
    lines = {
        f"column {table}.{c['name']}: {c['type']}{'' if c['nullable'] else ' not null'}"
        f" default {c['default']}"
        for c in inspector.get_columns(table)
    }
    primary = inspector.get_pk_constraint(table)
    lines.add(f"primary key {table}: {primary['name']} {primary['constrained_columns']}")
    lines |= {
        f"unique {table}: {u['name']} {u['column_names']}"
        for u in inspector.get_unique_constraints(table)
    }
    lines |= {
        f"check {table}: {c['name']} {_squeeze(c['sqltext'])}"
        for c in inspector.get_check_constraints(table)
    }
    lines |= {
        f"foreign key {table}: {f['name']} {f['constrained_columns']} -> "
        f"{f['referred_table']} {f['referred_columns']} {f['options']}"
        for f in inspector.get_foreign_keys(table)
    }
    return lines


def _squeeze(sql: str) -> str:
    return re.sub(r"\s+", " ", sql).strip()


def check() -> tuple[bool, str]:
    """Whether migrations and tables agree, and what differs in one line."""
    from controller.store.session import migrate
    from controller.store.tables import metadata

    with tempfile.TemporaryDirectory() as folder:
        migrated_url = f"sqlite:///{folder}/migrated.db"
        migrate(migrated_url)
        migrated = create_engine(migrated_url)
        made = create_engine(f"sqlite:///{folder}/made.db")
        metadata.create_all(made)
        have, want = shape(migrated), shape(made)
        migrated.dispose()
        made.dispose()
    if have == want:
        return True, f"{len(metadata.tables)} tables, {len(want)} columns, keys, checks and indexes"
    differing = [f"missing {line}" for line in sorted(want - have)]
    differing += [f"extra {line}" for line in sorted(have - want)]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return False, f"{'; '.join(differing[:3])}{more}; run make migration m='…'"


def make(message: str) -> None:
    """Write a migration for what differs between head and the tables."""
    from alembic import command
    from alembic.config import Config

    from controller.store.session import migrate

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/head.db"
        migrate(url)
        config = Config()
        config.set_main_option("script_location", str(ROOT / "migrations"))
        config.set_main_option("sqlalchemy.url", url)
        command.revision(config, message, autogenerate=True)


def main() -> int:
    """Compare, or write with `--make`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.check_migrations", description=__doc__)
    parser.add_argument("--make", metavar="TEXT", help="write a migration with this message")
    options = parser.parse_args()
    if options.make:
        make(options.make)
        return 0
    good, message = check()
    print(message)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
