"""The gate of a build for a version and profile: asks the domain, stores what it said.

An override by a person stays as long as it speaks of the same build.
"""

from collections.abc import Mapping
from dataclasses import replace

from controller.domain.build import RELEASABLE, Evidence, GateVerdict, Recipe, parse_recipe
from controller.domain.device import Capabilities, Profile, host_matches, parse_profile
from controller.domain.gate import GateResult, Previous, gate
from controller.domain.version import precedence
from controller.services.context import Ctx
from controller.store import events
from controller.store.builds import (
    BuildRow,
    GateKey,
    GateRow,
    find_gate,
    gates_of_build,
    list_seen,
    put_gate,
)
from controller.store.objects import list_objects
from controller.store.session import Connection


def load_profiles(conn: Connection, project: str) -> dict[str, Profile]:
    """All profiles by name."""
    rows = list_objects(conn, project, "Profile")
    return {row.name: parse_profile(row.name, row.spec) for row in rows}


def judge_build(
    conn: Connection, ctx: Ctx, project: str, build: BuildRow, *, lacking: bool = False
) -> None:
    """Write the gate of every version and profile that waits for the build, with an event each.

    ``lacking``: its worker has not what the recipe needs. That refuses the build and is no failure.
    """
    profiles = load_profiles(conn, project)
    for gate_project, row in gates_of_build(conn, build.build_id):
        if gate_project != project or row.verdict == GateVerdict.OVERRIDDEN:
            continue
        before = previous_of(conn, project, row.key, build)
        found = judge(build, profiles.get(row.key.profile), before)
        if lacking and found.verdict is GateVerdict.FAILED:
            found = replace(found, verdict=GateVerdict.REFUSED)
        put_gate(
            conn,
            project,
            replace(
                row,
                verdict=found.verdict.value,
                reason=found.reason,
                findings=findings_json(found),
                updated_at=ctx.now,
            ),
        )
        events.append(
            conn,
            project,
            ctx.now,
            f"build_{found.verdict.lower()}",
            ctx.actor,
            model=row.key.model,
            version=row.key.version,
            reason=found.reason,
            details={
                "variant": row.key.variant,
                "recipe": row.key.recipe,
                "profile": row.key.profile,
                "build": build.build_id,
            },
        )


def previous_of(conn: Connection, project: str, key: GateKey, build: BuildRow) -> Previous | None:
    """What the newest older version gives devices of the profile by the same variant and recipe.

    None where there is none that may be released, or where it is the same file.
    """
    mine = precedence(key.version)
    older = {
        seen.gate.key.version: seen.build
        for seen in list_seen(conn, project, key.model, profile=key.profile)
        if (seen.gate.key.variant, seen.gate.key.recipe) == (key.variant, key.recipe)
        and seen.gate.verdict in RELEASABLE
        and precedence(seen.gate.key.version) < mine
    }
    version = max(older, key=precedence, default="")
    before = older.get(version)
    if before is None or before.build_id == build.build_id or before.state != "COMPILED":
        return None
    found = Evidence.from_json(before.evidence or {})
    return Previous(
        version, found.size_bytes, found.p50_ms, found.p50_interval_ms, found.measured_on
    )


def judge(build: BuildRow, profile: Profile | None, previous: Previous | None = None) -> GateResult:
    """The judgement of one build for one profile; PENDING while it is being made."""
    match build.state:
        case "FAILED":
            return GateResult(GateVerdict.FAILED, build.reason)
        case "COMPILED":
            if profile is None:
                return GateResult(GateVerdict.REFUSED, "the profile does not exist any more")
            recipe = recipe_of(build)
            evidence = build.evidence or {}
            on_class = measured_on_class(evidence, profile)
            return gate(Evidence.from_json(evidence), profile, recipe, on_class, previous)
        case _:
            return GateResult(GateVerdict.PENDING, "")


def findings_json(result: GateResult) -> list[dict[str, object]]:
    """What is stored of a judgement beside verdict and reason."""
    return [one.to_json() for one in result.findings]


def recipe_of(build: BuildRow) -> Recipe:
    """The recipe as it was when the build was asked for."""
    return parse_recipe(build.recipe, build.recipe_spec)


def measured_on_class(evidence: Mapping[str, object], profile: Profile) -> bool:
    """Whether the host that measured is of the profile's class."""
    host = evidence.get("host")
    return isinstance(host, Mapping) and host_matches(Capabilities.from_json(host), profile)


def write_gate(
    conn: Connection,
    ctx: Ctx,
    key: GateKey,
    *,
    build_id: str | None,
    result: GateResult,
    cached: bool = False,
) -> None:
    """Store a gate; an override of the same build stays, and so does one that says the same."""
    verdict, reason = result.verdict.value, result.reason
    found = findings_json(result)
    before = find_gate(conn, ctx.project, key)
    if before is not None and before.build_id == build_id:
        same = (before.verdict, before.reason, before.findings) == (verdict, reason, found)
        if same or before.verdict == GateVerdict.OVERRIDDEN:
            return
    put_gate(
        conn,
        ctx.project,
        GateRow(key, build_id, verdict, reason, None, None, None, cached, ctx.now, found),
    )
