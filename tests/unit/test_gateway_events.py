"""Reading events: a filter with a name that does not exist is an error, not an empty list."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.errors import NotFoundError
from controller.services.events import EventFilter, check_filter, list_events
from controller.store import events
from tests.support.gateway import Desk, open_desk
from tests.support.stores import PROJECT, seed_device, seed_version


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            seed_device(conn, "bench-1")
            seed_version(conn)
        yield opened


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (EventFilter(device_id="bench-2"), "no device bench-2\ndid you mean bench-1 ?"),
        (EventFilter(device_id="zzz"), "no device zzz\nknown are bench-1"),
        (EventFilter(kinds=("build_overriden",)), "did you mean build_overridden"),
        (EventFilter(kinds=("boot", "nope")), "no kind of event nope\n"),
        (EventFilter(rollout_id="r-000000"), "no rollout r-000000\nthere is no rollout yet"),
        (EventFilter(model="digit"), "no model digit\ndid you mean digits ?"),
    ],
)
def test_unknown_names_are_errors(desk: Desk, wanted: EventFilter, said: str) -> None:
    for ask in (list_events, check_filter):
        with pytest.raises(NotFoundError) as caught:
            ask(desk.deps, desk.ctx(), wanted)
        assert said in caught.value.text()


def test_names_that_exist_may_have_no_event_yet(desk: Desk) -> None:
    for wanted in (
        EventFilter(device_id="bench-1"),
        EventFilter(model="digits", kinds=("signature_override", "rung_changed")),
    ):
        assert list_events(desk.deps, desk.ctx(), wanted) == []


def test_what_a_newer_agent_told_is_known_from_then_on(desk: Desk) -> None:
    wanted = EventFilter(kinds=("fan_stopped",))
    with pytest.raises(NotFoundError):
        list_events(desk.deps, desk.ctx(), wanted)
    with desk.deps.store.write() as conn:
        events.append(conn, PROJECT, desk.now, "fan_stopped", "bench-1", device_id="bench-1")
    assert [one.kind for one in list_events(desk.deps, desk.ctx(), wanted)] == ["fan_stopped"]
