"""Answers "why is it so" for builds: what the gate saw, who overruled it, who gets it, what next.

Guesses nothing: says what was stored, and commands that exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.domain.build import PassedBuild
from controller.domain.device import Profile
from controller.domain.ladder import chosen_builds, fastest_builds
from controller.domain.words import moment, ms
from controller.errors import NotFoundError
from controller.services.builds import BuildView, read_builds
from controller.services.context import Ctx, Deps
from controller.services.explain import Fact
from controller.services.gates import load_profiles
from controller.services.tuning_words import Word
from controller.store.builds import passed_builds
from controller.store.session import Connection
from controller.store.tunings import choices_of

USABLE = ("passed", "overridden")
LINES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class BuildExplanation:
    """A build and why it is as it is."""

    build: BuildView
    facts: tuple[Fact, ...]


def explain_builds(
    deps: Deps,
    ctx: Ctx,
    *,
    model: str,
    version: str,
    profile: str = "",
    variant: str = "",
    recipe: str = "",
) -> list[BuildExplanation]:
    """Why each of these builds is as it is. NotFoundError where there are none."""
    with deps.store.read() as conn:
        views = read_builds(conn, ctx, model, version, profile, variant, recipe)
        ref = f"{model}:{version}"
        if not views:
            raise NotFoundError(
                f"{ref} has no such build",
                f"make it: fleetctl build run {ref}" + (f" --profile {profile}" if profile else ""),
                f"fleetctl build list {ref} shows those there are",
            )
        profiles = load_profiles(conn, ctx.project)
        given = {name: _given(conn, ctx, views[0], name) for name in {v.profile for v in views}}
    return [
        BuildExplanation(view, explain(view, given[view.profile], profiles.get(view.profile)))
        for view in views
    ]


def explain(
    view: BuildView, given: Mapping[str, PassedBuild], profile: Profile | None = None
) -> tuple[Fact, ...]:
    """The facts of one build. ``given``: variant -> the build that devices get."""
    facts = [
        Fact("state", _state(view)),
        *(
            Fact("gate", f"{'holds  ' if one.ok else 'refused'}  {one.text}")
            for one in view.findings
        ),
    ]
    if view.override_by:
        when = f" {moment(view.override_at)}" if view.override_at else ""
        facts.append(Fact("overridden", f"by {view.override_by}{when}: {view.override_reason}"))
    if view.evidence is not None:
        facts.append(Fact("measured", _measured(view, profile)))
    facts += [Fact("on devices", word_text(one)) for one in view.measured]
    if view.state in (*USABLE, "refused", "failed"):
        facts.append(Fact("used", _used(view, given)))
    if view.state == "failed":
        facts += [Fact("job", line) for line in _last(view.last_lines)]
    return (*facts, *(Fact("next", text) for text in _next(view, given)))


def _given(conn: Connection, ctx: Ctx, view: BuildView, profile: str) -> dict[str, PassedBuild]:
    passed = passed_builds(conn, ctx.project, view.model, view.version, profile)
    choice = choices_of(conn, ctx.project, view.model, view.version).get(profile)
    chosen = chosen_builds(passed, None, choice.build_ids if choice else ())
    return fastest_builds(passed) | {variant: builds[0] for variant, builds in chosen.items()}


def _state(view: BuildView) -> str:
    reason = view.reason.replace("\n", "; ")
    match view.state:
        case "queued":
            return "queued: waits for a build worker"
        case "running":
            return f"running: {view.step or 'at work'}, {view.progress_pct:.0f} %"
        case "failed":
            tried = f", attempt {view.attempts}" if view.attempts > 1 else ""
            return f"failed {moment(view.updated_at)}{tried}: {reason}"
        case "refused" if view.evidence is None:
            return f"refused {moment(view.updated_at)} before it was made: {reason}"
        case _:
            cached = ", compiled before for the same target" if view.cached else ""
            return f"{view.state} {moment(view.updated_at)}{cached}"


def _measured(view: BuildView, profile: Profile | None) -> str:
    evidence = view.evidence
    if evidence is None:
        return "not at all"
    text = f"on {evidence.measured_on or 'an unknown host'}, n={evidence.latency_n}: "
    if view.measured_on_class:
        return text + f"a host of {view.profile}"
    budget = profile.latency_budget_ms if profile is not None else None
    if budget is None:
        return text + f"not a host of {view.profile}, which has no latency budget"
    return (
        text + f"not a host of {view.profile}, so its budget of {budget:g} ms was not checked;"
        " on the devices the policy and the waves of a rollout decide"
    )


def word_text(word: Word) -> str:
    """What a device says of a build: its figures after the soak, or why it has none."""
    found = word.measured
    if not found.ok:
        return f"{word.device_id}: {found.reason}"
    parts = [f"p50 {ms(found.p50_ms)}  p95 {ms(found.p95_ms)} ms, n={found.n:,}"]
    if found.rss_bytes:
        parts.append(f"{found.rss_bytes / 1e6:.0f} MB")
    if found.temperature_max_c is not None:
        began = found.temperature_start_c
        rise = f" ({found.temperature_max_c - began:+.0f})" if began is not None else ""
        parts.append(f"{found.temperature_max_c:.0f} °C{rise}")
    if found.energy_mj is not None:
        parts.append(f"{found.energy_mj:.3g} mJ each ({found.energy_source})")
    parts.append(f"{found.runtime} {found.runtime_version}, {found.os}")
    old = f"stale, {word.stale}: " if word.stale else ""
    return f"{word.device_id} {moment(word.measured_at)}: {old}{', '.join(parts)}"


def _used(view: BuildView, given: Mapping[str, PassedBuild]) -> str:
    best = given.get(view.variant)
    if view.rung and view.state in USABLE:
        return f"yes: rung {view.rung} of the ladder that was chosen for {view.profile}"
    if best is None:
        return f"no: no build of {view.variant} may go to {view.profile}"
    if best.recipe == view.recipe:
        return f"yes: devices of {view.profile} get it as their rung {view.variant}"
    if view.state not in USABLE:
        return f"no: devices of {view.profile} get {best.recipe}, which passed"
    speed = ""
    if view.evidence is not None and best.p50_ms is not None:
        speed = f" (p50 {ms(best.p50_ms)} against {ms(view.evidence.p50_ms)} ms)"
    able = "" if best.runtime == view.runtime else f" that have {best.runtime}"
    return f"no: devices of {view.profile}{able} get {best.recipe}, which is faster{speed}"


def _next(view: BuildView, given: Mapping[str, PassedBuild]) -> list[str]:
    ref = f"{view.model}:{view.version}"
    this = f"--profile {view.profile} --variant {view.variant} --recipe {view.recipe}"
    match view.state:
        case "queued":
            return ["fleetctl status says whether a build worker is there"]
        case "running":
            return [f"fleetctl build list {ref} --watch"]
        case "failed":
            return [
                f"all that is known: fleetctl build show {ref} {this}",
                f"once the cause is mended: fleetctl build retry {ref}",
            ]
        case "refused" if view.variant in given:
            return ["nothing has to be done: another build of the variant is used"]
        case "refused" if view.evidence is None:
            return [f"once the reason is gone: fleetctl build run {ref} --profile {view.profile}"]
        case "refused":
            return [
                f"figures: fleetctl build show {ref} {this}",
                f"if you answer for it: fleetctl build override {ref} {this} --reason TEXT",
            ]
        case _ if view.variant in given and given[view.variant].recipe == view.recipe:
            return [f"fleetctl rollout plan {ref} --to profile={view.profile}"]
        case _:
            return []


def _last(lines: Sequence[str]) -> list[str]:
    kept = [line for line in lines if line.strip()]
    return kept[-LINES_SHOWN:]
