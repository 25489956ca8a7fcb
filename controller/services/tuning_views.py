"""What devices measured of a version's builds, and the ladder that comes of it. Changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controller.domain.build import Evidence
from controller.domain.device import Profile
from controller.domain.tournament import (
    Budget,
    Candidate,
    Figures,
    Proposal,
    combine,
    propose,
)
from controller.domain.words import count_of
from controller.errors import NotFoundError
from controller.services.context import Ctx
from controller.services.tuning_words import Word, words_of
from controller.store import devices, tunings
from controller.store.builds import SeenRow, list_seen
from controller.store.session import Connection
from controller.store.tunings import ChoiceRow, TuningDeviceRow, TuningRow

Names = tuple[str, str, str]  # model, version, profile


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate with its figures: of devices, or of the build host. None: not measured there."""

    seen: SeenRow
    quality: float | None
    figures: Figures | None
    rung: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TuningView:
    """How a measurement stands, and the ladder that follows. ``row`` None: there never was one."""

    names: Names
    row: TuningRow | None
    state: str
    shares: tuple[TuningDeviceRow, ...]
    standings: tuple[Standing, ...]
    measured_on: str
    on_device: bool
    chosen: ChoiceRow | None
    recipes: tuple[str, ...]  # of the chosen ladder
    notes: tuple[str, ...] = ()

    @property
    def proposed(self) -> tuple[str, ...]:
        """Builds of the proposed ladder, heavy to light."""
        return tuple(
            one.seen.build.build_id for one in self.standings if one.rung and one.seen.build
        )

    @property
    def applied(self) -> bool:
        """Whether that is the profile's ladder."""
        return self.chosen is not None and self.chosen.build_ids == self.proposed


def read_tuning(
    conn: Connection, ctx: Ctx, names: Names, profile: Profile, notes: Sequence[str] = ()
) -> TuningView:
    """How it stands now."""
    model, version, _ = names
    row = tunings.newest_tuning(conn, ctx.project, *names)
    shares = tuple(tunings.shares_of(conn, row.tuning_id)) if row else ()
    usable = candidates(conn, ctx.project, names)
    words = words_of(conn, ctx.project, [s.build.build_id for s in usable if s.build])
    mine = {
        one.device_id
        for one in devices.list_devices(conn, ctx.project, with_status=False)
        if one.profile == profile.name
    }
    standings, on_device = _standings(usable, words, mine)
    proposal = propose(
        [made for one in standings if (made := _candidate(one)) is not None],
        Budget(profile.latency_budget_ms, profile.memory_budget_bytes),
    )
    chosen = tunings.choices_of(conn, ctx.project, model, version).get(profile.name)
    known = {s.build.build_id: s.gate.key.recipe for s in usable if s.build}
    return TuningView(
        names=names,
        row=row,
        state=_state(row, ctx.now),
        shares=shares,
        standings=_placed(standings, proposal),
        measured_on=_measured_on(standings, words, mine, on_device),
        on_device=on_device,
        chosen=chosen,
        recipes=tuple(known.get(one, "gone") for one in chosen.build_ids) if chosen else (),
        notes=tuple(notes),
    )


def candidates(conn: Connection, project: str, names: Names) -> list[SeenRow]:
    """Builds that may be released to the profile, heavy to light. NotFoundError where none may."""
    model, version, profile = names
    found = [
        seen
        for seen in list_seen(conn, project, model, version, profile)
        if seen.gate.verdict in ("PASSED", "OVERRIDDEN")
        and seen.build is not None
        and seen.build.digest is not None
    ]
    if not found:
        raise NotFoundError(
            f"no build of {model}:{version} passed for {profile}",
            f"fleetctl build run {model}:{version} --profile {profile} --wait",
        )
    return found


def _standings(
    usable: Sequence[SeenRow], words: Mapping[str, Sequence[Word]], mine: set[str]
) -> tuple[list[Standing], bool]:
    """With medians over devices; without any, of the build host. And which of the two it is."""
    evidence = [Evidence.from_json(s.build.evidence or {}) for s in usable if s.build]
    truths = [_quality(one) for one in evidence]
    bases = {(one.dataset_digest, name) for one, (name, _) in zip(evidence, truths, strict=True)}
    comparable = len(bases) == 1 and all(value is not None for _, value in truths)
    found = []
    for seen, (_, value) in zip(usable, truths, strict=True):
        said = [w for w in words.get(seen.build.build_id, ()) if w.device_id in mine]  # type: ignore[union-attr]
        fresh = [w.measured for w in said if not w.stale]
        failed = next((w for w in said if not w.measured.ok), None)
        old = next((w for w in said if w.stale), None)
        why = ""
        if failed:
            why = f"{failed.device_id}: {failed.measured.reason}"
        elif old:
            why = f"{old.device_id}: {old.stale}"
        quality = value if comparable else None
        found.append(Standing(seen, quality, combine(fresh), "", why))
    if any(one.figures is not None for one in found):
        return found, True
    host = [
        replace(
            standing,
            figures=Figures(one.p50_ms, one.p95_ms, one.peak_rss_bytes or 0)
            if one.p95_ms
            else None,
        )
        for standing, one in zip(found, evidence, strict=True)
    ]
    return host, False


def _quality(one: Evidence) -> tuple[str, float | None]:
    """Accuracy, or what is measured instead of it, by its name; None where there is no truth."""
    if one.accuracy is not None:
        return "accuracy", one.accuracy.value
    for figure in one.metrics:
        return figure.name, figure.value.value
    return "", None


def _candidate(one: Standing) -> Candidate | None:
    build = one.seen.build
    if one.figures is None or build is None:
        return None
    key = one.seen.gate.key
    return Candidate(
        build.build_id, key.variant, one.seen.position, key.recipe, one.quality,
        build.length or 0, one.figures,
    )  # fmt: skip


def _placed(standings: Sequence[Standing], proposal: Proposal) -> tuple[Standing, ...]:
    """The ladder first, then what was cut, then what was not measured."""
    by_id = {one.seen.build.build_id: one for one in standings if one.seen.build}
    rungs = [
        replace(by_id[one.build_id], rung=f"{place} of {len(proposal.rungs)}", reason="")
        for place, one in enumerate(proposal.rungs, 1)
    ]
    cut = [replace(by_id[one.candidate.build_id], reason=one.reason) for one in proposal.cut]
    rest = [
        replace(one, reason=f"not measured: {one.reason or 'no device did yet'}")
        for one in standings
        if one.figures is None
    ]
    return (*rungs, *cut, *rest)


def _state(row: TuningRow | None, now: datetime) -> str:
    if row is None:
        return "none"
    if row.state == "RUNNING" and row.expires_at <= now:
        return "expired"
    return row.state.lower()


def _measured_on(
    standings: Sequence[Standing],
    words: Mapping[str, Sequence[Word]],
    mine: set[str],
    on_device: bool,
) -> str:
    if on_device:
        fresh = {
            w.device_id
            for said in words.values()
            for w in said
            if w.measured.ok and not w.stale and w.device_id in mine
        }
        alone = ": one device decides alone" if len(fresh) == 1 else ""
        return f"{count_of(len(fresh), 'device')}{alone}"
    hosts = {
        Evidence.from_json(one.seen.build.evidence or {}).measured_on
        for one in standings
        if one.seen.build
    }
    return f"the build host: {', '.join(sorted(hosts - {''})) or 'unknown'}"
