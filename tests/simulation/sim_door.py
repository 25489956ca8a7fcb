"""The road of doorbells: the controller's outbox, a broker that keeps the newest bell of each.

A device fetches because a bell rang, never by itself, so that a bell that is lost is seen.
"""

import json

from controller.services.context import Deps
from controller.services.outbox import OutboxKind, devices_behind, forget_told, take_untold


class SimDoor:
    """What the controller's door remembers, and what the broker keeps."""

    def __init__(self) -> None:
        self.retained: dict[str, int] = {}  # device -> generation
        self._is_new = True  # connected to the broker just now

    def connect(self) -> None:
        """The controller or the broker has started: who is behind hears it again."""
        self._is_new = True

    def forget(self) -> None:
        """The broker lost what it kept."""
        self.retained.clear()
        self.connect()

    def drain(self, deps: Deps) -> None:
        """Tell what is in the outbox, then forget it there: at least once."""
        if self._is_new:
            for bell in devices_behind(deps):
                self.retained[bell.device_id] = bell.generation
            self._is_new = False
        rows = take_untold(deps)
        for row in rows:
            if row.kind is OutboxKind.DOORBELL:
                self.retained[row.topic] = int(json.loads(row.payload)["generation"])
        forget_told(deps, [row.number for row in rows])
