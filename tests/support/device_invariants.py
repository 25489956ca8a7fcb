"""I1 to I4 of one device that is dead, from its disk alone: what a start will find there."""

import hashlib
from pathlib import Path

from agent.store.journal import FileJournal
from agent.store.slots import FileSlots


def check_disk(state_dir: Path, seen_before: int = 0) -> int:
    """AssertionError names what does not hold; gives the highest generation ever accepted.

    For devices that had a runnable model before.
    """
    store = FileSlots(state_dir)
    for path in (state_dir / "blobs").iterdir():
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest in path.name, f"I2: {path.name} holds {digest}"
    assert store.models(), "I4: no model has a pointer"
    for model in store.models():
        current, previous, _ = store.slots(model)
        assert current is not None, f"I4: {model} has nothing to run"
        for slot in (current, previous):
            for target in slot.release.targets if slot else ():
                data = Path(store.path(target.digest)).read_bytes()
                found = "sha256:" + hashlib.sha256(data).hexdigest()
                assert (found, len(data)) == (target.digest, target.length), f"I1: {model}"
        assert current.committed or previous is not None, f"I4: {model} cannot return"
    journal = FileJournal(state_dir / "journal")
    assert journal.is_sound, f"I3: {journal.damage}"
    known = journal.latest("generation").get("seen", {}).get("value", 0)
    assert isinstance(known, int)
    assert known >= seen_before, f"I3: generation {seen_before} was seen, now {known}"
    return known
