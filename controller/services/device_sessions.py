"""What an enrolled device asks: hello, its desired state, its builds, a new certificate.

Every verb checks first that the device may ask. A device sees nothing of any other.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from controller.domain.device import Capabilities, DeviceState
from controller.domain.words import moment
from controller.errors import DeniedError, InvalidError, NotFoundError, RefusedError
from controller.services.certificates import store_issued
from controller.services.context import Ctx, Deps
from controller.services.profiles import match
from controller.services.protocol import negotiate
from controller.store import boots, certificates, devices, events, tunings
from controller.store.devices import DeviceRow
from controller.store.session import Connection
from controller.trust.authority import public_key_digest, read_request
from controller.trust.names import Role, Subject
from controller.trust.signing import PublicKey, Signature

_BOOT_ID = re.compile(r"(\d{1,12})-[0-9a-z]{1,64}")

# Messages of an ended boot may still be on their way through the broker.
LATE_S = 10.0


@dataclass(frozen=True, slots=True)
class HelloFacts:
    """What a device says when it starts to talk."""

    protocol_min: int
    protocol_max: int
    boot_id: str
    capabilities: Capabilities
    applied_generation: int
    acknowledged: tuple[str, ...] = ()  # boots of which it wants to know how far they are stored


@dataclass(frozen=True, slots=True)
class HelloView:
    """What it is told."""

    protocol: int
    desired_generation: int
    signing_keys: tuple[PublicKey, ...]
    profile: str
    pending: bool
    stored: tuple[tuple[str, int], ...] = ()  # boot, and how far it is stored
    orders: int = 0


@dataclass(frozen=True, slots=True)
class DesiredView:
    """A signed manifest as stored; generation 0 has none."""

    generation: int
    manifest: bytes = b""
    signatures: tuple[Signature, ...] = ()
    digests: frozenset[str] = frozenset()
    orders: int = 0  # number of the newest


def admit_device(conn: Connection, device_id: str, *, pending_too: bool = False) -> DeviceRow:
    """The device, if it may ask.

    Raises DeniedError when it is retired or quarantined, RefusedError while it is pending.
    """
    row = devices.get_device(conn, device_id)
    if row is None:
        raise DeniedError(f"device {device_id} is not enrolled here", "enrol it again")
    if row.state == DeviceState.RETIRED:
        raise DeniedError(f"device {device_id} was retired", "enrol it again to bring it back")
    if row.state == DeviceState.QUARANTINED:
        raise DeniedError(
            f"device {device_id} is in quarantine",
            f"fleetctl event list --device {device_id} says why; "
            f"fleetctl device accept {device_id} lets it back in",
        )
    if row.state == DeviceState.PENDING and not pending_too:
        raise RefusedError(
            f"device {device_id} is pending",
            f"an operator lets it in: fleetctl device accept {device_id}",
        )
    return row


def boot_counter(boot_id: str) -> int:
    """The start counter in ``<counter>-<random>``; InvalidError for anything else."""
    found = _BOOT_ID.fullmatch(boot_id)
    if found is None:
        raise InvalidError(f"boot id {boot_id[:80]!r} is not <counter>-<random>")
    return int(found.group(1))


def greet_device(deps: Deps, ctx: Ctx, device_id: str, facts: HelloFacts) -> HelloView:
    """Take the device's capabilities and boot in, and say what it needs to know.

    Raises RefusedError without a common protocol, DeniedError for a clone (and quarantines both).
    """
    protocol = negotiate(facts.protocol_min, facts.protocol_max)
    counter = boot_counter(facts.boot_id)
    for boot_id in facts.acknowledged:
        boot_counter(boot_id)
    clone: DeniedError | None = None
    profile: str | None = None
    with deps.store.write() as conn:
        row = admit_device(conn, device_id, pending_too=True)
        if _is_newest(row, facts.boot_id, counter):
            profile = _take_facts(conn, ctx, row, protocol, facts)
        else:  # stored, not rolled back: the error is raised behind the transaction
            clone = _quarantine(conn, ctx, row, facts.boot_id)
        desired = devices.get_desired(conn, device_id)
        known = boots.list_boots(conn, [device_id], facts.acknowledged)
        orders = tunings.order_number(conn, device_id)
    deps.wake()
    if clone is not None:
        raise clone
    return HelloView(
        protocol=protocol,
        desired_generation=desired.generation if desired is not None else 0,
        signing_keys=deps.signer.public_keys(),
        profile=profile or "",
        pending=row.state == DeviceState.PENDING,
        stored=tuple(
            (boot_id, one.last_seq if (one := known.get((device_id, boot_id))) else 0)
            for boot_id in facts.acknowledged
        ),
        orders=orders,
    )


def _take_facts(
    conn: Connection, ctx: Ctx, row: DeviceRow, protocol: int, facts: HelloFacts
) -> str | None:
    device_id = row.device_id
    if boots.get_boot(conn, device_id, facts.boot_id) is None:
        boots.add_boot(conn, device_id, facts.boot_id, boot_counter(facts.boot_id), ctx.now)
    devices.put_capabilities(conn, device_id, facts.capabilities.to_json(), ctx.now)
    profile = match(conn, row.project, facts.capabilities)
    devices.update_device(
        conn,
        device_id,
        boot_id=facts.boot_id,
        profile=profile,
        protocol=protocol,
        last_seen_at=ctx.now,
    )
    devices.raise_applied(conn, device_id, facts.applied_generation)
    if profile != row.profile:
        events.append(
            conn,
            row.project,
            ctx.now,
            "profile_changed",
            device_id,
            device_id=device_id,
            details={"from": row.profile or "", "to": profile or ""},
        )
    return profile


def check_live_boot(deps: Deps, ctx: Ctx, device_id: str, boot_id: str) -> bool:
    """Whether a live message may come from this boot; an older one that still speaks is a clone.

    False: the message is late, or the device was put in quarantine.
    """
    with deps.store.read() as conn:
        row = devices.get_device(conn, device_id)
        if row is None or row.boot_id is None or row.boot_id == boot_id:
            return row is not None
        if boot_counter(boot_id) > boot_counter(row.boot_id):
            return True  # its hello is on the way
        newest = boots.get_boot(conn, device_id, row.boot_id)
    if newest is None or ctx.now < newest.first_seen_at + timedelta(seconds=LATE_S):
        return False
    with deps.store.write() as conn:
        row = devices.get_device(conn, device_id)
        if row is not None and row.state in (DeviceState.ACTIVE, DeviceState.PENDING):
            _quarantine(conn, ctx, row, boot_id)
    deps.wake()
    return False


def _is_newest(row: DeviceRow, boot_id: str, counter: int) -> bool:
    """A second boot with the same or a lower counter is another holder of the same identity."""
    if row.boot_id is None or row.boot_id == boot_id:
        return True
    return counter > boot_counter(row.boot_id)


def _quarantine(conn: Connection, ctx: Ctx, row: DeviceRow, boot_id: str) -> DeniedError:
    reason = f"boot {boot_id} speaks although {row.boot_id} is newer: two holders of one identity"
    devices.update_device(conn, row.device_id, state=DeviceState.QUARANTINED)
    events.append(
        conn,
        row.project,
        ctx.now,
        "device_quarantined",
        ctx.actor,
        device_id=row.device_id,
        reason=reason,
        details={"boot_id": boot_id, "newest_boot_id": row.boot_id or ""},
    )
    return DeniedError(
        f"device {row.device_id} is in quarantine",
        reason,
        f"fleetctl device accept {row.device_id} lets it back in",
    )


def fetch_desired(deps: Deps, ctx: Ctx, device_id: str) -> DesiredView:
    """What the device should run, as signed."""
    with deps.store.read() as conn:
        admit_device(conn, device_id)
        row = devices.get_desired(conn, device_id)
        orders = tunings.order_number(conn, device_id)
    if row is None:
        return DesiredView(0, orders=orders)
    signatures = tuple(
        Signature(one["key_id"], base64.b64decode(one["signature"])) for one in row.signatures
    )
    return DesiredView(row.generation, row.manifest, signatures, _digests(row.models), orders)


def desired_digests(conn: Connection, device_id: str) -> frozenset[str]:
    """Builds that the device's desired state names."""
    row = devices.get_desired(conn, device_id)
    return frozenset() if row is None else _digests(row.models)


