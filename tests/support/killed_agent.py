"""`lighterman-agent run` that dies by SIGKILL right after its journal took a given kind of record.

    python -m tests.support.killed_agent FOLDER

In FOLDER: `target` names the step to die at, next time it comes (`Grip.aim`); `journaled` has the
name of every step that was recorded, `killed` those it died at; while `hold` is there no download
begins. The product has no such doors: all is wrapped here, in the test's own process.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agent.app
import agent.loop
from agent.__main__ import main
from agent.domain.assignment import ModelState
from agent.domain.events import Event
from agent.domain.update import step
from agent.loop_boot import MODEL
from agent.loop_work import Workers
from agent.store.journal import FileJournal
from tests.support.journaled_steps import steps_of
from tests.support.update_world import Stepper


@dataclass(frozen=True, slots=True)
class Grip:
    """The folder, as the test holds it and as the agent reads it."""

    folder: Path

    def aim(self, name: str) -> None:
        """Die at the next record of this step."""
        partial = self.folder / "target.partial"
        partial.write_text(name)
        partial.replace(self.folder / "target")

    def hold(self) -> None:
        """Let no download begin."""
        (self.folder / "hold").touch()

    def release(self) -> None:
        """Let them."""
        (self.folder / "hold").unlink()

    def names(self, file: str) -> list[str]:
        """Lines of `journaled` or `killed`."""
        path = self.folder / file
        return path.read_text().splitlines() if path.exists() else []

    def note(self, names: frozenset[str]) -> None:
        """The agent's side: these steps are recorded; perhaps it ends here."""
        _add(self.folder / "journaled", *sorted(names))
        target = self.folder / "target"
        wanted = target.read_text() if target.exists() else ""
        if wanted in names:
            target.unlink()
            _add(self.folder / "killed", wanted)
            os.kill(os.getpid(), signal.SIGKILL)


def _add(path: Path, *names: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{name}\n" for name in names)


def wrap(grip: Grip) -> None:
    """Put the journal, the machine and the downloads of this process into the test's hands."""
    last: list[frozenset[str]] = []

    class DyingJournal(FileJournal):
        def append(self, kind: str, key: str, value: Mapping[str, object]) -> None:
            super().append(kind, key, value)  # durable; nobody has acted on it yet
            grip.note(last.pop() if kind == MODEL else frozenset({f"{kind} {key}"}))

    def named(state: ModelState, event: Event) -> Any:
        after, instructions = step(state, event)
        last[:] = [steps_of(state, after, instructions)]
        return after, instructions

    fetch = Workers._fetch_one

    def held(self: Workers, *words: Any) -> None:
        while (grip.folder / "hold").exists():
            threading.Event().wait(0.02)
        fetch(self, *words)

    stepper: Stepper = named
    vars(agent.app)["FileJournal"] = DyingJournal
    vars(agent.loop)["step"] = stepper
    type.__setattr__(Workers, "_fetch_one", held)


if __name__ == "__main__":
    wrap(Grip(Path(sys.argv[1])))
    raise SystemExit(main(["run"]))
