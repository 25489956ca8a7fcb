"""Fixtures of the simulations: a migrated database to copy, and worlds over it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.rollout_world import World, make_template, new_world


@pytest.fixture(scope="session")
def rollout_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def make_world(rollout_template: Path, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes a world of so many devices; invariants are checked once more at the end."""
    with ExitStack() as stack:

        def make(count: int, **values: Any) -> World:
            folder = tmp_path / f"world-{len(worlds)}"
            folder.mkdir()
            world = stack.enter_context(new_world(rollout_template, folder, count, **values))
            worlds.append(world)
            return world

        worlds: list[World] = []
        yield make
        for world in worlds:
            world.check()
