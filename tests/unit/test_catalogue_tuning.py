"""Measuring on devices: who is asked for what, whose word counts, and which ladder follows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.domain.tuning import parse_orders
from controller.errors import DeniedError, NotFoundError, RefusedError
from controller.services.build_explanations import explain_builds
from controller.services.builds import list_builds, start_build
from controller.services.desired import load_members, make_composer
from controller.services.device_sessions import open_build
from controller.services.engines import allowed_digests
from controller.services.events import EventFilter, list_events
from controller.services.reports import DeviceEnvelope, EventBody, accept_reports
from controller.services.tuning_orders import fetch_orders
from controller.services.tuning_views import TuningView
from controller.services.tunings import (
    Wish,
    apply_ladder,
    cancel_tuning,
    get_tuning,
    start_tuning,
)
from controller.store.devices import put_capabilities, update_device
from tests.support.catalogue import World, open_world
from tests.support.stores import seed_device

PROFILE = "generic-x86-64"
REF: dict[str, Any] = {"model": "digits", "version": "1.0.0", "profile": PROFILE}
BOOT = "1-abc"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for opened in open_world(tmp_path):
        opened.push()
        opened.push_data()
        enrol(opened, "lab-1")
        start_build(opened.deps, opened.ctx, model="digits", version="1.0.0", profiles=[PROFILE])
        opened.finish_all()
        yield opened


def enrol(world: World, device_id: str, os_name: str = "Debian", **more: Any) -> None:
    with world.deps.store.write() as conn:
        seed_device(conn, device_id)
        update_device(conn, device_id, profile=PROFILE, **more)
        reported = {"arch": "x86_64", "os": os_name, "runtimes": {"onnxruntime": "1.32.0"}}
        put_capabilities(conn, device_id, reported, world.ctx.now)


def start(world: World, **more: Any) -> TuningView:
    return start_tuning(world.deps, world.ctx, Wish(**REF, **more))


def orders(world: World, device_id: str) -> Any:
    """As the agent reads them."""
    view = fetch_orders(world.deps, world.ctx, device_id)
    return parse_orders(view.manifest, device_id, "default", view.number)


class Device:
    """Says what it measured, through the spool's road."""

    def __init__(self, world: World, device_id: str) -> None:
        self._world, self._device, self._seq = world, device_id, 0

    def tell(self, kind: str, reason: str, details: Mapping[str, str]) -> None:
        self._seq += 1
        body = EventBody(kind, "digits", "1.0.0", reason, details)
        envelopes = [DeviceEnvelope(BOOT, self._seq, body)]
        accept_reports(self._world.deps, self._world.ctx, self._device, envelopes)

    def measured(self, order: Any, build: str, p95_ms: float | str = 3.0) -> None:
        details = {
            "tuning": order.tuning, "build": build, "ok": "true", "os": "Debian",
            "runtime": "onnxruntime", "runtime_version": "1.32.0",
            "p50_ms": "0.0001", "p95_ms": f"{p95_ms}", "n": "99",
        }  # fmt: skip
        self.tell("build_measured", "", details)

    def measure_all(self, **p95_ms: float) -> None:
        """Everything that is asked; by the last word of variant and recipe, else 3 ms."""
        (order,) = orders(self._world, self._device).tuning
        for one in order.candidates:
            name = f"{one.variant}_{one.recipe.rpartition('-')[2]}"
            self.measured(order, one.build, p95_ms.get(name, 3.0))


def ladder_of(world: World, device_id: str) -> list[str]:
    with world.deps.store.read() as conn:
        composer = make_composer(conn, "default", "digits", "1.0.0", {})
        (member,) = load_members(conn, "default", (device_id,))
        rungs = composer.ladder(member).rungs
    return [f"{one.rung} {one.build.recipe}" for one in rungs if one.build]


def test_an_idle_device_is_asked_measures_and_a_person_takes_the_ladder(world: World) -> None:
    before = ladder_of(world, "lab-1")
    view = start(world, soak_s=2.0)
    assert (view.state, [s.device_id for s in view.shares]) == ("running", ["lab-1"])
    found = orders(world, "lab-1")
    assert found.number == 1
    (order,) = found.tuning
    assert (order.soak_s, order.measure_s, order.heat_limit_c) == (2.0, 30.0, 85.0)
    assert {(c.variant, c.recipe) for c in order.candidates} == {
        (v, f"onnxruntime-{r}") for v in ("heavy", "light") for r in ("fp32", "int8")
    }
    Device(world, "lab-1").measure_all(heavy_fp32=9.0, heavy_int8=4.0, light_fp32=1.0, light_int8=2)
    done = get_tuning(world.deps, world.ctx, **REF)
    assert (done.state, done.on_device, done.measured_on) == (
        "done", True, "1 device: one device decides alone",
    )  # fmt: skip
    assert ladder_of(world, "lab-1") == before, "nobody chose yet"
    applied = apply_ladder(world.deps, world.ctx, **REF, build_ids=done.proposed)
    assert applied.applied
    chosen = ladder_of(world, "lab-1")
    assert chosen[-1] == "light onnxruntime-fp32", "the fastest on the device, not on the host"
    (why,) = explain_builds(
        world.deps, world.ctx, model="digits", version="1.0.0", variant="light",
        recipe="onnxruntime-fp32",
    )  # fmt: skip
    told = {fact.topic: fact.text for fact in why.facts}
    assert "of the ladder that was chosen" in told["used"]
    assert told["on devices"].startswith("lab-1 2026")
    kinds = [e.kind for e in list_events(world.deps, world.ctx, EventFilter(), limit=1000)]
    assert kinds.count("build_measured") == 4
    assert {"tuning_started", "tuning_finished", "ladder_chosen"} <= set(kinds)
    apply_ladder(world.deps, world.ctx, **REF, reset=True)
    assert ladder_of(world, "lab-1") == before


