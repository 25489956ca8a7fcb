"""Composes what a device should run, signs it and rings: the only writer of desired states.

Refuses to decide who gets what (the tick does) and to go back a generation. Knows no wire type: the
manifest is canonical JSON, and what rings is an outbox row that the MQTT door turns into a message.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from controller.domain.build import PassedBuild
from controller.domain.device import parse_profile
from controller.domain.group import resolve
from controller.domain.hosting import Hosting
from controller.domain.ladder import Ladder, Policy, compose_ladder, parse_policy, pick_policy
from controller.domain.selection import Selector, Subject
from controller.errors import InvariantError, NotFoundError
from controller.services.context import Ctx, Deps
from controller.services.subjects import load_subjects
from controller.services.suggestions import suggest_names
from controller.store import devices, outbox
from controller.store.builds import passed_builds
from controller.store.desired import list_desired, put_many
from controller.store.models import VersionRow, find_version
from controller.store.objects import list_objects
from controller.store.outbox import OutboxKind
from controller.store.session import Connection
from controller.store.tunings import ChoiceRow, choices_of

Json = dict[str, Any]

SCHEMA = 1
PROTOCOL = 1
# A restored database knows fewer orders than its devices followed; one that tells of more is lying.
AHEAD_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """A device as far as composing needs it; `runtimes` are those it reports."""

    subject: Subject
    online: bool
    runtimes: tuple[str, ...]


def load_members(
    conn: Connection,
    project: str,
    device_ids: tuple[str, ...] | None = None,
    models: frozenset[str] = frozenset(),
    *,
    quarantined_too: bool = False,
) -> list[Member]:
    """Active devices of the project, all or those named; with what they run of these models."""
    found = devices.list_devices(conn, project, device_ids, with_status=False)
    states = ("ACTIVE", "QUARANTINED") if quarantined_too else ("ACTIVE",)
    rows = [row for row in found if row.state in states]
    ids = None if device_ids is None else [row.device_id for row in rows]
    reported = devices.capabilities_of(conn, ids)
    return [
        Member(
            subject=subject,
            online=row.online,
            runtimes=tuple(reported.get(row.device_id, {}).get("runtimes", {})),
        )
        for row, subject in zip(rows, load_subjects(conn, rows, reported, models, ids), strict=True)
    ]


def load_policies(conn: Connection, project: str, wanted: str = "") -> dict[str, Json]:
    """Specs of the policies by name; with `wanted` only that one, NotFoundError without it."""
    specs = {row.name: dict(row.spec) for row in list_objects(conn, project, "Policy")}
    if not wanted:
        return specs
    if wanted not in specs:
        raise NotFoundError(f"no policy {wanted}", *suggest_names(wanted, sorted(specs)))
    return {wanted: specs[wanted]}


@dataclass(slots=True)
class Composer:
    """Composes the entries of one version within one transaction; builds are read once a profile.

    `pinned`: the rollout names its policy, so the one of `policies` holds for every device.
    """

    conn: Connection
    project: str
    version: VersionRow
    policies: tuple[Policy, ...]
    pinned: bool = False
    _passed: dict[str, list[PassedBuild]] = field(default_factory=dict)
    _hosting: dict[str, Hosting] = field(default_factory=dict)
    _chosen: dict[str, ChoiceRow] | None = None

    @property
    def models(self) -> frozenset[str]:
        """Models whose versions the policies ask for."""
        return frozenset(name for policy in self.policies for name in policy.selector.models)

    def policy(self, subject: Subject) -> Policy:
        """The policy of this device."""
        if self.pinned:
            return self.policies[0]
        return pick_policy(self.policies, self.version.model, subject)

    def ladder(self, member: Member) -> Ladder:
        """The ladder of this device, or why it has none."""
        profile = member.subject.profile
        if not profile:
            return Ladder((), "no profile matches what the device reports")
        if profile not in self._passed:
            self._passed[profile] = passed_builds(
                self.conn, self.project, self.version.model, self.version.version, profile
            )
        passed = self._passed[profile]
        variants = [variant.variant for variant in self.version.variants]
        ladder = compose_ladder(
            variants,
            passed,
            profile,
            self.policy(member.subject),
            member.runtimes,
            self._choice(profile),
        )
        if not ladder.rungs and passed:
            needed = sorted({build.runtime for build in passed} - set(member.runtimes))
            if needed:
                return Ladder((), f"the device has no runtime {' or '.join(needed)}")
        return ladder

    def _host(self, profile: str) -> Hosting:
        """How devices of the profile run builds; one that is gone by now says nothing."""
        if not self._hosting:
            self._hosting = {
                row.name: parse_profile(row.name, row.spec).hosting
                for row in list_objects(self.conn, self.project, "Profile")
            }
        return self._hosting.get(profile, Hosting())

    def _choice(self, profile: str) -> tuple[str, ...]:
        """Builds of the ladder that a person chose for the profile; empty without one."""
        if self._chosen is None:
            self._chosen = choices_of(
                self.conn, self.project, self.version.model, self.version.version
            )
        found = self._chosen.get(profile)
        return found.build_ids if found else ()

    def entry(self, member: Member, ladder: Ladder, rollout_id: str) -> Json:
        """The manifest's entry of this version on this device."""
        return {
            "model": self.version.model,
            "version": self.version.version,
            "rollout": rollout_id,
            "activation": "serve",
            "signature": self.version.signature,
            "labels": list(self.version.labels),
            "params": dict(self.version.params),
            "ladder": [
                rung.to_manifest(member.subject.profile, self._host(member.subject.profile))
                for rung in ladder.rungs
            ],
            "policy": self.policy(member.subject).to_manifest(),
        }


