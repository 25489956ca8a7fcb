"""Opens the database: transactions, one writer, migrations.

What a constraint refuses becomes a named error here. Knows no noun and writes no row itself.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from sqlalchemy import Column, Engine, create_engine, event, inspect, make_url, select, text

# Services name the type of what `Store` gives them without importing SQLAlchemy.
from sqlalchemy import Connection as Connection
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
)

from controller.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    InvariantError,
    LightermanError,
    RefusedError,
    UnavailableError,
)
from controller.store.fair import FairLock
from controller.store.folder import lock_data_dir
from controller.store.sole import SoleHold
from controller.store.tables import metadata

BUSY_TIMEOUT_MS = 10_000

# Services reason about one writer. SQLite has one by nature; PostgreSQL gets it by this lock, which
# ends with the transaction.
_WRITER_LOCK = 0x6C6D_0001
_MIGRATION_LOCK = 0x6C6D_0002

# Option of a connection: may this transaction write? Read by the listener that begins it.
_WRITE = "lighterman_write"

# What people are told when a constraint refuses; others are named as they are.
SENTENCES = {
    "uq_assignment_open": "this device already has an open assignment of this model",
    "ck_assignment_ledger": "an assignment that was never offered cannot be in that state",
    "ck_build_gate_override_named": "an override needs a reason",
    "uq_event_device_id_boot_id_seq": "this report of the device is stored already",
    "ck_token_uses": "this token is used up",
    "uq_certificate_token_id_public_key_digest": "this token already gave this key a certificate",
}


class ConstraintConflictError(ConflictError):
    """A unique constraint refused; ``constraint`` is its name."""

    def __init__(self, constraint: str, message: str) -> None:
        super().__init__(message)
        self.constraint = constraint


class ConstraintInvariantError(InvariantError):
    """A check, a reference or a missing value was refused; ``constraint`` is its name."""

    def __init__(self, constraint: str, message: str) -> None:
        super().__init__(message)
        self.constraint = constraint


class Store:
    """The database of one controller. Threads may share it; each call below is one transaction."""

    def __init__(
        self, engine: Engine, lock: IO[str] | None = None, sole: SoleHold | None = None
    ) -> None:
        self._engine = engine
        self._lock = lock
        self._sole = sole
        self._writer = FairLock()
        self._writing = threading.local()

    @classmethod
    def open(cls, url: str, data_dir: Path | None = None) -> Self:
        """Open ``url``; with ``data_dir`` hold its lock, and the database's, until `close`.

        Raises RefusedError naming the process that holds a lock. Does not migrate.
        """
        engine = make_engine(url)
        if data_dir is None:
            return cls(engine)
        sole = SoleHold(engine) if engine.dialect.name == "postgresql" else None
        store = cls(engine, lock_data_dir(data_dir), sole)
        try:
            with _named_errors(engine):
                if sole is not None:
                    sole.take()
        except BaseException:
            store.close()
            raise
        return store

    def keep_hold(self) -> None:
        """To be called every few seconds: notices a lost hold on the database and takes it again.

        Raises UnavailableError while the database is away or another controller has taken it.
        """
        if self._sole is not None:
            with _named_errors(self._engine):
                self._sole.check()

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write: all of it is stored, or after an exception nothing.

        Raises named errors for what constraints refuse, UnavailableError when the database is
        away, ExhaustedError when the disk is full.
        """
        if getattr(self._writing, "active", False):
            raise InvariantError("a write inside a write: one verb is one transaction")
        if self._sole is not None:
            self._sole.demand()
        with self._writer:
            self._writing.active = True
            try:
                with _named_errors(self._engine), self._begin(write=True) as conn:
                    yield conn
            finally:
                self._writing.active = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that sees one state of everything and cannot write."""
        with _named_errors(self._engine), self._begin(write=False) as conn:
            yield conn

    @contextmanager
    def _begin(self, *, write: bool) -> Iterator[Connection]:
        with self._engine.connect() as conn:
            if self.dialect == "postgresql" and not write:
                conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            conn.execution_options(**{_WRITE: write})
            with conn.begin():
                if self.dialect == "postgresql" and write:
                    conn.execute(
                        text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITER_LOCK}
                    )
                yield conn

    def check(self) -> None:
        """Ask the database for its schema. UnavailableError when it is away or another one."""
        if self._sole is not None:
            self._sole.demand()
        with self.read() as conn:
            if not inspect(conn).has_table("alembic_version"):
                have: object = "none"
            else:
                have = conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if have != newest_migration():
            raise UnavailableError(
                f"the database has schema {have}, this controller needs {newest_migration()}",
                "lighterman-controller migrate brings an older one up; a newer one was made by a "
                "newer controller",
            )

    def close(self) -> None:
        """Give back connections and the locks."""
        if self._sole is not None:
            self._sole.close()
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def make_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL (psycopg), with everything a transaction needs set."""
    try:
        parsed = make_url(url)
        # A bare @ or / in the password puts the rest of it into the host and the name.
        if parsed.drivername != "sqlite" and (url.count("@") > 1 or "@" in (parsed.database or "")):
            raise ArgumentError
    except ArgumentError:
        # Not repeated: it may hold a password.
        raise RefusedError(
            "the database URL cannot be read",
            "it is sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME; special characters "
            "in USER and PASSWORD are percent-encoded",
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise RefusedError(
            f"database {parsed.render_as_string()} is not supported",
            "use sqlite:///PATH or postgresql://USER@HOST/NAME",
        )
    engine = create_engine(parsed, pool_size=8, max_overflow=32)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver must not begin transactions by itself: it would begin deferred ones.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(conn: Connection) -> None:
    write = bool(conn.get_execution_options().get(_WRITE, True))
    if conn.info.get(_WRITE) is not write:  # of this connection, as it was left
        _do(conn, f"PRAGMA query_only={'OFF' if write else 'ON'}")
        conn.info[_WRITE] = write
    # IMMEDIATE takes the writer's place now: a deferred one could fail in the middle of the verb.
    if write:
        conn.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        _do(conn, "BEGIN")


def _do(conn: Connection, statement: str) -> None:
    """What cannot fail for a busy database, by the driver itself: every transaction needs it."""
    driver: Any = conn.connection.driver_connection
    driver.execute(statement).close()


def fresh_id(conn: Connection, column: Column[Any], new: Callable[[], str]) -> str:
    """An id from ``new`` that ``column`` does not hold yet. In `Store.write` nobody is faster."""
    for _ in range(20):
        found = new()
        if conn.execute(select(column).where(column == found)).first() is None:
            return found
    raise ExhaustedError(f"20 ids drawn for {column.table.name}, all taken")


@contextmanager
def _named_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise named_error(error) from error
    except (DataError, OverflowError) as error:  # PostgreSQL, SQLite
        said = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        raise InvalidError(
            f"a value is beyond what the database keeps: {said}",
            "numbers are whole and below 2,147,483,648, texts hold no NUL character",
        ) from error
    except DBAPIError as error:
        if "readonly database" in str(error.orig) or "read-only" in str(error.orig):
            raise InvariantError("a read tried to write") from error
        if isinstance(error, OperationalError):
            raise _unavailable(engine, error) from error
        raise


def named_error(error: IntegrityError) -> LightermanError:
    """The error of the room for what a constraint refused."""
    unique, name = _constraint(error)
    sentence = SENTENCES.get(name, f"constraint {name} refused")
    if unique:
        return ConstraintConflictError(name, sentence)
    return ConstraintInvariantError(name, sentence)


def _unavailable(engine: Engine, error: DBAPIError) -> LightermanError:
    said = str(error.orig).strip().splitlines()
    reason = said[0] if said else type(error.orig).__name__
    if "full" in reason or "No space left" in reason:
        return ExhaustedError(f"the database cannot grow: {reason}", str(engine.url))
    # The URL is rendered without its password.
    return UnavailableError(f"the database does not answer: {reason}", str(engine.url))


def _constraint(error: IntegrityError) -> tuple[bool, str]:
    """Whether a unique constraint refused, and the constraint's name."""
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is not None:  # PostgreSQL names it
        name = diagnosis.constraint_name or f"{diagnosis.table_name}.{diagnosis.column_name}"
        return diagnosis.sqlstate == "23505", str(name)
    kind, _, rest = str(error.orig).partition(" constraint failed")
    rest = rest.removeprefix(": ")
    if kind == "UNIQUE":
        return True, _unique_by_columns().get(rest, rest)
    return False, rest or kind.lower()


def _unique_by_columns() -> dict[str, str]:
    """SQLite names the columns of a unique constraint, not the constraint."""
    names: dict[str, str] = {}
    for table in metadata.tables.values():
        for index in table.indexes:
            if index.unique:
                names[_columns(table.name, [c.name for c in index.columns])] = str(index.name)
        for constraint in table.constraints:
            columns = getattr(constraint, "columns", None)
            if columns is not None and type(constraint).__name__ in (
                "PrimaryKeyConstraint",
                "UniqueConstraint",
            ):
                rendered = constraint.name
                names[_columns(table.name, [c.name for c in columns])] = str(rendered)
    return names


def _columns(table: str, columns: list[str]) -> str:
    return ", ".join(f"{table}.{column}" for column in columns)


def migrations_dir() -> Path:
    """Where the migrations are: in the package when installed, beside it in a checkout.

    Raises InvariantError when the installation lacks them.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise InvariantError(f"no migrations beside {package}", "the installation is incomplete")


@cache
def newest_migration() -> str:
    """The revision that the code of this process is written for."""
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory(str(migrations_dir())).get_current_head())


def migrate(url: str) -> None:
    """Bring the database at ``url`` to the newest schema; does nothing when it is there.

    Raises RefusedError for a schema that only a newer controller knows.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    engine = make_engine(url)
    try:
        with _named_errors(engine), engine.begin() as conn:
            if engine.dialect.name == "postgresql":
                conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            config.attributes["connection"] = conn
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise RefusedError(
                    f"the database cannot be brought to schema {newest_migration()}: {error}",
                    "a newer controller made it: run that one, or restore the backup of before",
                ) from error
    finally:
        engine.dispose()


def schema_drift(url: str) -> list[str]:
    """What differs between the database at ``url`` and the tables, one line each; empty is good."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = make_engine(url)
    try:
        with engine.connect() as conn:
            context = MigrationContext.configure(conn, opts={"compare_type": True})
            return [str(difference) for difference in compare_metadata(context, metadata)]
    finally:
        engine.dispose()
