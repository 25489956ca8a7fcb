"""`lighterman-agent run` that dies by SIGKILL right after its journal took a given record.

    python -m tests.support.killed_agent COUNT

The product has no such door: the journal's append is wrapped here, in the test's own process.
"""

import os
import signal
import sys
from collections.abc import Mapping

from agent.__main__ import main
from agent.store.journal import FileJournal


class DyingJournal(FileJournal):
    """Counts its records over the whole process."""

    left = 0

    def append(self, kind: str, key: str, value: Mapping[str, object]) -> None:
        """Append, durable; then perhaps die before anybody can act on it."""
        super().append(kind, key, value)
        DyingJournal.left -= 1
        if DyingJournal.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    DyingJournal.left = int(sys.argv[1])
    import agent.app

    vars(agent.app)["FileJournal"] = DyingJournal
    raise SystemExit(main(["run"]))
