"""Whom rollouts pick by lists, versions and groups; what stays when a group changes; slips."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import event, insert

from controller.domain.rollout import Intent, Phase
from controller.errors import InvalidError, LightermanError
from controller.services.devices import accept_device, find_devices, label_devices, select_ids
from controller.services.objects import NewObject, apply_objects
from controller.services.rollout_plans import QUARANTINED, plan_rollout
from controller.services.rollouts import set_intent, start_rollout
from controller.services.tokens import create_token
from controller.store import devices
from controller.store.assignments import list_assignments
from controller.store.desired import list_desired
from controller.store.tables import assignment, capability, device, label, rollout
from tests.simulation.rollout_world import MODEL, POLICY, PROFILE, START, World, new_world
from tests.support.stores import PROJECT

MakeWorld = Callable[..., World]


def spec(selector: str, version: str = "1.0.0", **more: object) -> dict[str, object]:
    return {
        "model": MODEL, "version": version, "selector": selector, "waves": ["1", "100%"],
        "soak_s": 1.0, "min_samples": 5,
    } | more  # fmt: skip


def labelled(world: World, **sites: str) -> None:
    """pi_00="berlin" sets its site."""
    for name, site in sites.items():
        device_id = name.replace("_", "-")
        label_devices(world.deps, world.ctx(), device_ids=[device_id], values={"site": site})


def group(world: World, name: str, selector: str, kind: str = "Group") -> tuple[str, ...]:
    (done,) = apply_objects(
        world.deps, world.ctx(), [NewObject(kind, name, {"selector": selector})]
    )
    return done.notes


def picked(world: World, selector: str, version: str = "1.1.0") -> int:
    return plan_rollout(world.deps, world.ctx(), spec(selector, version)).devices


def refused(world: World, selector: str) -> str:
    with pytest.raises(LightermanError) as caught:
        plan_rollout(world.deps, world.ctx(), spec(selector, "1.1.0"))
    return caught.value.text()


def deploy(world: World, version: str, selector: str) -> str:
    view = start_rollout(
        world.deps, world.ctx(), spec(selector, version), picked(world, selector, version)
    )
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    return view.rollout_id


def test_versions_are_those_committed(make_world: MakeWorld) -> None:
    world = make_world(4, bad_versions={"1.2.0": "slow"})
    world.add_version("1.2.0")
    deploy(world, "1.0.0", "device in (pi-00,pi-01,pi-02)")
    deploy(world, "1.1.0", "device in (pi-00,pi-01)")
    bad = deploy(world, "1.2.0", "device=pi-00")
    assert world.phase(bad) is Phase.ROLLED_BACK
    wanted = {
        f"{MODEL}.version": {"pi-00", "pi-01", "pi-02"},
        f"!{MODEL}.version": {"pi-03"},
        f"{MODEL}.version>=1.1": {"pi-00", "pi-01"},
        f"{MODEL}.version<1.1": {"pi-02"},
        f"{MODEL}.version!=1.0": {"pi-00", "pi-01", "pi-03"},
        f"{MODEL}.version in (1.0.0,1.2.0)": {"pi-02"},
    }
    for selector, ids in wanted.items():
        assert select_ids(world.deps, world.ctx(), selector) == ids, selector
        assert picked(world, selector) == len(ids)
    assert picked(world, "model.version<1.1") == 1
    assert picked(world, "device=pi-02,model.version<1.1") == 1


def test_model_version_needs_a_rollout(make_world: MakeWorld) -> None:
    world = make_world(1)
    with pytest.raises(InvalidError, match="names no model") as caught:
        select_ids(world.deps, world.ctx(), "model.version<2")
    assert "detector.version<1.3" in caught.value.text()


def test_a_label_of_that_name_goes_first_and_is_not_made_anew(make_world: MakeWorld) -> None:
    world = make_world(2)
    label_devices(world.deps, world.ctx(), device_ids=["pi-00"], values={"fw.version": "1.10"})
    assert select_ids(world.deps, world.ctx(), "fw.version>1.9") == {"pi-00"}
    assert select_ids(world.deps, world.ctx(), "fw.version!=1.10") == {"pi-01"}
    for made in (
        lambda: label_devices(
            world.deps, world.ctx(), device_ids=["pi-00"], values={f"{MODEL}.version": "1"}
        ),
        lambda: create_token(world.deps, world.ctx(), labels={f"{MODEL}.version": "1"}),
    ):
        with pytest.raises(InvalidError, match="is the version of the model digits"):
            made()


def test_a_rollout_keeps_its_devices_when_a_group_changes(make_world: MakeWorld) -> None:
    world = make_world(3)
    labelled(world, pi_00="berlin", pi_01="berlin", pi_02="paris")
    assert group(world, "north", "site=berlin") == ("it holds 2 devices now",)
    view = start_rollout(world.deps, world.ctx(), spec("@north"), 2)
    assert view.spec.groups == {"north": "site=berlin"}
    assert group(world, "north", "site=paris") == (
        "rollouts that began keep their devices; the next one asks the group anew",
        "it holds 1 device now",
    )
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    with world.store.read() as conn:
        rows = list_assignments(conn, view.rollout_id)
    assert {row.device_id for row in rows} == {"pi-00", "pi-01"}
    assert select_ids(world.deps, world.ctx(), "@north") == {"pi-02"}


def test_a_policy_by_group_stays_as_it_was_when_the_rollout_began(make_world: MakeWorld) -> None:
    world = make_world(2)
    labelled(world, pi_00="berlin", pi_01="berlin")
    group(world, "north", "site=berlin")
    policy = dict(POLICY) | {"selector": "@north,!model.version", "priority": 9, "slow_count": 7}
    apply_objects(world.deps, world.ctx(), [NewObject("Policy", "north", policy)])
    view = start_rollout(world.deps, world.ctx(), spec("all"), 2)
    group(world, "north", "site=paris")
    world.tick()
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    with world.store.read() as conn:
        states = list_desired(conn, ["pi-00", "pi-01"])
    names = {one[1][MODEL]["policy"]["name"] for one in states.values()}
    assert names == {"north"}


def test_applied_together_in_any_order_and_refused_in_a_circle(make_world: MakeWorld) -> None:
    world = make_world(1)
    ctx = world.ctx()
    both = [
        NewObject("Policy", "p", {"selector": "@outer"}),
        NewObject("Group", "outer", {"selector": "@inner,!@other"}),
        NewObject("Group", "inner", {"selector": "site=berlin"}),
        NewObject("Group", "other", {"selector": "lab"}),
    ]
    done = apply_objects(world.deps, ctx, both)
    assert [one.name for one in done] == ["outer", "inner", "other", "p"]
    with pytest.raises(InvalidError, match="in a circle: outer → other → outer"):
        group(world, "other", "@outer")
    with pytest.raises(InvalidError, match="Policy q: no group outre") as caught:
        group(world, "q", "@outre", "Policy")
    assert "did you mean outer" in caught.value.text()
    assert group(world, "inner", "site=paris")[0].startswith("rollouts that began")
    assert group(world, "r", "@inner", "Policy")[0] == "it holds no device now"
    assert group(world, "s", "model.version<2", "Policy") == ()
    assert group(world, "t", "digit.version!=2", "Policy")[1] == "did you mean digits ?"


@pytest.mark.parametrize(
    ("selector", "lines"),
    [
        ("@nroth", ["no group nroth", "did you mean north ?"]),
        ("!@nroth", ["no group nroth", "did you mean north ?"]),
        ("digit.version<2", ["no model digit, asked for by digit.version<2", "mean digits ?"]),
        ("digit.version!=2", ["no model digit", "did you mean digits ?"]),
        ("device=pi-00,digit.version!=2", ["no model digit", "did you mean digits ?"]),
        ("site=berlni", ["no device matches  site=berlni", "did you mean site=berlin ?"]),
        ("site in (berlni,prais)", ["did you mean site in (berlin,paris) ?"]),
        ("@north,site=paris", ["@north has 1 device, site=paris leaves none of them"]),
        ("@empty", ["group empty (site=berln) holds no device", "mean site=berlin ?"]),
        ("!@every", ["every device is in group every (profile)"]),
        ("digits.version<9", ["no device runs digits"]),
        ("quarantine", ["none of them is in quarantine"]),
        ("site=berlin,profile in (pi", ["at column 27: expected `)`"]),
    ],
)
def test_slips_are_told(make_world: MakeWorld, selector: str, lines: list[str]) -> None:
    world = make_world(2)
    labelled(world, pi_00="berlin", pi_01="paris")
    for name, text in {"north": "site=berlin", "empty": "site=berln", "every": "profile"}.items():
        group(world, name, text)
    said = refused(world, selector)
    for line in lines:
        assert line in said


def test_a_slip_that_widens_is_a_note_of_the_plan(make_world: MakeWorld) -> None:
    world = make_world(2)
    labelled(world, pi_00="berlin")
    view = plan_rollout(world.deps, world.ctx(), spec("sit!=berlin"))
    assert view.notes[0] == (
        "sit!=berlin leaves nobody out, no device has sit: did you mean site ?"
    )
    plain = plan_rollout(world.deps, world.ctx(), spec("site!=berlin,!lab,!quarantine"))
    assert not any("leaves nobody out" in note for note in plain.notes)


def quarantine(world: World, device_id: str) -> None:
    with world.store.write() as conn:
        devices.update_device(conn, device_id, state="QUARANTINED")


def test_a_device_in_quarantine_is_named_where_it_is_left_out(make_world: MakeWorld) -> None:
    world = make_world(3)
    assert "quarantine" not in str(plan_rollout(world.deps, world.ctx(), spec("all")))
    quarantine(world, "pi-01")
    plan = plan_rollout(world.deps, world.ctx(), spec("all"))
    assert plan.devices == 2
    assert [(one.device_id, one.reason) for one in plan.unready] == [("pi-01", QUARANTINED)]
    assert f"1 device (pi-01) is {QUARANTINED}: left out" in plan.notes
    for selector in ("!quarantine", "device!=pi-01"):  # who knows of it is told nothing
        plan = plan_rollout(world.deps, world.ctx(), spec(selector))
        assert (plan.devices, plan.unready, plan.notes) == (2, (), ())
    rollout_id = deploy(world, "1.0.0", "all")
    with world.store.read() as conn:
        states = {one.device_id: one.state.value for one in list_assignments(conn, rollout_id)}
    assert states == {"pi-00": "COMMITTED", "pi-01": "REFUSED", "pi-02": "COMMITTED"}
    accept_device(world.deps, world.ctx(), "pi-01")
    assert picked(world, "device=pi-01") == 1


@pytest.mark.parametrize("selector", ["device=pi-01", "quarantine"])
def test_a_rollout_to_the_quarantined_alone_says_why_it_is_refused(
    make_world: MakeWorld, selector: str
) -> None:
    world = make_world(2)
    quarantine(world, "pi-01")
    assert refused(world, selector).splitlines() == [
        "not the one device selected can get digits:1.1.0",
        f"pi-01: {QUARANTINED}",
    ]


def test_a_list_counts_and_explains(make_world: MakeWorld) -> None:
    world = make_world(3)
    labelled(world, pi_00="berlin", pi_01="berlin")
    found = find_devices(world.deps, world.ctx(), "site=berlin", limit=1)
    assert (len(found.devices), found.matched, found.notes) == (1, 2, ())
    none = find_devices(world.deps, world.ctx(), "site=berlni")
    assert (none.devices, none.matched) == ([], 0)
    assert "did you mean site=berlin ?" in none.notes
    assert find_devices(world.deps, world.ctx()).matched == 3


@contextmanager
def statements(world: World) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    asked: list[str] = []
    engine = world.store._engine

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


def crowd(world: World, count: int) -> None:
    """Many devices that have committed a version."""
    ids = [f"crowd-{number:05d}" for number in range(count)]
    with world.store.write() as conn:
        conn.execute(
            insert(rollout),
            {
                "rollout_id": "r-crowd", "project": PROJECT, "model": MODEL, "version": "1.0.0",
                "spec": {}, "policies": {}, "phase": "SUCCEEDED", "phase_reason": "",
                "pause_reasons": [], "intent": "RUN", "intent_by": "ana", "intent_at": START,
                "intent_reason": "", "current_wave": 1, "created_at": START,
                "created_by": "ana", "finished_at": START,
            },
        )  # fmt: skip
        conn.execute(
            insert(device),
            [
                {"device_id": one, "project": PROJECT, "state": "ACTIVE", "profile": PROFILE,
                 "enrolled_at": START}
                for one in ids
            ],
        )  # fmt: skip
        conn.execute(
            insert(label), [{"device_id": one, "name": "site", "value": "berlin"} for one in ids]
        )
        told = {"arch": "aarch64", "runtimes": {"onnxruntime": "1"}}
        conn.execute(
            insert(capability),
            [{"device_id": one, "reported": told, "reported_at": START} for one in ids],
        )
        conn.execute(
            insert(assignment),
            [
                {"rollout_id": "r-crowd", "device_id": one, "model": MODEL, "version": "1.0.0",
                 "wave": 1, "position": n, "state": "COMMITTED", "exposed": True,
                 "offered_at": START, "updated_at": START}
                for n, one in enumerate(ids)
            ],
        )  # fmt: skip


def test_selecting_asks_no_more_of_10_000_devices_than_of_2(
    rollout_template: Path, tmp_path: Path
) -> None:
    selector = f"@north,profile in ({PROFILE},x),!quarantine,{MODEL}.version<1.3,device!=pi-00"
    counts = []
    for number in (2, 10_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        with new_world(rollout_template, folder, 0) as world:
            crowd(world, number)
            group(world, "north", f"site=berlin,{MODEL}.version")
            with statements(world) as asked:
                assert len(select_ids(world.deps, world.ctx(), selector)) == number
            counts.append(len(asked))
            with statements(world) as asked:
                assert picked(world, selector) == number
            # The rest of a plan reads what these devices run, 500 at a time.
            assert len(asked) <= 30 + 5 * number / 500, len(asked)
    assert counts[0] == counts[1] <= 10


def test_what_was_stored_before_is_read_as_before(make_world: MakeWorld) -> None:
    """A rollout of an older release has no groups in its spec, and its selector means the same."""
    world = make_world(2)
    labelled(world, pi_00="berlin")
    view = start_rollout(world.deps, world.ctx(), spec("site=berlin,!lab"), 1)
    row = world.rollout(view.rollout_id)
    old = {key: value for key, value in row.spec.items() if key != "groups"}
    with world.store.write() as conn:
        conn.execute(rollout.update().values(spec=old))
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    assert world.phase(view.rollout_id) is Phase.SUCCEEDED
    with pytest.raises(LightermanError):
        set_intent(world.deps, world.ctx(), view.rollout_id, Intent.PAUSE)
