"""One store contract, two databases: every test here runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.store.projects import ensure_project
from controller.store.session import Store, migrate
from tests.support.stores import NOW, PROJECT


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A migrated store with the default project."""
    migrate(store_url)
    opened = Store.open(store_url)
    with opened.write() as conn:
        ensure_project(conn, PROJECT, NOW)
    yield opened
    opened.close()
