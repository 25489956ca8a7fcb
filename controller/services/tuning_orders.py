"""What devices are to do beside serving, as signed: measure builds while idle, and their roles.

Composed anew at each question, so that what was measured meanwhile is not asked for again; the
number changes only when a person asks for something else. Decides nothing.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controller.domain.build import PassedBuild
from controller.domain.device import parse_profile
from controller.domain.hosting import Hosting
from controller.domain.ladder import Rung, RungKind
from controller.services.context import Ctx, Deps
from controller.services.desired import PROTOCOL, SCHEMA, canonical, digest_of
from controller.services.device_sessions import admit_device
from controller.store import devices, engines, outbox, tunings
from controller.store.builds import passed_builds
from controller.store.models import find_version
from controller.store.objects import find_object
from controller.store.outbox import OutboxKind
from controller.store.session import Connection
from controller.store.tunings import TuningDeviceRow, TuningRow
from controller.trust.signing import Signature

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrdersView:
    """Signed orders; ``digests`` are the builds that they name."""

    number: int
    manifest: bytes
    signatures: tuple[Signature, ...]
    digests: frozenset[str]


def fetch_orders(deps: Deps, ctx: Ctx, device_id: str) -> OrdersView:
    """The device's orders of this moment. DeniedError or RefusedError where it may not ask."""
    with deps.store.read() as conn:
        admit_device(conn, device_id)
        number = tunings.order_number(conn, device_id)
        asked = _asked(conn, ctx, device_id)
        roles = engines.roles_of(conn, [device_id]).get(device_id, ())
    manifest = canonical(
        {
            "schema": SCHEMA,
            "kind": "orders",
            "protocol": PROTOCOL,
            "project": ctx.project,
            "device": device_id,
            "number": number,
            "issued_at": ctx.now.isoformat(),
            "roles": list(roles),
            "tuning": asked,
        }
    )
    return OrdersView(number, manifest, deps.signer.sign(manifest), digests_of(asked))


def ordered_digests(conn: Connection, ctx: Ctx, device_id: str) -> frozenset[str]:
    """Builds that the device may fetch because it is to measure them."""
    return digests_of(_asked(conn, ctx, device_id))


def digests_of(asked: Iterable[Json]) -> frozenset[str]:
    """Of all candidates."""
    return frozenset(str(one["target"]["digest"]) for each in asked for one in each["candidates"])


def ring(conn: Connection, ctx: Ctx, device_ids: Iterable[str]) -> None:
    """There are other orders for these devices: another number, and a bell for each."""
    bells = []
    for device_id in device_ids:
        number = tunings.next_order(conn, device_id, ctx.now)
        known = devices.get_desired(conn, device_id)
        bell = {
            "generation": known.generation if known else 0,
            "manifest_digest": digest_of(known.manifest) if known else "",
            "orders": number,
        }
        bells.append((device_id, json.dumps(bell).encode()))
    outbox.append_many(conn, ctx.now, OutboxKind.DOORBELL, bells, retain=True)


def _asked(conn: Connection, ctx: Ctx, device_id: str) -> list[Json]:
    found = []
    for project, row, share in tunings.running_of_device(conn, device_id):
        if row.expires_at > ctx.now and share.build_ids:
            entry = _entry(conn, project, row, share)
            if entry["candidates"]:
                found.append(entry)
    return found


def _entry(conn: Connection, project: str, row: TuningRow, share: TuningDeviceRow) -> Json:
    version = find_version(conn, project, row.model, row.version)
    passed = passed_builds(conn, project, row.model, row.version, row.profile)
    known = find_object(conn, project, "Profile", row.profile)
    hosting = parse_profile(known.name, known.spec).hosting if known else Hosting()
    return {
        "id": row.tuning_id,
        "model": row.model,
        "version": row.version,
        "expires_at": row.expires_at.isoformat(),
        **row.options,
        "signature": version.signature if version else {"inputs": [], "outputs": []},
        "candidates": [
            _candidate(build, row.profile, hosting)
            for build in passed
            if build.build_id in share.build_ids
        ],
    }


def _candidate(build: PassedBuild, profile: str, hosting: Hosting) -> Json:
    """As a rung would be: how it is run is how it is measured."""
    rung = Rung(build.variant, RungKind.LOCAL, build).to_manifest(profile, hosting)
    kept = {name: rung[name] for name in ("variant", "recipe", "runtime", "target")}
    return {"build": build.build_id, **kept}


def signatures_json(signatures: Iterable[Signature]) -> list[dict[str, str]]:
    """The form stored."""
    return [
        {"key_id": one.key_id, "signature": base64.b64encode(one.signature).decode("ascii")}
        for one in signatures
    ]


def signatures_of(stored: Iterable[dict[str, str]]) -> tuple[Signature, ...]:
    """Read :func:`signatures_json`."""
    return tuple(Signature(one["key_id"], base64.b64decode(one["signature"])) for one in stored)
