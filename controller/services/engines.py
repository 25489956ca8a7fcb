"""What a builder compiled, for devices that are its like: taken in, signed, handed out by its key.

Only a device that an operator made a builder may give anything, and only for a build that it has
itself, on the host that it reported. What is handed out is signed by the engines key, a key of its
own that can vouch for nothing else; the key that devices have known since they enrolled names it.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.domain.device import Capabilities, DeviceState
from controller.domain.spec import read_json
from controller.errors import DeniedError, InvalidError, RefusedError
from controller.services.context import Ctx, Deps
from controller.services.desired import SCHEMA, canonical, digest_of
from controller.services.device_sessions import admit_device, desired_digests
from controller.services.tuning_orders import ordered_digests, ring, signatures_json, signatures_of
from controller.store import devices, engines, events
from controller.store.engines import EngineRow
from controller.store.session import Connection
from controller.trust.signing import Signature, Signer

BUILDER = "builder"
KEY_BYTES_MOST = 64 * 1024
ENGINE_BYTES_MOST = 1024**3
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NEEDED = ("runtime", "version", "build", "arch", "os")


@dataclass(frozen=True, slots=True)
class EngineView:
    """A signed statement of one engine, and who may sign such."""

    statement: bytes
    signatures: tuple[Signature, ...]
    delegation: bytes
    delegation_signatures: tuple[Signature, ...]


def find_shared(deps: Deps, ctx: Ctx, device_id: str, key_json: str) -> EngineView | None:
    """The engine of exactly this key, where the device has the build. DeniedError otherwise."""
    key = read_key(key_json)
    with deps.store.read() as conn:
        admit_device(conn, device_id)
        if key["build"] not in _own_builds(conn, ctx, device_id):
            raise DeniedError(f"{key['build'][:80]} is not part of what {device_id} should run")
        row = engines.find_engine(conn, ctx.project, digest_of(canonical(key)))
    if row is None or deps.engines is None or not deps.blobs.exists(row.digest):
        return None
    return _view(deps, ctx, row)


def publish_engine(
    deps: Deps,
    ctx: Ctx,
    device_id: str,
    key_json: str,
    digest: str,
    length: int,
    chunks: Iterable[bytes],
) -> EngineView:
    """Take what a builder compiled. Nothing is read of one that may not give, or of a wrong key.

    DeniedError without the role, InvalidError for a key that is not its device's.
    """
    key = read_key(key_json)
    if not _DIGEST.fullmatch(digest) or not 0 < length <= ENGINE_BYTES_MOST:
        raise InvalidError(f"an engine has a digest and 1 to {ENGINE_BYTES_MOST:,} bytes")
    signer = deps.engines
    if signer is None:
        raise RefusedError("this controller has no engines key, so nothing is shared")
    with deps.store.read() as conn:
        _may_give(conn, ctx, device_id, key)
    with deps.blobs.writer(length) as out:
        for chunk in chunks:
            out.write(chunk)
        out.commit(digest)
    row = _signed(ctx, signer, device_id, key, digest, length)
    with deps.store.write() as conn:
        _may_give(conn, ctx, device_id, key)  # the role may have gone while the bytes came
        engines.put_engine(conn, ctx.project, row)
        details = {"build": row.build_digest, "digest": digest, "runtime": key["runtime"]}
        events.append(
            conn, ctx.project, ctx.now, "engine_published", device_id,
            device_id=device_id, details=details,
        )  # fmt: skip
    return _view(deps, ctx, row)


def _signed(
    ctx: Ctx, signer: Signer, device_id: str, key: dict[str, str], digest: str, length: int
) -> EngineRow:
    statement = canonical(
        {
            "schema": SCHEMA,
            "kind": "engine",
            "project": ctx.project,
            "key": key,
            "digest": digest,
            "length": length,
            "builder": device_id,
            "published_at": ctx.now.isoformat(),
        }
    )
    return EngineRow(
        key_digest=digest_of(canonical(key)),
        key=key,
        build_digest=key["build"],
        digest=digest,
        length=length,
        device_id=device_id,
        statement=statement,
        signatures=signatures_json(signer.sign(statement)),
        published_at=ctx.now,
    )


def set_role(deps: Deps, ctx: Ctx, device_id: str, role: str, granted: bool) -> None:
    """Grant or take a role. What a builder gave goes with its role: nobody gets it any more."""
    if role != BUILDER:
        raise InvalidError(f"{role or 'nothing'} is no role of a device", f"known is {BUILDER}")
    with deps.store.write() as conn:
        row = devices.get_device(conn, device_id)
        if granted and row is not None and row.state != DeviceState.ACTIVE:
            raise RefusedError(
                f"device {device_id} is {row.state.lower()}", "only an active device can be one"
            )
        if not engines.set_role(conn, device_id, role, granted, ctx.actor, ctx.now):
            return
        gone = 0 if granted else engines.drop_engines(conn, device_id)
        ring(conn, ctx, [device_id])
        kind = "device_role_granted" if granted else "device_role_taken"
        details = {"role": role, **({} if granted else {"engines_taken_back": str(gone)})}
        events.append(
            conn, ctx.project, ctx.now, kind, ctx.actor, device_id=device_id, details=details
        )
    deps.wake()


def list_shared(deps: Deps, ctx: Ctx) -> list[EngineRow]:
    """All that is handed out."""
    with deps.store.read() as conn:
        return engines.list_engines(conn, ctx.project)


def allowed_digests(deps: Deps, ctx: Ctx, device_id: str, asked: str) -> frozenset[str]:
    """What the device may fetch: its builds, those it is to measure, and engines of these."""
    with deps.store.read() as conn:
        admit_device(conn, device_id)
        mine = _own_builds(conn, ctx, device_id)
        of = engines.builds_of_engine(conn, ctx.project, asked)
    return mine | {asked} if of & mine else mine


def read_key(text: str) -> dict[str, str]:
    """An engine's key: a flat object of texts. InvalidError for anything else."""
    if len(text) > KEY_BYTES_MOST:
        raise InvalidError(f"an engine's key has at most {KEY_BYTES_MOST:,} bytes")
    found = read_json(text, "an engine's key")
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and _NAME.fullmatch(name) and isinstance(value, str)
        for name, value in found.items()
    ):
        raise InvalidError("an engine's key is an object of texts")
    missing = [name for name in _NEEDED if not found.get(name)]
    if missing or not _DIGEST.fullmatch(found["build"]):
        raise InvalidError(f"an engine's key has no {', '.join(missing) or 'digest of its build'}")
    return found


