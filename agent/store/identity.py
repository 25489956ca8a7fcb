"""Who this device is: its key, certificates and whom it believes.

Refuses to overwrite what works: a new identity is kept beside the current one until it worked once,
and the switch is one atomic pointer. Keys never leave this folder; files are private to the agent.
"""

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.domain.ports import Identity
from agent.errors import IdentityError
from agent.store.disk import Disk
from agent.store.lines import decode_line, encode_line

_PEMS = {"certificate_pem": "certificate.pem", "key_pem": "key.pem", "ca_pem": "ca.pem"}


class FileIdentityStore:
    """Satisfies `agent.domain.ports.IdentityStore`."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root = root
        self._disk = disk or Disk()
        self._pointer_path = root / "pointer"
        self._requests = root / "requests"
        self._disk.make_folder(self._requests)

    def current(self) -> Identity | None:
        """The identity in use; None before enrolment. IdentityError when it is damaged."""
        return self._load(self._pointer()["current"])

    def next(self) -> Identity | None:
        """The new identity that has not proven itself yet."""
        return self._load(self._pointer()["next"])

    def certificate_path(self) -> str:
        """The current certificate as a PEM file. IdentityError before enrolment."""
        return str(self._current_folder() / _PEMS["certificate_pem"])

    def key_path(self) -> str:
        """The current private key as a PEM file, mode 0600. IdentityError before enrolment."""
        return str(self._current_folder() / _PEMS["key_pem"])

    def keep_next(self, identity: Identity) -> None:
        """Keep a new identity beside the current one, durable. An older next one is given up."""
        pointer = self._pointer()
        taken = [int(p.name) for p in self._root.iterdir() if p.name.isdigit()]
        name = str(max(taken, default=0) + 1)
        folder = self._root / name
        self._disk.make_folder(folder)
        for key, file in _PEMS.items():
            self._disk.write_atomic(folder / file, getattr(identity, key))
        facts = {
            "device_id": identity.device_id,
            "project": identity.project,
            "signing_keys": {k: v.hex() for k, v in identity.signing_keys.items()},
            "grpc_endpoint": identity.grpc_endpoint,
            "mqtt_endpoint": identity.mqtt_endpoint,
            "enroll_endpoint": identity.enroll_endpoint,
            "digest": _digest_of(identity),
        }
        self._disk.write_atomic(folder / "identity", encode_line(facts))
        self._point(pointer["current"], name)

    def promote(self) -> None:
        """The next identity worked: it becomes the current one in one atomic step.

        Nothing to do without a next one. IdentityError when it is damaged: the current one stays.
        """
        pointer = self._pointer()
        if pointer["next"] is None:
            return
        self._load(pointer["next"])
        self._point(pointer["next"], None)
        self._sweep(pointer["next"])

    def request(self, purpose: str) -> tuple[bytes, bytes] | None:
        """Key and certificate request (PEM) that wait for an answer, by purpose."""
        try:
            body = decode_line(self._request_path(purpose).read_bytes().rstrip(b"\n"))
            return str(body["key_pem"]).encode(), str(body["csr_pem"]).encode()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError):
            # Nobody has certified this key as far as we know: a new one is as good.
            return None

    def keep_request(self, purpose: str, key_pem: bytes, csr_pem: bytes) -> None:
        """Make a key and its request durable before anything is asked with it."""
        body = {"purpose": purpose, "key_pem": key_pem.decode(), "csr_pem": csr_pem.decode()}
        self._disk.write_atomic(self._request_path(purpose), encode_line(body))

    def drop_request(self, purpose: str) -> None:
        """The request was answered or is of no use any more."""
        self._disk.remove(self._request_path(purpose))

    # -- files -------------------------------------------------------------------------------------

    def _request_path(self, purpose: str) -> Path:
        return self._requests / hashlib.sha256(purpose.encode()).hexdigest()[:32]

    def _pointer(self) -> dict[str, str | None]:
        try:
            body = decode_line(self._pointer_path.read_bytes().rstrip(b"\n"))
            return {key: _folder_name(body[key]) for key in ("current", "next")}
        except FileNotFoundError:
            return {"current": None, "next": None}
        except (OSError, ValueError, KeyError) as error:
            raise IdentityError(
                f"{self._pointer_path} is damaged: {error}",
                "restore it, or enrol this device again with a new token",
            ) from error

    def _point(self, current: str | None, following: str | None) -> None:
        body = {"current": current, "next": following}
        self._disk.write_atomic(self._pointer_path, encode_line(body))

    def _current_folder(self) -> Path:
        name = self._pointer()["current"]
        if name is None:
            raise IdentityError(
                f"no identity in {self._root}", "enrol this device: lighterman-agent enroll"
            )
        return self._root / name

    def _load(self, name: str | None) -> Identity | None:
        if name is None:
            return None
        folder = self._root / name
        try:
            facts: dict[str, Any] = decode_line((folder / "identity").read_bytes().rstrip(b"\n"))
            pems = {key: (folder / file).read_bytes() for key, file in _PEMS.items()}
            identity = Identity(
                device_id=facts["device_id"],
                project=facts["project"],
                signing_keys={k: bytes.fromhex(v) for k, v in facts["signing_keys"].items()},
                grpc_endpoint=facts["grpc_endpoint"],
                mqtt_endpoint=facts["mqtt_endpoint"],
                enroll_endpoint=str(facts.get("enroll_endpoint", "")),
                **pems,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(
                f"the identity in {folder} is damaged: {error}",
                "enrol this device again with a new token",
            ) from error
        if facts.get("digest") != _digest_of(identity):
            raise IdentityError(
                f"the files in {folder} do not belong together",
                "enrol this device again with a new token",
            )
        return identity

    def _sweep(self, keep: str | None) -> None:
        """Keys that no pointer names are removed; failing to is no harm."""
        for folder in self._root.iterdir():
            if folder.name.isdigit() and folder.name != keep:
                with contextlib.suppress(OSError):
                    for file in folder.iterdir():
                        file.unlink(missing_ok=True)
                    folder.rmdir()


def _folder_name(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.isdigit()):
        return value
    raise ValueError(f"{value!r} is no identity")


def _digest_of(identity: Identity) -> str:
    plain = replace(identity, signing_keys={})
    keys = json.dumps({k: v.hex() for k, v in identity.signing_keys.items()}, sort_keys=True)
    seen = hashlib.sha256(keys.encode())
    for text in (plain.device_id, plain.project, plain.grpc_endpoint, plain.mqtt_endpoint):
        seen.update(text.encode() + b"\0")
    if plain.enroll_endpoint:  # younger than the other facts
        seen.update(plain.enroll_endpoint.encode() + b"\0")
    for pem in (plain.certificate_pem, plain.key_pem, plain.ca_pem):
        seen.update(pem + b"\0")
    return seen.hexdigest()
