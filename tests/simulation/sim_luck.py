"""Bad luck, and people: what happens in a world beside the passing of time. Drawn by its seed."""

from contextlib import suppress
from typing import TYPE_CHECKING

from agent.domain.events import Ending
from controller.domain.rollout import Intent
from controller.errors import LightermanError
from controller.services.rollouts import set_intent, start_rollout
from controller.store import devices
from tests.simulation.rollout_world import KilledError

if TYPE_CHECKING:
    from tests.simulation.sim_world import SimWorld

SITES = ("aalen", "berlin", "celle")
CLOCK_STEPS = (-20.0, -5.0, 5.0, 60.0, 900.0)
_WAVES = (
    ["1", "50%", "100%"],
    ["1", "50%", "100%"],
    ["1", "2", "100%"],
    ["1", "30%", "60%", "100%"],
)
_BUTTONS = (Intent.PAUSE, Intent.RUN, Intent.RUN, Intent.ABORT, Intent.ROLL_BACK)


def strike(world: "SimWorld") -> None:
    """At most one of each kind."""
    random, faults = world.random, world.faults
    names = list(world.agents)
    if faults.kills and random.random() < 0.12:
        world.fragile.dies_in = random.randrange(3)
    if faults.kills and random.random() < 0.12:
        world.dying.dies_in = random.randrange(4)
    if faults.power and random.random() < 0.15:
        agent = world.agents[random.choice(names)]
        if random.random() < 0.5:
            agent.die(Ending.POWER_LOST)
        else:
            agent.cut_in = random.randrange(6)
    if faults.network and random.random() < 0.15:
        cut(world, _part(world) if random.random() < 0.6 else set())
    if faults.brokers and random.random() < 0.08:
        world.tell("the broker forgot what it kept")
        world.door.forget()
    if faults.disks and random.random() < 0.1:
        agent = world.agents[random.choice(names)]
        agent.disk_full = not agent.disk_full
        world.tell(f"{agent.device_id} disk {'full' if agent.disk_full else 'free'}")
    if faults.silence and random.random() < 0.1:
        world.silent = _part(world) if random.random() < 0.7 else set()
        world.tell(f"silent: {', '.join(sorted(world.silent)) or 'nobody'}")
    _more(world)


def _more(world: "SimWorld") -> None:
    random, faults = world.random, world.faults
    if faults.heat and random.random() < 0.1:
        agent = world.agents[random.choice(list(world.agents))]
        ill = random.choice(("hot", "hot", "sick"))
        agent.weaken(**({} if agent.hot or agent.sick else {ill: True}))
    if faults.clocks and random.random() < 0.04:
        step_s = random.choice(CLOCK_STEPS)
        world.skew_s += step_s
        world.tell(f"the controller's clock steps by {step_s:+.0f} s")
    if random.random() < 0.25:
        people(world)


def _part(world: "SimWorld") -> set[str]:
    """A site, or any devices."""
    names = list(world.agents)
    if world.random.random() < 0.4:
        site = world.random.choice(SITES)
        return {name for name in names if world.sites[name] == site}
    return set(world.random.sample(names, world.random.randrange(len(names))))


def cut(world: "SimWorld", names: set[str]) -> None:
    """These are cut off from now on, and only these."""
    changed = names ^ world.cut_off
    world.cut_off = names
    world.tell(f"cut off: {', '.join(sorted(names)) or 'nobody'}")
    if changed:
        with world.store.write() as conn:
            for name in changed:
                devices.update_device(conn, name, online=name not in names)
        world.deps.agenda.note_all()


def people(world: "SimWorld") -> None:
    """Somebody starts a rollout, or presses a button of one that runs."""
    random = world.random
    running = [one for one in world.books.read() if not one.is_over]
    try:
        if not running or random.random() < 0.3:
            with suppress(LightermanError):
                model = random.choice(world.models)
                version = random.choice(world.versions[model])
                begin(world, model, version, waves=random.choice(_WAVES))
        elif world.faults.people:
            intent, chosen = random.choice(_BUTTONS), random.choice(running).rollout_id
            world.tell(f"a person: {intent} {chosen}")
            with suppress(LightermanError):
                set_intent(world.deps, world.ctx(), chosen, intent, "so")
    except KilledError:
        world.restart()


def begin(world: "SimWorld", model: str, version: str, **more: object) -> None:
    """Start a rollout, mostly to everybody."""
    selector, count = "all", len(world.agents)
    if world.random.random() < 0.2 and not world.calm:
        site = world.random.choice(SITES)
        selector, count = f"site={site}", sum(one == site for one in world.sites.values())
    spec: dict[str, object] = {
        "model": model,
        "version": version,
        "selector": selector,
        "waves": ["1", "50%", "100%"],
        "soak_s": 5.0,
        "min_samples": 12,
        "deadline_s": 90.0,
        "override_rolled_back_reason": "again",
        "override_first_wave_reason": "small",
    }
    view = start_rollout(world.deps, world.ctx(), spec | more, count)
    world.tell(f"a person: started {view.rollout_id} of {version} to {selector}")


def answer_holds(world: "SimWorld") -> None:
    """A person takes back what waits for one."""
    for row in world.books.read():
        held = row.phase in ("PAUSED", "PENDING") or row.intent == Intent.PAUSE
        if held and not row.is_over:
            with suppress(LightermanError):
                set_intent(world.deps, world.ctx(), row.rollout_id, Intent.ROLL_BACK, "enough")
