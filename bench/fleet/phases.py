"""What is measured, one function each. Times are the wall clock of one machine, in seconds."""

import itertools
import threading
import time
from typing import Any

from bench.fleet.commits import Commits
from bench.fleet.figures import quantile, rss_mb
from bench.fleet.happenings import Happening, by_device
from bench.fleet.operator import OVER, Operator
from bench.fleet.world import BAD, GOOD, MODEL, SINGLE, SMALL, World
from examples.fleet.clock import wait_until

ROLLOUT_S = 90.0
SETTLED_S = 60.0
ORDERS = 100
ORDERS_AT_A_TIME = 4
ORDER_S = 20.0
LOOK_S = 0.2

Figures = dict[str, Any]


def bring_base(world: World, operator: Operator, devices: int) -> Figures:
    """The versions that later ones replace, on every device: how long both rollouts took."""
    began = time.time()
    for model in (MODEL, SMALL):
        rollout = operator.start(model, GOOD[0], devices)
        wait_over(world, operator, rollout, "SUCCEEDED")
    return {"base_s": round(time.time() - began, 1)}


def measure_rollout(world: World, operator: Operator, devices: int) -> Figures:
    """A version to all in one wave: until the last fetched it, until the last committed it."""
    before, began = world.cpu(), time.time()
    rollout = operator.start(MODEL, GOOD[1], devices)
    answered = time.time()
    wait_until(
        lambda: len(by_device(_of(world, "fetched", rollout))) >= devices,
        ROLLOUT_S, "all to fetch", LOOK_S,
    )  # fmt: skip
    fetched = by_device(_of(world, "fetched", rollout))
    offered = world.cpu()
    wait_until(
        lambda: len(by_device(_of(world, "acknowledged", rollout, "COMMITTED"))) >= devices,
        ROLLOUT_S, "all to commit", LOOK_S,
    )  # fmt: skip
    committed = by_device(_of(world, "acknowledged", rollout, "COMMITTED"))
    after = world.cpu()
    wait_over(world, operator, rollout, "SUCCEEDED")
    return {
        "start_rpc_s": round(answered - began, 3),
        "offered_s": round(max(fetched.values()) - began, 3),
        "committed_s": round(max(committed.values()) - began, 3),
        "rollout_cpu_s": {name: round(after.spent_since(before, name), 2) for name in after.used_s},
        "offered_cpu_s": {
            name: round(offered.spent_since(before, name), 2) for name in offered.used_s
        },
    }


def measure_floor(world: World, devices: int) -> Figures:
    """The same server and clients, nothing but fetches: each device fetches and verifies once."""
    world.happenings.read()
    known, began = len(world.happenings.of("polled")), time.time()
    world.poll_all()

    def polled() -> list[Happening]:
        return world.happenings.read().of("polled")[known:]

    wait_until(lambda: len(polled()) >= devices, ROLLOUT_S, "all to poll", LOOK_S)
    return {"fetch_floor_s": round(max(one.at for one in polled()) - began, 3)}


