"""Verifies the desired state as bytes: Ed25519 over exactly what was sent, by keys from enrolment.

Refuses to repair, re-encode or guess: the bytes are checked first and parsed after, and what
stands inside them (device, project, generation, protocol) must agree with what they came as.
Cryptography is asked through `seals`, when a manifest comes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.domain.desired import DesiredState, check_fits
from agent.domain.manifest import MAX_MANIFEST_BYTES, parse_manifest
from agent.errors import ManifestError
from agent.link.errors import TrustError
from agent.link.seals import INLINE, Seals


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and the name of the key that made it."""

    key_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class SignedState:
    """A desired state as it came: bytes that nobody has looked into yet."""

    generation: int
    manifest: bytes
    signatures: tuple[Signature, ...]

    @property
    def digest(self) -> str:
        """`sha256:…` of the manifest."""
        return "sha256:" + hashlib.sha256(self.manifest).hexdigest()


def key_id_of(public_key: bytes) -> str:
    """The name of a raw Ed25519 key: the first 16 hex digits of its sha256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def check_keys(keys: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """Signing keys by id; TrustError where an id is not that of its key, or there is none."""
    known: dict[str, bytes] = {}
    for key_id, public_key in keys:
        if len(public_key) != 32 or key_id_of(public_key) != key_id:
            raise TrustError(f"signing key {key_id!r} does not fit its own name")
        known[key_id] = public_key
    if not known:
        raise TrustError("the controller gave no signing key", "enrol again; see its log")
    return known


def is_signed(
    data: bytes, signatures: Sequence[Signature], keys: Mapping[str, bytes], seals: Seals
) -> bool:
    """Whether any of these signatures was made over exactly these bytes by one of these keys."""
    return any(
        one.key_id in keys and seals.is_signed(keys[one.key_id], one.value, data)
        for one in signatures
    )


class ManifestVerifier:
    """Knows the signing keys and who this device is; gives desired states that may be applied."""

    def __init__(
        self, keys: Mapping[str, bytes], device: str, project: str, seals: Seals = INLINE
    ) -> None:
        self._seals = seals
        self._keys = dict(keys)
        self._device = device
        self._project = project

    def verify(self, signed: SignedState, highest_generation: int) -> DesiredState:
        """The desired state inside; TrustError or ManifestError, then nothing of it is used."""
        if len(signed.manifest) > MAX_MANIFEST_BYTES:
            raise ManifestError(
                f"the manifest has {len(signed.manifest):,} bytes,"
                f" at most {MAX_MANIFEST_BYTES:,} are read"
            )
        if not any(self._signed_by_known(signed.manifest, s) for s in signed.signatures):
            names = ", ".join(s.key_id for s in signed.signatures) or "nobody"
            raise TrustError(
                f"generation {signed.generation} is not signed by a key this device knows",
                f"signed by {names}, known: {', '.join(self._keys)}; nothing was applied",
            )
        state = parse_manifest(signed.manifest)
        if state.generation != signed.generation:
            raise TrustError(
                f"the manifest says generation {state.generation},"
                f" it came as generation {signed.generation}",
                "nothing was applied",
            )
        if state.project != self._project:
            raise TrustError(
                f"the manifest is for project {state.project!r}, this is {self._project!r}",
                "nothing was applied",
            )
        check_fits(state, self._device, highest_generation)
        return state

    def _signed_by_known(self, data: bytes, signature: Signature) -> bool:
        return is_signed(data, (signature,), self._keys, self._seals)
