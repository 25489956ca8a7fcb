"""Commands that need the database but no running controller, and may run beside one."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from controller.app_identity import load_trust
from controller.app_people import check_out, user_name, write_identity
from controller.blobs.blobs import Blobs
from controller.clock import SystemClock
from controller.domain.words import count_of
from controller.errors import NotFoundError, RefusedError, UnavailableError
from controller.ids import RandomIds
from controller.services.context import Ctx, Deps
from controller.services.operators import (
    OperatorView,
    issue_identity,
    list_people,
    revoke_operator,
)
from controller.services.outbox import OutboxKind, take_untold
from controller.services.samples import SampleWindow
from controller.settings import Settings
from controller.store.folder import lock_data_dir
from controller.store.session import Store, migrate
from controller.trust.names import Role

# So long a running controller may take to have its broker read the names anew.
BROKER_S = 10.0
_LOOK_S = 0.1


def migrate_database(settings: Settings) -> str:
    """Bring the schema up to date; refused while a controller runs on the data directory."""
    with lock_data_dir(settings.data_dir):
        migrate(settings.database_url())
    return "the schema is up to date"


@contextmanager
def _beside(settings: Settings) -> Iterator[tuple[Deps, Ctx]]:
    """The services over the database of a controller that may be running."""
    if not _has_authority(settings):
        raise NotFoundError(
            f"{settings.data_dir} is no data directory of a controller",
            "name it with --data-dir; `serve` makes one at its first start",
        )
    clock = SystemClock()
    trust = load_trust(settings.data_dir, settings.trust_folder(), clock.now())
    store = Store.open(settings.database_url())
    try:
        deps = Deps(
            store=store,
            blobs=Blobs(settings.data_dir / "blobs"),
            authority=trust.authority,
            signer=trust.signer,
            engines=trust.engines,
            samples=SampleWindow(),
        )
        ctx = Ctx(clock.now(), RandomIds(), user_name())
        yield deps, ctx
    finally:
        store.close()


def _has_authority(settings: Settings) -> bool:
    """Whether a controller kept its keys there. Raises UnavailableError where that is hidden."""
    try:
        (settings.trust_folder() / "authority.pem").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnavailableError(
            f"{settings.trust_folder()} cannot be read: {error.strerror}",
            "run this as the user that the controller runs as",
        ) from error
    return True


def list_beside(settings: Settings) -> list[str]:
    """A table of all that hold or held certificates and are no devices."""
    with _beside(settings) as (deps, ctx):
        people = list_people(deps, ctx)
    if not people:
        return ["nobody was issued a certificate yet"]
    rows = [("name", "role", "state", "valid", "until")]
    rows += [
        (one.name, one.role, _state(one), str(one.certificates), local_text(one.valid_until))
        for one in people
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _state(one: OperatorView) -> str:
    if one.revoked_at is not None:
        return f"revoked {local_text(one.revoked_at)}"
    return "good" if one.certificates else "expired"


def local_text(at: datetime | None) -> str:
    """Local time to the second with its zone, or a dash."""
    return "–" if at is None else at.astimezone().isoformat(sep=" ", timespec="seconds")


def revoke_beside(settings: Settings, name: str, reason: str) -> list[str]:
    """Revoke a name; lines that say what that does. A running controller ends its sessions."""
    with _beside(settings) as (deps, ctx):
        gone = revoke_operator(deps, ctx, name, reason)
    return [
        f"revoked {gone.role} {name}: {count_of(gone.certificates, 'certificate')};"
        " a running controller refuses it now and ends its sessions within seconds"
    ]


def issue_beside(
    settings: Settings, name: str, role: str, out: Path, *, again: bool = False
) -> list[str]:
    """Issue a certificate and write it to `out`; lines that say where it is and how to use it."""
    with _beside(settings) as (deps, ctx):
        check_out(role, out)
        issued = issue_identity(deps, ctx, name, role, again=again, revived=again)
        if role == Role.CONSUMER and _is_running(settings):
            _wait_for_broker(deps)
    places = _endpoints(settings)
    files = write_identity(issued, places["grpc"], out)
    lines = [f"wrote {path}" for path in files]
    lines.append(f"{role} {name}, until {local_text(issued.not_after)}")
    if not files:
        return lines
    if role == Role.CONSUMER:
        host, _, port = places["mqtt"].rpartition(":")
        lines.append(
            f"mosquitto_sub -h {host} -p {port} --cafile {files[0]} --cert {files[1]} "
            f"--key {files[2]} -t 'lighterman/v1/feed/#' -v"
        )
    elif role == Role.OPERATOR:
        lines.append(f"fleetctl --context {files[0]} status")
    else:
        lines.append(
            f"lighterman-controller worker --controller {places['grpc']} --identity {files[0]}"
        )
    return lines


def _is_running(settings: Settings) -> bool:
    """Whether a controller holds the data directory."""
    try:
        lock_data_dir(settings.data_dir).close()
    except RefusedError:
        return True
    return False


def _wait_for_broker(deps: Deps) -> None:
    """Until the broker knows the new name: who subscribes sooner gets nothing that is retained.

    Where the broker is away it is not waited for longer than `BROKER_S`: it reads the names when it
    comes.
    """
    clock = SystemClock()
    until = clock.monotonic() + BROKER_S
    while clock.monotonic() < until:
        if all(row.kind is not OutboxKind.ACL for row in take_untold(deps)):
            return
        time.sleep(_LOOK_S)


def _endpoints(settings: Settings) -> dict[str, str]:
    """Where the controller listens, or would listen when it never ran."""
    try:
        found = json.loads((settings.data_dir / "endpoints.json").read_bytes())
        return {"grpc": str(found["grpc"]), "mqtt": str(found["mqtt"])}
    except (OSError, ValueError, KeyError):
        host = settings.names()[0]
        return {
            "grpc": f"{host}:{settings.listen_grpc}",
            "mqtt": f"{host}:{settings.listen_mqtt}",
        }
