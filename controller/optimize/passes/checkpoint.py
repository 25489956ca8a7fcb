"""Where a training step keeps what it has, for the case that its worker is killed.

One file a training in `checkpoints/` of the job's directory; a worker keeps the folder when a job
does not end, and brings it again with the same job. A file that is damaged, or of another training,
counts as none. Refuses pickled code: the file is read as tensors and numbers only.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "checkpoints"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``path`` None: nothing is kept. ``key`` says of which training it is."""

    path: Path | None = None
    key: str = ""

    def save(self, state: dict[str, Any]) -> None:
        """Keep it, whole or not at all. A full disk costs the checkpoint, not the training."""
        import torch

        if self.path is None:
            return
        unfinished = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(exist_ok=True)
            with unfinished.open("wb") as stream:
                torch.save({"key": self.key, "state": state}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(self.path)
        except (OSError, RuntimeError) as error:  # PyTorch's writer has its own word for it
            sys.stderr.write(f"warning: no checkpoint was kept: {error}\n")
            unfinished.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """What was kept of this training; None where nothing was."""
        import torch

        if self.path is None or not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 — a half-written file has many ways to be wrong
            sys.stderr.write(f"warning: the checkpoint cannot be read: {error}\n")
            return None
        if not isinstance(found, dict) or found.get("key") != self.key:
            return None
        state: dict[str, Any] = found["state"]
        return state