def measure_acks(world: World, operator: Operator, devices: int) -> Figures:
    """Orders to single devices while all others report: rollouts to those go on meanwhile."""
    stop = threading.Event()
    storm = threading.Thread(target=_storm, args=(world, operator, devices, stop), daemon=True)
    storm.start()
    numbers = itertools.count()
    orders: dict[str, tuple[str, float]] = {}  # rollout -> device, when it was ordered
    with world.commits() as commits:

        def order() -> None:
            while (number := next(numbers)) < ORDERS:
                device = world.singles[number % len(world.singles)]
                began = time.time()
                rollout = operator.start(SMALL, GOOD[0], 1, f"device={device}")
                orders[rollout] = (device, began)
                _wait_applied(commits, rollout, device)

        callers = [threading.Thread(target=order, daemon=True) for _ in range(ORDERS_AT_A_TIME)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        stop.set()
        storm.join()
        stored = {one: commits.applied(one, device) for one, (device, _) in orders.items()}
    took = [at - orders[one][1] for one, at in stored.items() if at is not None]
    seen = _seen(world, orders)
    return {
        "ack_orders": len(took),
        "ack_lost": ORDERS - len(took),
        "ack_p50_s": round(quantile(took, 0.50), 3),
        "ack_p99_s": round(quantile(took, 0.99), 3),
        "ack_max_s": round(max(took), 3),
        "ack_seen_p99_s": round(quantile(seen, 0.99), 3),
    }


def measure_halt(world: World, operator: Operator, devices: int) -> Figures:
    """A bad version to all in one wave: how long after the first one's return offers go on."""
    with world.commits() as commits:
        rollout = operator.start(MODEL, BAD, devices)
        wait_over(world, operator, rollout, "ROLLED_BACK")
    sent = min(one.at for one in _of(world, "reported", rollout, "ROLLING_BACK"))
    fetched = by_device([one for one in _of(world, "fetched", rollout) if one.version == BAD])
    offers = commits.of("assignment_offered", rollout)
    (halt,) = commits.of("rollout_phase", rollout, "ROLLING_BACK")
    last = max(*(one.at for one in offers), *fetched.values())
    return {
        "halt_s": round(max(0.0, last - sent), 3),
        "halt_last_commit_s": round(max(one.at for one in offers) - sent, 3),
        "halt_decided_s": round(halt.at - sent, 3),
        "halt_behind": sum(one.number > halt.number for one in offers),
        "halt_offered": len(offers),
        "halt_fetched": len(fetched),
        "halt_fetched_after": sum(at > sent for at in fetched.values()),
        "halt_spared": devices - len(fetched),
    }


def measure_steady(world: World, window_s: float) -> Figures:
    """CPU and memory while nothing is rolled out: telemetry of all, nothing else."""
    wait_until(lambda: world.standing().get("unacknowledged") == 0, SETTLED_S, "silence", 0.5)
    before, said = world.cpu(), world.metrics()
    threading.Event().wait(window_s)
    after, now = world.cpu(), world.metrics()
    pids = world.pids()
    name = "lighterman_ingest_messages_total"
    return {
        "steady_window_s": window_s,
        "steady_messages_per_s": round((now.get(name, 0) - said.get(name, 0)) / window_s, 1),
        **{f"{who}_cpu_cores": round(after.cores_since(before, who), 3) for who in pids},
        **{f"{who}_rss_mb": round(rss_mb(pid), 1) for who, pid in pids.items()},
    }


def wait_over(world: World, operator: Operator, rollout: str, wanted: str) -> None:
    """Wait for the end of a rollout, which has to be this one."""

    def over() -> str:
        phase = operator.phase(rollout)
        return phase if phase in OVER else ""

    # Looking at a rollout costs the controller a look at all its devices: not too often.
    phase = wait_until(over, ROLLOUT_S, f"{rollout} to be over", 1.0)
    if phase != wanted:
        said = operator.look(rollout).phase_reason
        raise RuntimeError(f"{rollout} ended {phase}, {wanted} was expected: {said}")
    wait_until(
        lambda: world.standing().get("unacknowledged") == 0, SETTLED_S, "acknowledgements", LOOK_S
    )


def _storm(world: World, operator: Operator, devices: int, stop: threading.Event) -> None:
    for version in itertools.cycle((GOOD[2], GOOD[1])):
        if stop.is_set():
            return
        rollout = operator.start(MODEL, version, devices - len(world.singles), f"!{SINGLE}")
        wait_over(world, operator, rollout, "SUCCEEDED")


_READING = threading.Lock()


def _of(world: World, kind: str, rollout: str, state: str = "") -> list[Happening]:
    with _READING:
        return world.happenings.read().of(kind, rollout, state)


def _wait_applied(commits: Commits, rollout: str, device: str) -> None:
    """As long as one order may take; what did not come is counted, not waited for."""
    ends = time.monotonic() + ORDER_S
    while commits.applied(rollout, device) is None and time.monotonic() < ends:
        threading.Event().wait(0.05)


def _seen(world: World, orders: dict[str, tuple[str, float]]) -> list[float]:
    """From the call to the arrival of the acknowledgement on the device."""
    done: dict[str, float] = {}
    for one in world.happenings.read().of("acknowledged"):
        if one.applied and one.rollout in orders:
            done.setdefault(one.rollout, one.at)
    return [done[rollout] - began for rollout, (_, began) in orders.items() if rollout in done]
