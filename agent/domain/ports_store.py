"""What the loop asks of the store: journal, slots, spool, identity. `ports` opens them all.

Refuses implementations. All calls are synchronous; each says which errors it raises.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.domain.assignment import Slot
from agent.domain.desired import Target


class Journal(Protocol):
    """Facts that survive a power cut: the last value per (kind, key) counts."""

    def append(self, kind: str, key: str, value: Mapping[str, object]) -> None:
        """Make one record durable; on a StoreError nothing was recorded."""
        ...

    def latest(self, kind: str) -> Mapping[str, Mapping[str, object]]:
        """The newest value per key of this kind."""
        ...


class SlotStore(Protocol):
    """Verified files by digest, and the pointers of each model."""

    def free_bytes(self) -> int:
        """Bytes that can still be written."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the whole file is there (its bytes were verified when it came)."""
        ...

    def path(self, digest: str) -> str:
        """Where the file lies. NotStoredError."""
        ...

    def partial_bytes(self, digest: str) -> int:
        """From which byte a download goes on."""
        ...

    def receive(self, target: Target, chunks: Iterable[bytes]) -> int:
        """Append to the partial file; gives the bytes it has now. Never beyond the signed length.

        DiskFullError, WriteFailedError, DigestMismatchError (too long).
        """
        ...

    def finish(self, target: Target) -> None:
        """Hash the partial file from disk and make it a file of the store. DigestMismatchError."""
        ...

    def verify(self, target: Target) -> bool:
        """Hash a stored file again; a wrong one is removed."""
        ...

    def set_slots(
        self, model: str, current: Slot | None, previous: Slot | None, staged: Slot | None
    ) -> None:
        """Write the pointers of one model in one atomic step."""
        ...

    def slots(self, model: str) -> tuple[Slot | None, Slot | None, Slot | None]:
        """Current, previous, staged."""
        ...

    def models(self) -> tuple[str, ...]:
        """Models that have pointers."""
        ...

    def collect(self, keep: frozenset[str]) -> int:
        """Remove files (and partial ones) that neither `keep` nor a pointer names; bytes freed."""
        ...


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """One report or event as it was written; `kind` is "report" or "event"."""

    boot_id: str
    seq: int
    kind: str
    payload: bytes


class Spool(Protocol):
    """Reports and events until the controller has stored them."""

    def append(self, kind: str, payload: bytes) -> SpoolEntry:
        """Number and keep one entry, durable on return. SpoolFullError, StoreError."""
        ...

    def pending(self, limit: int = 100) -> tuple[SpoolEntry, ...]:
        """The oldest entries not acknowledged, older boots first."""
        ...

    def ack(self, boot_id: str, seq: int) -> int:
        """Everything of this boot up to `seq` is stored there; gives the entries dropped."""
        ...

    def acknowledged(self) -> Mapping[str, int]:
        """By boot whose entries are kept, and the running one: how far it was acknowledged."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is and whom it believes. PEM; `signing_keys` are raw Ed25519 by key id.

    `enroll_endpoint` is where it enrolled, for words alone; empty where that was not kept.
    """

    device_id: str
    project: str
    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    signing_keys: Mapping[str, bytes]
    grpc_endpoint: str
    mqtt_endpoint: str
    enroll_endpoint: str = ""


class IdentityStore(Protocol):
    """Keys and certificates. Working ones stay until the new ones worked once."""

    def current(self) -> Identity | None:
        """The identity in use; None before enrolment. IdentityError when it is damaged."""
        ...

    def certificate_path(self) -> str:
        """The current certificate as a PEM file, for libraries that read files."""
        ...

    def key_path(self) -> str:
        """The current private key as a PEM file, mode 0600."""
        ...

    def request(self, purpose: str) -> tuple[bytes, bytes] | None:
        """Key and certificate request (PEM) that wait for an answer, by purpose."""
        ...

    def keep_request(self, purpose: str, key_pem: bytes, csr_pem: bytes) -> None:
        """Make a key and its request durable before anything is asked with it.

        `purpose` is the fingerprint of the enrolment token, or "renewal".
        """
        ...

    def drop_request(self, purpose: str) -> None:
        """The request was answered or is of no use any more."""
        ...

    def keep_next(self, identity: Identity) -> None:
        """Keep a new identity beside the current one, durable."""
        ...

    def next(self) -> Identity | None:
        """The new identity that has not proven itself yet."""
        ...

    def promote(self) -> None:
        """The next identity worked: it becomes the current one in one atomic step."""
        ...
