"""Who this worker is: the context file of the role worker. Issues and renews nothing."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from controller.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Identity:
    """What mutual TLS needs."""

    name: str
    controller: str  # host:port
    ca_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)


def read_identity(path: Path) -> Identity:
    """Read a context file. Raises InvalidError that says what is wrong with it."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidError(
            f"the worker's identity {path} cannot be read: {error.strerror}",
            "make one: lighterman-controller operator issue NAME --role worker --out FILE",
        ) from error
    except ValueError as error:
        raise InvalidError(f"{path} is no identity: {error}") from error
    if not isinstance(body, dict) or body.get("schema") != 1:
        raise InvalidError(f"{path} is no identity of schema 1")
    keys = ("name", "controller", "ca_pem", "certificate_pem", "key_pem")
    missing = [key for key in keys if not isinstance(body.get(key), str) or not body[key]]
    if missing:
        raise InvalidError(f"{path} lacks {', '.join(missing)}")
    return Identity(
        name=body["name"],
        controller=body["controller"],
        ca_pem=body["ca_pem"].encode(),
        certificate_pem=body["certificate_pem"].encode(),
        key_pem=body["key_pem"].encode(),
    )