def test_only_what_was_asked_of_this_device_counts_and_only_once(world: World) -> None:
    start(world)
    enrol(world, "field-1")
    (order,) = orders(world, "lab-1").tuning
    one = order.candidates[0].build
    Device(world, "field-1").measured(order, one, 0.001)
    lab = Device(world, "lab-1")
    lab.measured(order, one, 5.0)
    lab.measured(order, one, 0.001)  # a second word on the same order
    lab.measured(order, "b-unknown")
    lab.tell("tuning_waits", "requests came", {"tuning": order.tuning})
    views = {v.build_id: v for v in list_builds(world.deps, world.ctx)}
    assert [(w.device_id, w.measured.p95_ms) for w in views[one].measured] == [("lab-1", 5.0)]
    assert orders(world, "field-1").tuning == ()
    assert one not in [c.build for c in orders(world, "lab-1").tuning[0].candidates]
    (share,) = get_tuning(world.deps, world.ctx, **REF).shares
    assert (share.total - len(share.build_ids), share.note) == (1, "requests came")


def test_figures_that_are_none_are_a_failed_measurement(world: World) -> None:
    start(world)
    (order,) = orders(world, "lab-1").tuning
    lab = Device(world, "lab-1")
    for one, p95_ms in zip(order.candidates, ("nan", "-1", "soon", ""), strict=True):
        lab.measured(order, one.build, p95_ms)
    words = [w for v in list_builds(world.deps, world.ctx) for w in v.measured]
    assert len(words) == 4
    assert all("cannot be read" in word.measured.reason for word in words)
    assert not get_tuning(world.deps, world.ctx, **REF).on_device


def test_another_os_makes_it_stale_and_it_is_asked_for_again(world: World) -> None:
    start(world)
    Device(world, "lab-1").measure_all()
    assert start(world).notes == (
        "these devices measured all of it already; --again measures anew",
    )
    with world.deps.store.write() as conn:
        reported = {"os": "Ubuntu", "runtimes": {"onnxruntime": "1.32.0"}}
        put_capabilities(conn, "lab-1", reported, world.ctx.now)
    view = get_tuning(world.deps, world.ctx, **REF)
    assert not view.on_device
    assert view.measured_on == "the build host: x86_64 test"
    words = [w for v in list_builds(world.deps, world.ctx) for w in v.measured]
    assert {w.stale for w in words} == {"the OS is Ubuntu, it was Debian"}
    assert start(world).state == "running"


def test_without_a_device_the_build_host_speaks_and_it_is_said(world: World) -> None:
    view = start(world, selector="device=elsewhere")
    assert (view.state, view.on_device) == ("none", False)
    assert any("no device matches" in line for line in view.notes)
    assert view.measured_on == "the build host: x86_64 test"
    assert view.proposed
    with pytest.raises(NotFoundError, match="profile nowhere does not exist"):
        start_tuning(world.deps, world.ctx, Wish("digits", "1.0.0", "nowhere"))


def test_what_runs_is_not_begun_twice_and_ends_when_cancelled_or_over(world: World) -> None:
    first = start(world)
    again = start(world)
    assert (again.row, again.notes) == (first.row, ("it runs already",))
    cancelled = cancel_tuning(world.deps, world.ctx, **REF)
    assert cancelled.state == "cancelled"
    found = orders(world, "lab-1")
    assert (found.number, found.tuning) == (2, ())
    with pytest.raises(RefusedError, match="nothing measures"):
        cancel_tuning(world.deps, world.ctx, **REF)
    start(world, expires_s=60)
    late = world.at(120)
    assert get_tuning(late.deps, late.ctx, **REF).state == "expired"
    assert orders(late, "lab-1").tuning == ()
    assert start_tuning(late.deps, late.ctx, Wish(**REF)).state == "running"


def test_a_ladder_that_nobody_saw_is_not_chosen(world: World) -> None:
    view = get_tuning(world.deps, world.ctx, **REF)
    shown, first = view.proposed, view.standings[0].seen.gate.key
    slow = f"{first.variant}_{first.recipe.rpartition('-')[2]}"
    start(world)
    Device(world, "lab-1").measure_all(**{slow: 90.0})
    assert get_tuning(world.deps, world.ctx, **REF).proposed != shown
    with pytest.raises(RefusedError, match="another ladder by now"):
        apply_ladder(world.deps, world.ctx, **REF, build_ids=shown)


def test_the_builds_to_measure_may_be_fetched_and_no_others(world: World) -> None:
    digest = next(v.digest for v in list_builds(world.deps, world.ctx))
    assert digest not in allowed_digests(world.deps, world.ctx, "lab-1", digest)
    start(world)
    allowed = allowed_digests(world.deps, world.ctx, "lab-1", digest)
    length, _ = open_build(world.deps, world.ctx, "lab-1", digest, 0, allowed)
    assert length
    cancel_tuning(world.deps, world.ctx, **REF)
    nothing = allowed_digests(world.deps, world.ctx, "lab-1", digest)
    with pytest.raises(DeniedError, match="is not part of what lab-1 should run"):
        open_build(world.deps, world.ctx, "lab-1", digest, 0, nothing)
