"""Ed25519 signatures over manifests. Signs bytes as given; stores no key."""

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from controller.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and the key that made it."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that devices verify with: raw Ed25519, 32 bytes."""

    key_id: str
    public_key: bytes


def key_id_of(public_key: bytes) -> str:
    """First 16 hex digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` was made over `data` by the holder of `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


class Signer:
    """Holds the controller's online signing key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        self._public = PublicKey(key_id_of(raw), raw)

    @classmethod
    def create(cls) -> "Signer":
        """A signer with a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, key_pem: bytes) -> "Signer":
        """A signer from PKCS#8 PEM; InvalidError when it holds another kind of key."""
        key = serialization.load_pem_private_key(key_pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidError("the signing key is not an Ed25519 key")
        return cls(key)

    def key_pem(self) -> bytes:
        """The private key as PKCS#8 PEM, for whoever persists it."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, data: bytes) -> tuple[Signature, ...]:
        """One signature per key, over exactly `data`."""
        return (Signature(self._public.key_id, self._key.sign(data)),)

    def public_keys(self) -> tuple[PublicKey, ...]:
        """What devices verify with."""
        return (self._public,)
