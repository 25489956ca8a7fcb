"""One run: faults as scheduled, rollouts all the time, invariants at every calm point and the end.

Counts every request. One that failed is excused only when the process that had it was killed while
it was under way, or had not answered again since; such requests are counted apart.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from examples.fleet.camera import Answer, Camera
from examples.fleet.clock import monotonic, wait_until
from tests.faults import ends
from tests.faults.operator import BAD, Operator
from tests.faults.schedule import Fault, Kind, stretches
from tests.faults.story import Story
from tests.faults.world import FaultyWorld
from tests.proxy import Door, Faults
from tests.support.e2e_invariants import check_invariants

RECOVERS_S = 30.0  # I4: from a start to an answer
STRETCH_S = 110.0
LONG_S = 300.0  # runs that have every kind of bad version, and a controller away for a minute


@dataclass(slots=True)
class Dead:
    """A device whose process was killed: from then until its new camera was opened."""

    device: str
    since: float
    started: float = 0.0
    until: float = float("inf")


@dataclass(slots=True)
class Run:
    """See the module. `go` raises AssertionError where a promise does not hold."""

    world: FaultyWorld
    story: Story
    seed: int
    seconds: float
    dead: list[Dead] = field(default_factory=list)
    struck: list[ends.Struck] = field(default_factory=list)
    ended: dict[str, ends.End] = field(default_factory=dict)
    _ends: list[tuple[float, int, str, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)

    def go(self, versions: int, kinds: Sequence[str] = tuple(BAD)) -> None:
        """The whole run on a world that has started; `kinds` of bad versions are brought."""
        fleet, story = self.world.fleet, self.story
        first = fleet.first()
        assert first["phase"] == "SUCCEEDED", first
        for name in fleet.devices:
            fleet.open_camera(name, fleet.model, glare=True)
        story.say(f"{fleet.model}:1.0.0 answers on {len(fleet.devices)} devices")
        operator = Operator(fleet, story, self.seed, kinds)
        operator.prepare(versions)
        story.say(f"{versions} versions are built; from here on everything breaks")
        plan = stretches(self.seed, self.seconds, fleet.devices, self.world.disks, STRETCH_S)
        story.figures["model"] = fleet.model
        story.figures["schedule"] = [[fault.plain() for fault in part] for part in plan]
        self._tell_left_out()
        for number, part in enumerate(plan, 1):
            operator.start()
            self._stretch(part, self.seconds / len(plan))
            operator.stop()
            story.say(f"calm point {number} of {len(plan)}")
            operator.settle()
            if number == len(plan) and self.seconds >= LONG_S:
                operator.bring_missing()
                missing = [kind for kind in kinds if not story.brought[kind]]
                assert not missing, f"no version was brought that {', '.join(missing)}"
            check_invariants(fleet)
            self._check_requests()
            self._check_rollouts(operator)
            story.figures["calm_points"] = number
            story.say(f"I1 to I8 hold; {self._sentence()}")

    def _tell_left_out(self) -> None:
        """A kind of fault that cannot be made here is missing in the run, and said to be."""
        left_out = {}
        if not self.world.disks:
            left_out[Kind.DISK_FULL.value] = f"no disk can be mounted here: {self.world.no_disk}"
        for kind, reason in left_out.items():
            self.story.say(f"LEFT OUT: {kind}; {reason}")
        self.story.figures["left_out"] = left_out

    # -- faults ------------------------------------------------------------------------------------

    def _stretch(self, faults: list[Fault], seconds: float) -> None:
        began = monotonic()
        for fault in faults:
            self._wait(began + fault.at_s)
            self.story.faults[fault.kind.value] += 1
            self.story.say(str(fault))
            since = self.story.wall(monotonic())
            self.struck.append(ends.Struck(fault.kind.value, fault.device, since))
            self._begin(fault)
        self._wait(began + seconds)
        while self._ends:
            self._end_one()

    def _wait(self, until: float) -> None:
        while monotonic() < until:
            if self._ends and self._ends[0][0] <= monotonic():
                self._end_one()
                continue
            soon = min(until, self._ends[0][0] if self._ends else until)
            wait_until(lambda soon=soon: monotonic() >= soon, 700, "time", every_s=0.05)  # type: ignore[misc]

    def _end_one(self) -> None:
        _, _, what, end = heapq.heappop(self._ends)
        end()
        self.story.say(f"over: {what}")

    def _later(self, fault: Fault, end: Callable[[], None]) -> None:
        item = (monotonic() + fault.for_s, next(self._numbers), str(fault), end)
        heapq.heappush(self._ends, item)

    def _begin(self, fault: Fault) -> None:
        world = self.world
        match fault.kind:
            case Kind.AGENT_KILL:
                self._kill_agent(fault)
            case Kind.CONTROLLER_KILL:
                world.kill_controller()
                self._later(fault, world.fleet.controller.start)
            case Kind.BROKER_KILL:
                if world.fleet.controller.running:
                    world.kill_broker()
            case Kind.DISK_FULL:
                world.fill_disk(fault.device)
                self._later(fault, partial(world.free_disk, fault.device))
            case Kind.EDGE_LINK:
                proxy = world.fleet.proxy
                assert proxy is not None
                proxy.cut(Door.REFUSE if fault.chance < 0.5 else Door.CLOSE)
                self._later(fault, proxy.restore)
            case _:
                self._begin_on_road(fault)

    def _begin_on_road(self, fault: Fault) -> None:
        roads = self.world.roads[fault.device]
        match fault.kind:
            case Kind.PARTITION:
                roads.cut()
            case Kind.CLOSED_DOOR:
                roads.cut(Door.CLOSE)
            case Kind.HALF_OPEN:
                roads.set(Faults(half_open=True))
            case Kind.SLOW_LINK:
                delay_s = 0.3 * fault.chance
                rate = 20_000 + 180_000 * fault.chance
                roads.set(Faults(delay_s=delay_s, jitter_s=delay_s, bytes_per_s=rate))
            case _:
                at = int(5_000 + 60_000 * fault.chance)
                roads.set(Faults(cut_after_bytes=at, cut_spread_bytes=20_000))

        def end() -> None:
            if fault.kind is Kind.HALF_OPEN:
                for proxy in roads.both:
                    proxy.reset()
            roads.restore()

        self._later(fault, end)

    def _kill_agent(self, fault: Fault) -> None:
        agent = self.world.fleet.agents[fault.device]
        dead = Dead(fault.device, monotonic())
        self.dead.append(dead)
        agent.kill()

        def restart() -> None:
            dead.started = monotonic()
            agent.start()
            fleet = self.world.fleet
            fleet.close_camera(fault.device, fleet.model)
            fleet.open_camera(fault.device, fleet.model, glare=True)
            dead.until = monotonic()

        self._later(fault, restart)

    # -- claims ------------------------------------------------------------------------------------

    def _answers(self) -> list[tuple[str, Answer]]:
        fleet = self.world.fleet
        cameras: list[tuple[str, Camera]] = [(d, c) for (d, _), c in fleet.cameras.items()]
        return [(d, a) for d, c in (*cameras, *fleet.closed) for a in c.answers()]

    def _check_requests(self) -> None:
        fleet = self.world.fleet
        for dead in self.dead:
            camera = fleet.cameras[dead.device, fleet.model]
            wait_until(camera.last, RECOVERS_S, f"I4: {dead.device} to answer after its restart")
        failed: list[str] = []
        excused = 0
        answers = self._answers()
        for device, one in answers:
            if one.ok:
                continue
            ended = one.sent_at + one.took_s
            if any(d.device == device and d.since <= ended <= d.until + 0.5 for d in self.dead):
                excused += 1
                continue
            failed.append(f"{one.sent_at - self.story.began:.1f} s {device}: {one.error}")
        back = self._recoveries(answers)
        self.story.figures |= {
            "requests": len(answers),
            "requests_failed": len(failed),
            "requests_failed_in_killed_processes": excused,
            "slowest_answer_s": round(max((a.took_s for _, a in answers if a.ok), default=0.0), 3),
            "slowest_recovery_s": round(max(back, default=0.0), 1),
        }
        assert not failed, f"{len(failed)} requests failed: {failed[:10]}"
        assert max(back, default=0.0) <= RECOVERS_S, f"I4: an answer came {max(back):.1f} s late"

    def _recoveries(self, answers: list[tuple[str, Answer]]) -> list[float]:
        """Seconds from each start after a kill to the first answer."""
        found = []
        for dead in self.dead:
            first = min(
                (a.sent_at + a.took_s for d, a in answers
                 if a.ok and d == dead.device and a.sent_at >= dead.started),
                default=None,
            )  # fmt: skip
            if first is not None:
                found.append(first - dead.started)
        return found

    def _check_rollouts(self, operator: Operator) -> None:
        """No bad version wins, and no good one is taken back without a cause that is known."""
        story, fleet = self.story, self.world.fleet
        story.rollouts.clear()
        for rollout in fleet.ctl.items("rollout", "list", "--limit", "1000"):
            version, name = rollout["spec"]["version"], rollout["rollout_id"]
            bad = version in operator.bad
            kind = f"bad {rollout['phase']}" if bad else rollout["phase"]
            story.rollouts[kind] += 1
            assert kind != "bad SUCCEEDED", f"{name} brought {version} everywhere"
            if bad or rollout["phase"] == "SUCCEEDED" or name in self.ended:
                continue
            end = self.ended[name] = ends.keep(fleet, story, self.struck, name)
            story.say(
                f"{name} brought {version}, a good one: {end.phase}, {end.why}; {end.evidence}"
            )
        story.figures["good_ended_otherwise"] = [end.plain() for end in self.ended.values()]
        by_cause = Counter(end.why.value for end in self.ended.values())
        story.figures["good_ended_otherwise_by_cause"] = dict(by_cause)
        lost = [e for e in self.ended.values() if e.why is ends.Why.UNEXPLAINED]
        assert not lost, f"a good version was taken back without a cause: {lost[0]}"

    def _sentence(self) -> str:
        figures = self.story.figures
        return (
            f"{figures['requests']} requests, {figures['requests_failed']} failed,"
            f" {figures['requests_failed_in_killed_processes']} in killed processes;"
            f" {sum(figures['good_ended_otherwise_by_cause'].values())} good versions did not win"
        )