def _digests(models: dict[str, Any]) -> frozenset[str]:
    return frozenset(
        str(rung["target"]["digest"])
        for entry in models.values()
        for rung in entry.get("ladder", ())
        if rung.get("target")
    )


def open_build(
    deps: Deps, ctx: Ctx, device_id: str, digest: str, offset: int, also: frozenset[str]
) -> tuple[int, Iterator[bytes]]:
    """Length and bytes from `offset` of a build that the device's desired state names.

    `also` are others that it may have: of the manifest before, of its orders, engines. Raises
    DeniedError for what is none of them, InvalidError for an offset outside, NotFoundError when the
    bytes are gone.
    """
    allowed = fetch_desired(deps, ctx, device_id).digests | also
    if digest not in allowed:
        raise DeniedError(f"{digest[:80]} is not part of what {device_id} should run")
    if not deps.blobs.exists(digest):
        raise NotFoundError(f"the bytes of {digest} are gone", "build the version again")
    length = deps.blobs.length(digest)
    if not 0 <= offset <= length:
        raise InvalidError(f"offset {offset:,} is outside of {length:,} bytes")
    return length, deps.blobs.open_reader(digest, offset)


def renew_certificate(deps: Deps, ctx: Ctx, device_id: str, csr_pem: bytes) -> bytes:
    """A new certificate (PEM) for the device; a retry with the same key gets the same one."""
    key = read_request(csr_pem)
    digest = public_key_digest(key)
    with deps.store.write() as conn:
        admit_device(conn, device_id, pending_too=True)
        for row in certificates.list_valid(conn, device_id, ctx.now):
            fresh = ctx.now < row.not_before + (row.not_after - row.not_before) / 2
            if row.public_key_digest == digest and fresh:
                return row.pem.encode("ascii")
        subject = Subject(Role.DEVICE, device_id)
        issued = deps.authority.issue(subject, key, ctx.now, deps.limits.device_certificate_s)
        certificates.drop_expired(conn, device_id, ctx.now)
        store_issued(conn, ctx, issued)
        events.append(
            conn,
            ctx.project,
            ctx.now,
            "certificate_renewed",
            device_id,
            device_id=device_id,
            details={"serial": issued.serial, "until": moment(issued.not_after)},
        )
        return issued.pem
