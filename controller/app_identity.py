"""Keys, certificates and contexts on disk: the only place that writes them. Private files are 0600.

Makes the authority and the signing key once; what it finds damaged is an error, never replaced.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from controller.clock import Clock
from controller.errors import InvariantError, LightermanError, UnavailableError
from controller.trust.authority import Authority, Identity, read_certificate
from controller.trust.names import Role, Subject
from controller.trust.signing import Signer

SERVER_LIFE_S = 90 * 86400.0
CLIENT_LIFE_S = 10 * 365 * 86400.0  # the controller's own client: never leaves the process
CONTEXT_NAME = "local"
_MOST_CONTEXTS = 100  # of controllers that run on one machine at the same time
_ANSWER_S = 1.0
_END = b"-----END CERTIFICATE-----\n"


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole and have it on disk."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom devices believe. ``engines`` signs what builders compiled, and nothing else."""

    authority: Authority
    signer: Signer
    engines: Signer | None


def load_trust(data_dir: Path, room: Path, now: datetime) -> Trust:
    """The authority and the signing keys in ``room``, made at the first start.

    Raises InvariantError when a file is there but cannot be read: devices trust what was in it;
    UnavailableError when one is missing and cannot be made, or the clock is behind the authority.
    """
    authority_file, signing_file = room / "authority.pem", room / "signing.pem"
    try:
        if not authority_file.exists():
            made = Authority.create(now)
            write_file(authority_file, made.certificate_pem + made.key_pem)
        certificate, end, key = authority_file.read_bytes().partition(_END)
        authority = Authority.load(certificate + end, key)
        if not signing_file.exists():
            write_file(signing_file, Signer.create().key_pem())
        signer = Signer.load(signing_file.read_bytes())
        engines = _engines_key(room / "engines.pem")
    except (ValueError, LightermanError) as error:
        raise InvariantError(
            f"the keys in {room} cannot be read: {error}",
            "restore them from a backup: every enrolled device trusts them",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"the keys in {room} can be neither read nor made: {error.strerror}",
            "authority.pem (certificate and key) and signing.pem belong there, readable by the "
            "user of this process",
        ) from error
    check_clock(authority, room, now)
    write_file(data_dir / "ca.pem", authority.certificate_pem, 0o644)
    return Trust(authority, signer, engines)


def _engines_key(path: Path) -> Signer | None:
    """The key for what builders compiled. None where the folder of the others cannot be written:
    a controller of before has none, and then nothing is shared.
    """
    if not path.exists():
        try:
            write_file(path, Signer.create().key_pem())
        except OSError:
            return None
    return Signer.load(path.read_bytes())


def check_clock(authority: Authority, room: Path, now: datetime) -> None:
    """UnavailableError where the authority begins later: then TLS takes no certificate of it."""
    if now < authority.not_before:
        raise UnavailableError(
            f"the clock of this machine says {now:%Y-%m-%d %H:%M} UTC, but the controller's own "
            f"authority was made {authority.not_before:%Y-%m-%d %H:%M} UTC",
            "set the clock; nothing was changed",
            f"if it was wrong when {room} was made: move that folder away and enrol devices anew",
        )


@dataclass(slots=True)
class ServerIdentity:
    """The listeners' certificate, made anew when two thirds of its life are over."""

    authority: Authority
    clock: Clock
    hosts: Sequence[str]
    _identity: Identity | None = field(default=None)

    def current(self) -> Identity:
        """A certificate that is good for a while."""
        now = self.clock.now()
        known = self._identity
        # Begins later: it was made while the clock was ahead, and nobody takes it.
        early = known is not None and now < known.issued.not_before
        if known is None or early or now >= self._renew_at(known):
            subject = Subject(Role.SERVER, "server")
            known = self.authority.new_identity(subject, now, SERVER_LIFE_S, self.hosts)
            self._identity = known
        return known

    def chain_pem(self) -> bytes:
        """The certificate and the CA: enrolling devices know only the CA's fingerprint."""
        return self.current().issued.pem + self.authority.certificate_pem

    def refresher(self) -> "Refresher":
        """Tells one listener when there is a newer pair."""
        return Refresher(self, self.current())

    @staticmethod
    def _renew_at(identity: Identity) -> datetime:
        issued = identity.issued
        return issued.not_before + (issued.not_after - issued.not_before) * 2 / 3


@dataclass(slots=True)
class Refresher:
    """What one listener presents at the moment."""

    server: ServerIdentity
    shown: Identity

    def __call__(self) -> tuple[bytes, bytes] | None:
        """Chain and key when they changed, else None."""
        newest = self.server.current()
        if newest is self.shown:
            return None
        self.shown = newest
        return self.server.chain_pem(), newest.key_pem


@dataclass(frozen=True, slots=True)
class ContextFile:
    """What fleetctl and workers connect with."""

    name: str
    controller: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    project: str = "default"

    def to_json(self) -> bytes:
        """The file's text."""
        document = {
            "schema": 1,
            "name": self.name,
            "controller": self.controller,
            "project": self.project,
            "ca_pem": self.ca_pem.decode("ascii"),
            "certificate_pem": self.certificate_pem.decode("ascii"),
            "key_pem": self.key_pem.decode("ascii"),
        }
        return json.dumps(document, indent=2).encode("ascii") + b"\n"


def read_context(path: Path) -> ContextFile | None:
    """A context file, or None when it is absent or damaged."""
    try:
        document = json.loads(path.read_bytes())
        return ContextFile(
            name=document["name"],
            controller=document["controller"],
            ca_pem=document["ca_pem"].encode("ascii"),
            certificate_pem=document["certificate_pem"].encode("ascii"),
            key_pem=document["key_pem"].encode("ascii"),
            project=document["project"],
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def still_good(context: ContextFile, authority: Authority, now: datetime) -> bool:
    """Whether the context belongs to this authority and its certificate lives a month more."""
    if context.ca_pem != authority.certificate_pem:
        return False
    try:
        presented = read_certificate(context.certificate_pem)
    except ValueError:
        return False
    return presented.not_before <= now and presented.not_after > now + timedelta(days=30)


def config_dir(environ: dict[str, str]) -> Path:
    """Where fleetctl looks for contexts."""
    given = environ.get("LIGHTERMAN_CONFIG_DIR")
    return Path(given).expanduser() if given else Path.home() / ".config" / "lighterman"


def register_context(folder: Path, context: ContextFile) -> str:
    """Make a context the current one of this user; gives the name it got.

    What belongs to another controller that answers is left: then this one gets a number behind its
    name, and is not the current one where that is another's.
    """
    names = (context.name, *(f"{context.name}-{number}" for number in range(2, _MOST_CONTEXTS)))
    name = next((n for n in names if not _is_of_another(folder, n, context)), context.name)
    named = replace(context, name=name)
    write_file(folder / "contexts" / f"{name}.json", named.to_json())
    try:
        current = (folder / "current").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        current = ""
    if not _is_of_another(folder, current, context):
        write_file(folder / "current", name.encode("ascii") + b"\n", 0o644)
    return name


def _is_of_another(folder: Path, name: str, context: ContextFile) -> bool:
    """Whether a context is that of another controller, which is there."""
    known = read_context(folder / "contexts" / f"{name}.json") if name else None
    if known is None or known.ca_pem == context.ca_pem:
        return False
    host, _, port = known.controller.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, ValueError):
        return False
    return True