def make_composer(
    conn: Connection,
    project: str,
    model: str,
    version: str,
    policies: Mapping[str, Json],
    *,
    pinned: bool = False,
    groups: Mapping[str, Selector] | None = None,
) -> Composer:
    """A composer for a version; NotFoundError without it. `groups` are those policies name."""
    row = find_version(conn, project, model, version)
    if row is None:
        raise NotFoundError(
            f"no model version {model}:{version}", "fleetctl model list shows what was pushed"
        )
    return Composer(conn, project, row, resolved_policies(policies, groups or {}, model), pinned)


def resolved_policies(
    policies: Mapping[str, Json], groups: Mapping[str, Selector], model: str
) -> tuple[Policy, ...]:
    """Policies as a rollout keeps them, with what their groups said."""
    return tuple(
        replace(policy, selector=resolve(policy.selector, groups, model))
        for policy in (parse_policy(name, spec) for name, spec in policies.items())
    )


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of the bytes."""
    return "sha256:" + sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Change:
    """One device is to run this entry of the model (None: no version of the model)."""

    device_id: str
    model: str
    entry: Json | None


class DesiredBook:
    """The desired states of some devices within one transaction: read at once, written at once.

    `change` counts generations up in memory, from what the device followed where that is more (the
    database is a restored backup); `write` signs, stores and rings, each device once with
    its newest generation.
    """

    def __init__(self, conn: Connection, device_ids: Iterable[str]) -> None:
        self._conn = conn
        device_ids = list(device_ids)
        self._known = list_desired(conn, device_ids)
        self._applied = devices.list_applied(conn, device_ids)
        self._now: dict[str, tuple[int, Json]] = dict(self._known)
        self._changed: dict[str, None] = {}

    def entry(self, device_id: str, model: str) -> Json | None:
        """What the device should run of the model."""
        found = self._now.get(device_id)
        entry: Json | None = None if found is None else found[1].get(model)
        return entry

    def change(self, change: Change) -> int:
        """Take a change in; returns the generation with which the device will get it."""
        generation, models = self._now.get(change.device_id, (0, {}))
        models = dict(models)
        ahead = self._applied.get(change.device_id, 0) - generation
        if 0 < ahead <= AHEAD_MOST:
            generation += ahead  # it would not take a lower one
        if change.entry is None:
            models.pop(change.model, None)
        else:
            models[change.model] = change.entry
        self._now[change.device_id] = (generation + 1, models)
        self._changed[change.device_id] = None
        return generation + 1

    def write(self, deps: Deps, ctx: Ctx) -> None:
        """Sign, store and ring for every device that changed, in the caller's transaction."""
        rows: list[Json] = []
        bells: list[tuple[str, bytes]] = []
        for device_id in self._changed:
            generation, models = self._now[device_id]
            manifest = _manifest(ctx, device_id, generation, models)
            digest = digest_of(manifest)
            rows.append(
                {
                    "device_id": device_id,
                    "generation": generation,
                    "models": models,
                    "manifest": manifest,
                    "manifest_digest": digest,
                    "signatures": _signed(deps, manifest),
                    "updated_at": ctx.now,
                }
            )
            bell = canonical({"generation": generation, "manifest_digest": digest})
            bells.append((device_id, bell))
        put_many(self._conn, rows, self._known)
        outbox.append_many(self._conn, ctx.now, OutboxKind.DOORBELL, bells, retain=True)
        self._changed.clear()


def change_desired(
    conn: Connection, deps: Deps, ctx: Ctx, device_id: str, model: str, entry: Json | None
) -> int:
    """Give the device a new generation with this entry of the model (None: without the model).

    Signs, stores and rings in the caller's transaction; returns the generation.
    """
    book = DesiredBook(conn, [device_id])
    generation = book.change(Change(device_id, model, entry))
    book.write(deps, ctx)
    return generation


def _manifest(ctx: Ctx, device_id: str, generation: int, models: Json) -> bytes:
    return canonical(
        {
            "schema": SCHEMA,
            "protocol": PROTOCOL,
            "project": ctx.project,
            "device": device_id,
            "generation": generation,
            "issued_at": ctx.now.isoformat(),
            "models": [models[name] for name in sorted(models)],
        }
    )


def _signed(deps: Deps, manifest: bytes) -> list[dict[str, str]]:
    signatures = [
        {"key_id": one.key_id, "signature": base64.b64encode(one.signature).decode("ascii")}
        for one in deps.signer.sign(manifest)
    ]
    if not signatures:
        raise InvariantError("the signer gave no signature: nothing was written")
    return signatures
