"""A database that was restored from a backup: its devices have followed orders that it forgot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.services.desired import AHEAD_MOST, change_desired
from controller.store.devices import raise_applied
from tests.support.gateway import Desk, open_desk
from tests.support.stores import seed_device


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def order(desk: Desk, applied: int | None = None) -> int:
    """The generation of the next order for pi-1, which says what it has applied."""
    with desk.deps.store.write() as conn:
        if applied is not None:
            raise_applied(conn, "pi-1", applied)
        return change_desired(conn, desk.deps, desk.ctx(), "pi-1", "digits", {"version": "1.0.0"})


def test_orders_go_on_above_what_a_device_has_followed(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert [order(desk), order(desk, applied=1)] == [1, 2]  # as ever: one more
    assert [order(desk, applied=9), order(desk), order(desk, applied=11)] == [10, 11, 12]


def test_a_device_without_a_desired_state_may_have_followed_some(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert order(desk, applied=5) == 6


def test_a_device_that_claims_a_number_out_of_reach_is_not_followed(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        seed_device(conn)
    assert order(desk, applied=AHEAD_MOST + 1) == 1
    assert order(desk, applied=2**62) == 2
