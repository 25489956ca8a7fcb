"""The person at fleetctl: one rollout after the other, good versions and bad ones, whatever breaks.

Sees errors of commands as people do: says so and goes on. A paused rollout is rolled back.
"""

import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.fleet.clock import TooLateError, monotonic
from examples.fleet.ctl import CtlError
from tests.faults.fleets import FaultyFleet
from tests.faults.schedule import illnesses
from tests.faults.story import Story
from tests.support import e2e_models as models
from tests.support.e2e_world import TERMINAL, WAVES

PATIENCE_S = 60.0
SLOW_S = 0.2  # of computing; the policies' threshold is 0.1
EATEN_BYTES = 1_600_000_000  # at once; `world.MODEL_MEMORY_BYTES` is what is allowed
TROUBLE = (CtlError, subprocess.TimeoutExpired, TooLateError)
AWAY = "ended with code 5"  # fleetctl's, where no controller answers
Make = Callable[[models.Shape], bytes]
BAD: dict[str, Make] = {
    "raises": models.raising,
    "hangs": models.endless,
    "answers NaN": models.not_a_number,
    "is slow": lambda shape: models.slow(shape, models.products_for(SLOW_S, shape)),
    "eats memory": lambda shape: models.greedy(shape, EATEN_BYTES),
}
# Those that no build has to evaluate for half a minute.
QUICK_BAD = tuple(sorted(set(BAD) - {"is slow"}))


class Operator:
    """`start` and `stop` any number of times; `bad` are the versions that must never win."""

    def __init__(
        self, fleet: FaultyFleet, story: Story, seed: int, kinds: Sequence[str] = tuple(BAD)
    ) -> None:
        self._fleet = fleet
        self._story = story
        self._kinds = sorted(kinds)
        self._illnesses = illnesses(seed, self._kinds)
        self._next: str | None = None  # of the version that is to be made
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.bad: dict[str, str] = {}
        self._ready: list[tuple[str, str]] = []  # version, illness

    def prepare(self, count: int) -> None:
        """Build so many good versions and some bad ones before anything breaks."""
        assert self._fleet.shape is not None
        for illness in self._kinds:
            self._file(illness).write_bytes(BAD[illness](self._fleet.shape))
        for _ in range(count):
            self._ready.append(self._make())

    def _file(self, illness: str) -> Path:
        return self._fleet.root / f"bad-{illness.replace(' ', '-')}.onnx"

    def _make(self) -> tuple[str, str]:
        if self._next is None:
            self._next = next(self._illnesses)
        illness = self._next
        version = self._build(illness) if illness else self._fleet.push_good()
        self._next = None  # only now: what a fault kept from being built comes again
        return version, illness

    def _build(self, illness: str) -> str:
        """A version that is ill in this way, built and let through."""
        fleet = self._fleet
        version = fleet.push(fleet.model, heavy=self._file(illness))
        self.bad[version] = illness
        # What the gate refuses by itself, somebody overrides, as somebody will.
        builds = fleet.ctl.json(
            "build", "run", f"{fleet.model}:{version}", "--recipe", "onnxruntime-fp32",
            "--dataset", fleet.model, "--wait", expect=(0, 1),
        )["items"]  # fmt: skip
        for profile in sorted({b["profile"] for b in builds if b["state"] == "refused"}):
            fleet.ctl.run(
                "build", "override", f"{fleet.model}:{version}", "--profile", profile,
                "--reason", "somebody is in a hurry",
            )  # fmt: skip
        return version

    def bring_missing(self) -> None:
        """Kinds of bad versions that no rollout brought yet: in a calm of their own, one by one."""
        self._stopping.clear()
        for illness in self._kinds:
            if not self._story.brought[illness]:
                self._story.say(f"operator: none that {illness} was brought yet")
                self._ready.insert(0, (self._build(illness), illness))
                self._roll_out(*self._ready[0])
                self.settle()

    def start(self) -> None:
        """Begin to roll out."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._work, name="operator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further rollout."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(180)

    def _work(self) -> None:
        tried = ""
        while not self._stopping.is_set():
            try:
                if not self._ready:
                    self._ready.append(self._make())
                self._roll_out(*self._ready[0])
            except TROUBLE as error:
                words = str(error).split()
                self._story.say(f"operator: {' '.join(words)[:150]}")
                # Nobody is there: try again. Else once more only: perhaps it began, and the answer
                # was lost.
                if self._ready and AWAY not in str(error):
                    if self._ready[0][0] == tried:
                        self._ready.pop(0)
                    tried = self._ready[0][0] if self._ready else ""
                self._stopping.wait(1.0)

    def _roll_out(self, version: str, illness: str) -> None:
        rollout = self._fleet.begin(self._fleet.model, version, waves=WAVES)
        self._ready.pop(0)
        ill = f", it {illness}" if illness else ""
        self._story.say(f"operator: {rollout} brings {version}{ill}")
        self._story.brought[illness or "good"] += 1
        until = monotonic() + PATIENCE_S
        while not self._stopping.is_set() and monotonic() < until:
            try:
                if self.tend(self._fleet.show(rollout)):
                    return
            except TROUBLE:
                pass  # the controller is away: look again
            self._stopping.wait(1.0)

    def tend(self, shown: Any) -> bool:
        """Whether it is over; a rollout that waits for a person is rolled back."""
        if shown["phase"] == "PAUSED":
            self._fleet.ctl.run("rollout", "rollback", shown["rollout_id"], "--reason", "it waits",
                                f"--yes={shown['exposed']}", expect=(0, 1, 2))  # fmt: skip
        return shown["phase"] in TERMINAL

    def settle(self) -> None:
        """Until no rollout is open; asked at calm points."""
        until = monotonic() + 90
        while monotonic() < until:
            rollouts = self._fleet.ctl.items("rollout", "list")
            if all([  # noqa: C419 - each is tended
                self.tend(self._fleet.show(r["rollout_id"])) for r in rollouts
                    if r["phase"] not in TERMINAL]):  # fmt: skip
                return
            self._stopping.wait(1.0)
