"""The smallest loop around the real update machine, slots, journal and spool, for crash tests.

Serves nothing: `serving` is the slot that would answer, its files hashed at every load.
"""

import hashlib
from pathlib import Path

from agent.domain.assignment import ModelState, keep_of
from agent.domain.desired import DesiredModel
from agent.domain.events import (
    Activated,
    Booted,
    Downloaded,
    Ending,
    Event,
    Loaded,
    PreflightOk,
    RolledBack,
    Staged,
    Verified,
    VerifyFailed,
)
from agent.domain.instructions import (
    CollectGarbage,
    Fetch,
    Instruction,
    LoadAndWarm,
    Preflight,
    Report,
    Serve,
    SetSlots,
    Swap,
    SwapBack,
    Verify,
    WriteJournal,
)
from agent.domain.state_json import state_from_json, state_to_json
from agent.domain.update import step
from agent.errors import DigestMismatchError
from agent.store.disk import Disk
from agent.store.journal import FileJournal
from agent.store.slots import FileSlots
from agent.store.spool import FileSpool
from tests.support.releases import content_of, digest_of
from tests.support.update_world import check_edge

CONTENTS = {
    digest_of(data): data
    for version in ("1.0.0", "1.1.0", "1.2.0", "9.0.0")
    for data in (content_of(f"photo:{version}/heavy"), content_of(f"photo:{version}/light"))
}


class MiniAgent:
    """One start of an agent in `root`; every disk operation goes through `disk`."""

    def __init__(self, root: Path, disk: Disk, counter: int, ending: Ending) -> None:
        self.slots = FileSlots(root, disk)
        self.journal = FileJournal(root / "journal", disk)
        self.spool = FileSpool(root / "spool", f"{counter:010d}-00000000", disk=disk)
        self.serving: str | None = None
        self.fetched: list[tuple[str, int]] = []
        kept = self.journal.latest("model").get("photo")
        self.state = state_from_json(kept) if kept else ModelState("photo")
        if kept:
            self.feed(Booted(ending, frozenset(self._present())))

    def _present(self) -> list[str]:
        found = (self.state.current, self.state.previous, self.state.staged)
        return [
            slot.slot_id
            for slot in found
            if slot is not None and all(self.slots.verify(t) for t in slot.release.targets)
        ]

    def feed(self, event: Event) -> None:
        """Take one event and everything that follows."""
        queue = [event]
        while queue:
            before = self.state
            after, instructions = step(before, queue.pop(0))
            check_edge(before, after, instructions)
            self.state = after
            for instruction in instructions:
                answer = self._do(instruction)
                if answer is not None:
                    queue.append(answer)

    def _do(self, instruction: Instruction) -> Event | None:
        match instruction:
            case WriteJournal():
                self.journal.append("model", "photo", state_to_json(instruction.state))
            case SetSlots(current, previous, staged, ticket):
                self.slots.set_slots("photo", current, previous, staged)
                return None if ticket is None else Staged(ticket)
            case Preflight():
                return PreflightOk(instruction.ticket)
            case Fetch():
                return self._fetch(instruction)
            case Verify():
                return self._verify(instruction)
            case LoadAndWarm():
                self._load(instruction.release)
                return Loaded(instruction.ticket)
            case Swap():
                self._load(instruction.release)
                self.serving = instruction.release.slot_id
                return Activated(instruction.ticket)
            case SwapBack():
                self._load(instruction.release)
                self.serving = instruction.release.slot_id
                return RolledBack(instruction.ticket)
            case Serve():
                self._load(instruction.release)
                self.serving = instruction.release.slot_id
            case Report():
                self.spool.append("report", f"{instruction.rollout} {instruction.phase}".encode())
            case CollectGarbage():
                self.slots.collect(keep_of([self.state]))
            case _:
                pass
        return None

    def _fetch(self, instruction: Fetch) -> Event:
        for target in instruction.targets:
            if not self.slots.has(target.digest):
                data = CONTENTS[target.digest]
                offset = self.slots.partial_bytes(target.digest)
                self.fetched.append((target.digest, offset))
                rest = data[offset:]
                self.slots.receive(target, (rest[i : i + 500] for i in range(0, len(rest), 500)))
        return Downloaded(instruction.ticket)

    def _verify(self, instruction: Verify) -> Event:
        for target in instruction.targets:
            try:
                if not self.slots.has(target.digest):
                    self.slots.finish(target)
                elif not self.slots.verify(target):
                    return VerifyFailed(instruction.ticket, "damaged")
            except DigestMismatchError as error:
                return VerifyFailed(instruction.ticket, error.message)
        return Verified(instruction.ticket)

    def _load(self, release: DesiredModel) -> None:
        """I2: nothing runs whose bytes are not the signed ones."""
        for target in release.targets:
            data = Path(self.slots.path(target.digest)).read_bytes()
            assert "sha256:" + hashlib.sha256(data).hexdigest() == target.digest, "ran unverified"
