"""What the doors must still tell over MQTT: taken in order, forgotten only after it was told."""

from dataclasses import dataclass

from controller.services.context import Deps
from controller.store import devices, outbox
from controller.store.outbox import OutboxKind, OutboxRow

__all__ = ["Bell", "OutboxKind", "OutboxRow", "devices_behind", "forget_told", "take_untold"]


@dataclass(frozen=True, slots=True)
class Bell:
    """A device that has not applied what it should: generation and digest of the manifest."""

    device_id: str
    generation: int
    manifest_digest: str


def take_untold(deps: Deps, after: int = 0, limit: int = 200) -> list[OutboxRow]:
    """The oldest rows behind number `after`; they come again until `forget_told`."""
    with deps.store.read() as conn:
        return outbox.take(conn, limit, after)


def forget_told(deps: Deps, numbers: list[int]) -> None:
    """These rows were told."""
    if numbers:
        with deps.store.write() as conn:
            outbox.done(conn, numbers)


def devices_behind(deps: Deps) -> list[Bell]:
    """All active devices whose applied generation is lower than the desired one."""
    with deps.store.read() as conn:
        return [Bell(*row) for row in devices.behind(conn)]