def _own_builds(conn: Connection, ctx: Ctx, device_id: str) -> frozenset[str]:
    return desired_digests(conn, device_id) | ordered_digests(conn, ctx, device_id)


def _may_give(conn: Connection, ctx: Ctx, device_id: str, key: Mapping[str, str]) -> None:
    admit_device(conn, device_id)
    if BUILDER not in engines.roles_of(conn, [device_id]).get(device_id, ()):
        raise DeniedError(
            f"device {device_id} is no builder: what it compiled stays with it",
            f"an operator makes it one: fleetctl device grant {device_id} {BUILDER}",
        )
    if key["build"] not in _own_builds(conn, ctx, device_id):
        raise DeniedError(f"{key['build'][:80]} is not part of what {device_id} should run")
    reported = devices.capabilities_of(conn, [device_id]).get(device_id, {})
    wrong = _contradictions(key, Capabilities.from_json(reported))
    if wrong:
        raise InvalidError(f"the engine's key is not its device's: {'; '.join(wrong)}")


def _contradictions(key: Mapping[str, str], host: Capabilities) -> list[str]:
    """Where a key says otherwise than the device that gives it reported of itself."""
    version = host.runtimes.get(key["runtime"], "")
    pairs = [("arch", host.arch), ("os", host.os), ("version", version)]
    wrong = [
        f"{name} {key[name][:60]!r} against {there!r}"
        for name, there in pairs
        if key[name] != there
    ]
    if host.cpu_model and host.cpu_model not in key.get("cpu", host.cpu_model):
        wrong.append(f"cpu without {host.cpu_model!r}")
    accelerators = " ".join(host.accelerators)
    if key.get("accelerators", "") != accelerators:
        wrong.append(f"accelerators against {accelerators!r}")
    return wrong


def _view(deps: Deps, ctx: Ctx, row: EngineRow) -> EngineView:
    keys = deps.engines.public_keys() if deps.engines else ()
    delegation = canonical(
        {
            "schema": SCHEMA,
            "kind": "engines",
            "project": ctx.project,
            "keys": [
                {
                    "key_id": one.key_id,
                    "public_key": base64.b64encode(one.public_key).decode("ascii"),
                }
                for one in keys
            ],
        }
    )
    return EngineView(
        row.statement, signatures_of(row.signatures), delegation, deps.signer.sign(delegation)
    )
