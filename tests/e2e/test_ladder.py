"""Heat, load and a cut link on real agents: a lighter rung, then back, and no request lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from examples.fleet.camera import Camera
from examples.fleet.clock import TooLateError, wait_until
from examples.hosts import set_temperature
from tests.support.e2e_world import DIGITS, EDGE_CLIENT, EDGE_SERVER, Fleet, now

# The last of so many requests waits for the others: five times the threshold of 40 ms on a quiet
# machine where one takes 22 ms, so that a faster one passes it too.
FLOOD = 10
PICTURES_AT_ONCE = 1024


def rung_changes(fleet: Fleet, device: str) -> list[dict[str, Any]]:
    return fleet.events("--device", device, "--kind", "rung_changed")


def press(
    fleet: Fleet,
    device: str,
    cause: str,
    rungs: tuple[str, str],
    begin: Callable[[], object],
    end: Callable[[], object],
    patience_s: float = 40,
) -> list[dict[str, Any]]:
    """Press until the device steps from one rung to the other, release until it is back."""
    upper, lower = rungs
    wait_until(lambda: fleet.runs(device)[1] == upper, 60, f"{device} on {upper}")
    before, since = len(rung_changes(fleet, device)), now()
    begin()
    try:
        # The event, not the first answer: a request that finds its remote rung cut is answered by
        # a local one before the ladder has moved.
        wait_until(
            lambda: rung_changes(fleet, device)[before:], patience_s,
            f"{device} to step down: {cause}", every_s=0.3,
        )  # fmt: skip
        wait_until(lambda: fleet.runs(device)[1] == lower, 10, f"{lower} to answer on {device}")
    finally:
        end()
    wait_until(lambda: fleet.runs(device)[1] == upper, 60, f"{device} to step back up")

    def told() -> list[dict[str, Any]]:
        new = rung_changes(fleet, device)[before:]
        return new if len(new) >= 2 else []

    new = wait_until(told, 20, f"the events of {device}", every_s=0.3)
    assert fleet.failed(since) == []
    first, last = new[0], new[-1]
    assert (first["details"]["from"], first["details"]["to"]) == (upper, lower), new
    assert first["details"]["cause"] == cause, new
    assert (last["details"]["to"], last["details"]["cause"]) == (upper, "recovered"), new
    return new


def test_heat_steps_down_and_back(fleet: Fleet) -> None:
    root = fleet.agents["n100-1"].host_root
    assert root is not None
    explained: list[dict[str, list[str]]] = []

    def cool() -> None:
        wait_until(lambda: "rung" in fleet.facts("device", "n100-1"), 20, "an explanation")
        explained.append(fleet.facts("device", "n100-1"))
        set_temperature(root, 45.0)

    new = press(
        fleet, "n100-1", "temperature", ("heavy", "light"),
        lambda: set_temperature(root, 92.0), cool,
    )  # fmt: skip
    assert "92 °C ≥ 80" in new[0]["reason"]
    assert explained[0]["runs"][0].split()[1] == "light", explained
    assert "92 °C" in explained[0]["rung"][0], explained


@contextmanager
def flood(fleet: Fleet, device: str) -> Iterator[list[Camera]]:
    """Clients that always wait for an answer, each with many pictures at once."""
    cameras = [
        Camera(fleet.agents[device].endpoint, DIGITS, fleet.pictures(PICTURES_AT_ONCE), 1000.0)
        for _ in range(FLOOD)
    ]
    try:
        yield cameras
    finally:
        for camera in cameras:
            camera.stop()


def test_load_steps_down_and_back(fleet: Fleet) -> None:
    with flood(fleet, "n100-2") as cameras:

        def begin() -> None:
            for camera in cameras:
                camera.start()

        def end() -> None:
            for camera in cameras:
                camera.stop()

        new = press(fleet, "n100-2", "load", ("heavy", "light"), begin, end)
        assert "oldest request waits" in new[0]["reason"]
        failed = [a.error for camera in cameras for a in camera.answers() if not a.ok]
        assert failed == []


def test_a_cut_link_falls_back_to_the_device_itself(fleet: Fleet) -> None:
    assert fleet.proxy is not None
    new = press(
        fleet, EDGE_CLIENT, "network", ("edge", "heavy"), fleet.proxy.cut, fleet.proxy.restore
    )
    assert "link" in new[0]["reason"]
    # The device whose endpoint is the edge server does not change its rung for it.
    assert fleet.runs(EDGE_SERVER)[1] == "heavy"


def test_negative_control_without_pressure_nothing_steps_down(fleet: Fleet) -> None:
    """The check that claims a step down fails where nothing presses."""
    root = fleet.agents["n100-1"].host_root
    assert root is not None
    with pytest.raises(TooLateError, match="to step down: temperature"):
        press(
            fleet, "n100-1", "temperature", ("heavy", "light"),
            lambda: set_temperature(root, 73.0), lambda: set_temperature(root, 45.0), patience_s=4,
        )  # fmt: skip
