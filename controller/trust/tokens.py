"""Enrolment tokens as text: made, split, hashed. Does not know whether one is still good."""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from controller.errors import InvalidError

PREFIX = "lm1"
_TOKEN = re.compile(r"lm1\.([A-Z2-7]{16,64})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart: the secret and the SHA-256 of the CA certificate (DER, hex)."""

    secret: str
    ca_fingerprint: str

    def text(self) -> str:
        """As people copy it."""
        return f"{PREFIX}.{self.secret}.{self.ca_fingerprint}"


def new_secret() -> str:
    """160 random bits in base32."""
    return base64.b32encode(secrets.token_bytes(20)).decode("ascii")


def parse_token(text: str) -> Token:
    """Split ``lm1.<secret>.<fingerprint>``; InvalidError for anything else."""
    found = _TOKEN.fullmatch(text.strip())
    if found is None:
        raise InvalidError(
            "this is not an enrolment token",
            "it looks like lm1.<secret>.<fingerprint>; `fleetctl admin token create` makes one",
        )
    return Token(found.group(1), found.group(2))


def hash_secret(secret: str) -> str:
    """What is stored of a secret. It is 160 random bits, so a plain hash suffices."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8")).hexdigest()
