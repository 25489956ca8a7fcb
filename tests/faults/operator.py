"""The person at fleetctl: one rollout after the other, good versions and bad ones, whatever breaks.

Sees errors of commands as people do: says so and goes on. A paused rollout is rolled back.
"""

import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.fleet.clock import TooLateError, monotonic
from examples.fleet.ctl import CtlError
from tests.faults.story import Story
from tests.support import e2e_models as models
from tests.support.e2e_world import DIGITS, TERMINAL, WAVES, Fleet

PATIENCE_S = 45.0
BAD_SHARE = 0.35
TROUBLE = (CtlError, subprocess.TimeoutExpired, TooLateError)
Make = Callable[[models.Shape], bytes]
BAD: dict[str, Make] = {"raises": models.raising, "hangs": models.endless}


class Operator:
    """`start` and `stop` any number of times; `bad` are the versions that must never win."""

    def __init__(self, fleet: Fleet, story: Story, seed: int) -> None:
        self._fleet = fleet
        self._story = story
        self._chance = random.Random(f"{seed}/operator")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.bad: dict[str, str] = {}
        self._ready: list[tuple[str, str]] = []  # version, illness

    def prepare(self, count: int) -> None:
        """Build so many good versions and some bad ones before anything breaks."""
        assert self._fleet.shape is not None
        for illness, make in BAD.items():
            file = self._fleet.root / f"bad-{illness}.onnx"
            file.write_bytes(make(self._fleet.shape))
        for _ in range(count):
            self._ready.append(self._make())

    def _make(self) -> tuple[str, str]:
        illness = ""
        if self._chance.random() < BAD_SHARE:
            illness = self._chance.choice(sorted(BAD))
        if illness:
            file: Path = self._fleet.root / f"bad-{illness}.onnx"
            version = self._fleet.push(DIGITS, heavy=file)
            self._fleet.build_fp32(DIGITS, version)
            self.bad[version] = illness
        else:
            version = self._fleet.push_digits()
            self._fleet.build(DIGITS, version)
        return version, illness

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
        while not self._stopping.is_set():
            try:
                version, illness = self._ready.pop(0) if self._ready else self._make()
                self._roll_out(version, illness)
            except TROUBLE as error:
                words = str(error).split()
                self._story.say(f"operator: {' '.join(words)[:150]}")
                self._stopping.wait(1.0)

    def _roll_out(self, version: str, illness: str) -> None:
        rollout = self._fleet.begin(DIGITS, version, waves=WAVES)
        self._story.say(f"operator: {rollout} brings {version}{f' ({illness})' if illness else ''}")
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
