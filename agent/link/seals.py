"""Checks signatures and makes keys: what needs the cryptography library.

That library takes 9 MB and is needed for milliseconds, when an order comes and when a certificate
is renewed. A running agent therefore asks a short process (`Apart`), whatever lives as short itself
does it on the spot (`Inline`). Refuses to believe a process that answered anything else than it was
asked for: then the library is loaded here after all.

    python -P -m agent.link.seals      one question as JSON on stdin, one answer on stdout
"""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Protocol

from agent.link.keys import KeyRequest, fits_key, new_key_request

_APART_S = 30.0


class Seals(Protocol):
    """What is asked of the library."""

    def is_signed(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """Whether `data` was signed, by Ed25519, with the key of a raw public key."""
        ...

    def new_key_request(self, common_name: str) -> KeyRequest:
        """See `keys.new_key_request`."""
        ...

    def fits_key(self, certificate_pem: bytes, key_pem: bytes) -> bool:
        """See `keys.fits_key`; ValueError where one of them is none."""
        ...


class Inline:
    """In this process."""

    def is_signed(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """See `Seals`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def new_key_request(self, common_name: str) -> KeyRequest:
        """See `Seals`."""
        return new_key_request(common_name)

    def fits_key(self, certificate_pem: bytes, key_pem: bytes) -> bool:
        """See `Seals`."""
        return fits_key(certificate_pem, key_pem)


INLINE = Inline()


class Apart:
    """In a process of its own for each question, which costs a tenth of a second and no memory."""

    def __init__(self, command: tuple[str, ...] = ()) -> None:
        # Without -P a folder called `agent` where this was started would be taken for ours.
        self._command = command or (sys.executable, "-P", "-m", "agent.link.seals")

    def is_signed(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """See `Seals`."""
        said = self._ask("is_signed", public_key, signature, data)
        return said if isinstance(said, bool) else INLINE.is_signed(public_key, signature, data)

    def new_key_request(self, common_name: str) -> KeyRequest:
        """See `Seals`."""
        match self._ask("new_key_request", common_name.encode()):
            case [str(key), str(csr)]:
                return KeyRequest(key.encode(), csr.encode())
            case _:
                return INLINE.new_key_request(common_name)

    def fits_key(self, certificate_pem: bytes, key_pem: bytes) -> bool:
        """See `Seals`."""
        said = self._ask("fits_key", certificate_pem, key_pem)
        return said if isinstance(said, bool) else INLINE.fits_key(certificate_pem, key_pem)

    def _ask(self, what: str, *given: bytes) -> Any:
        """The answer, None where there is none that can be believed."""
        question = json.dumps({"ask": what, "given": [_text(one) for one in given]})
        try:
            done = subprocess.run(
                self._command,
                input=question,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=_APART_S,
                check=True,
            )
            answer = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        return answer.get(what) if isinstance(answer, dict) else None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _new_key_request(common_name: bytes) -> list[str]:
    made = new_key_request(common_name.decode())
    return [made.key_pem.decode(), made.csr_pem.decode()]  # PEM is text


_ANSWERS: dict[str, Callable[..., Any]] = {
    "is_signed": INLINE.is_signed,
    "new_key_request": _new_key_request,
    "fits_key": INLINE.fits_key,
}


def main() -> int:
    """Answer one question. What goes wrong is no answer: who asked does it himself."""
    question = json.load(sys.stdin)
    what = question["ask"]
    answer = _ANSWERS[what](*(_bytes(one) for one in question["given"]))
    json.dump({what: answer}, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
