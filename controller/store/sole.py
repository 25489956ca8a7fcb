"""One controller decides over a database: a lock inside it, held as long as a connection lives.

The data directory has a lock of its own, which says nothing of a database elsewhere: two
controllers on one PostgreSQL would each decide, and tell their own broker what the other's has to
know. Knows no noun and writes no row.
"""

import os
import socket
import threading
import time
from contextlib import suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from controller.errors import RefusedError, UnavailableError

_LOCK = 0x6C6D_0003
# The server sees the end of a controller that was killed at once, of one that lost its network
# after these seconds; another one is refused until then.
_KEEPALIVE = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_TRIES = 15  # for the end of one that was killed a moment ago
_LOOK_S = 0.2
_TRY = text("SELECT pg_try_advisory_lock(:lock)")
_HOLDER = text(
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = :lock"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class SoleHold:
    """The lock of one controller on a PostgreSQL database. Threads may share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._name = f"lighterman {socket.gethostname()[:30]} pid {os.getpid()}"
        self._conn: Connection | None = None
        self._lost_to = ""
        self._lock = threading.Lock()

    def take(self) -> None:
        """Hold the database. RefusedError names the controller that does; DBAPIError when away."""
        with self._lock:
            self._take(_TRIES)

    def demand(self) -> None:
        """UnavailableError while another controller holds the database."""
        if self._lost_to:
            raise UnavailableError(
                f"another controller took the database while it was away: {self._lost_to}",
                "this one decides nothing until that one has ended; stop one of the two",
            )

    def check(self) -> None:
        """Look whether the hold is there still, and take it again where the connection broke.

        Raises UnavailableError when somebody else has it, DBAPIError when the database is away.
        """
        with self._lock:
            if self._conn is not None:
                try:
                    self._conn.execute(text("SELECT 1"))
                except DBAPIError:
                    self._drop()
            if self._conn is None:
                try:
                    self._take(0)
                except RefusedError as error:
                    self._lost_to = error.message
        self.demand()

    def close(self) -> None:
        """Give the database back."""
        with self._lock:
            self._drop()

    def _take(self, tries: int) -> None:
        conn = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            for name, value in {"application_name": self._name, **_KEEPALIVE}.items():
                conn.execute(text("SELECT set_config(:n, :v, false)"), {"n": name, "v": value})
            looks = 0
            while not conn.execute(_TRY, {"lock": _LOCK}).scalar():
                looks += 1
                if looks > tries:
                    holder = conn.execute(_HOLDER, {"lock": _LOCK}).scalar() or "unknown"
                    raise RefusedError(
                        f"the database {self._engine.url} is in use by another controller"
                        f" ({holder})",
                        "stop that one, or give this one a database of its own; two would decide"
                        " beside each other",
                    )
                time.sleep(_LOOK_S)
        except BaseException:
            self._end(conn)
            raise
        self._conn, self._lost_to = conn, ""

    def _drop(self) -> None:
        if self._conn is not None:
            self._end(self._conn)
            self._conn = None

    @staticmethod
    def _end(conn: Connection) -> None:
        """Really: in the pool it would hold the lock for whoever gets it next."""
        with suppress(SQLAlchemyError):
            conn.detach()
        with suppress(SQLAlchemyError):
            conn.close()
