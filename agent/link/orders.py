"""Orders and shared engines as they come over the wire: verified as bytes, then read.

Refuses what was signed for another use: each kind names itself inside the signed bytes, and the key
that vouches for engines can vouch for nothing else.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from agent.domain import strict
from agent.domain.desired import SCHEMA, JsonValue, Target
from agent.domain.manifest import parse_target
from agent.domain.tuning import DeviceOrders, parse_orders
from agent.errors import ManifestError
from agent.link.errors import TrustError
from agent.link.seals import INLINE, Seals
from agent.link.trust import Signature, check_keys, is_signed

ENGINE_MEDIA_TYPE = "application/vnd.lighterman.engine"


@dataclass(frozen=True, slots=True)
class Signed:
    """Bytes that nobody has looked into yet."""

    data: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class SignedOrders:
    """Orders as they came, under the number that the controller said."""

    number: int
    signed: Signed


@dataclass(frozen=True, slots=True)
class SignedEngine:
    """What another device compiled, and who may vouch for such, as they came."""

    statement: Signed
    delegation: Signed


class OrdersVerifier:
    """Knows the signing keys and who this device is."""

    def __init__(
        self, keys: Mapping[str, bytes], device: str, project: str, seals: Seals = INLINE
    ) -> None:
        self._keys, self._device, self._project = dict(keys), device, project
        self._seals = seals

    def orders(self, came: SignedOrders) -> DeviceOrders:
        """The orders inside; TrustError or ManifestError, then nothing of them is followed."""
        self._check(came.signed, self._keys, "orders")
        return parse_orders(came.signed.data, self._device, self._project, came.number)

    def engine(self, came: SignedEngine, key: Mapping[str, str]) -> Target:
        """The file for exactly this key. TrustError, ManifestError: nothing of it is used."""
        self._check(came.delegation, self._keys, "engines")
        body = self._body(came.delegation.data, "engines")
        engines = check_keys([_key(one) for one in strict.as_list(body, "keys", "engines")])
        self._check(came.statement, engines, "engine")
        body = self._body(came.statement.data, "engine")
        told = strict.as_object(strict.get(body, "key", "engine"), "engine.key")
        if told != dict(key):
            differs = sorted(n for n in {*told, *key} if told.get(n) != key.get(n))
            raise TrustError(
                f"the engine is for another key: {', '.join(differs)}", "it was not loaded"
            )
        return parse_target(
            {
                "digest": strict.get(body, "digest", "engine"),
                "length": strict.get(body, "length", "engine"),
                "media_type": ENGINE_MEDIA_TYPE,
                "custom": {"builder": strict.text(body, "builder", "engine")},
                "sources": [],
            },
            "engine",
        )

    def _check(self, came: Signed, keys: Mapping[str, bytes], what: str) -> None:
        if len(came.data) > strict.MAX_MANIFEST_BYTES:
            raise ManifestError(f"{what} of {len(came.data):,} bytes are not read")
        if not is_signed(came.data, came.signatures, keys, self._seals):
            names = ", ".join(one.key_id for one in came.signatures) or "nobody"
            raise TrustError(
                f"the {what} are not signed by a key this device knows for it",
                f"signed by {names}, known: {', '.join(keys)}; nothing was used",
            )

    def _body(self, data: bytes, kind: str) -> strict.Object:
        body = strict.as_object(strict.load(data), kind)
        said = (strict.text(body, "kind", kind), strict.text(body, "project", kind))
        if said != (kind, self._project) or strict.whole(body, "schema", kind) != SCHEMA:
            raise ManifestError(f"{kind}: kind and project are {said[0]!r} and {said[1]!r}")
        return body


def _key(value: JsonValue) -> tuple[str, bytes]:
    body = strict.as_object(value, "engines.keys")
    try:
        raw = base64.b64decode(strict.text(body, "public_key", "engines.keys"), validate=True)
    except (binascii.Error, ValueError):
        raise ManifestError("engines.keys holds what is no key") from None
    return strict.text(body, "key_id", "engines.keys"), raw
