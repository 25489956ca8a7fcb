"""Measuring builds on devices of a profile, and choosing its ladder by that.

The gate never takes a device's word: what it let through is all that is measured, and what devices
say orders the ladder of it. A person decides whether the proposal becomes the ladder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from controller.domain.device import Profile
from controller.domain.selection import in_order, matches
from controller.domain.words import count_of
from controller.errors import InvalidError, NotFoundError, RefusedError
from controller.services.context import Ctx, Deps
from controller.services.desired import Member, load_members
from controller.services.gates import load_profiles
from controller.services.models import require_version
from controller.services.selections import nobody_matches
from controller.services.subjects import read_selector
from controller.services.suggestions import suggest_names
from controller.services.tuning_orders import ring
from controller.services.tuning_views import Names, TuningView, candidates, read_tuning
from controller.services.tuning_words import words_of
from controller.store import events, tunings
from controller.store.builds import SeenRow
from controller.store.session import Connection
from controller.store.tunings import ChoiceRow, TuningDeviceRow, TuningRow

DEVICES, DEVICES_MOST = 3, 50
WARMUP_S, SOAK_S, MEASURE_S = 5.0, 20.0, 30.0
EXPIRES_S, SECONDS_MOST = 3600.0, 86400.0
# Where a profile names no throttling of its own.
HEAT_LIMIT_C = 85.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure, and how long. Seconds; 0 means the default."""

    model: str
    version: str
    profile: str
    selector: str = ""
    devices: int = 0
    soak_s: float = 0.0
    measure_s: float = 0.0
    again: bool = False
    expires_s: float = 0.0


def start_tuning(deps: Deps, ctx: Ctx, wish: Wish) -> TuningView:
    """Ask idle devices to measure what they have not; one that runs already is returned.

    Without a device of the profile nothing is asked, and the view says on what it stands.
    """
    for what, value in (
        ("soak", wish.soak_s),
        ("measure", wish.measure_s),
        ("expires", wish.expires_s),
    ):
        if not 0 <= value <= SECONDS_MOST:
            raise InvalidError(f"{what} {value:g} s is not between 0 and {SECONDS_MOST:g}")
    if not 0 <= wish.devices <= DEVICES_MOST:
        raise InvalidError(f"{wish.devices} devices: at most {DEVICES_MOST} measure at a time")
    with deps.store.write() as conn:
        names, profile = _names(conn, ctx, wish.model, wish.version, wish.profile)
        running = tunings.newest_tuning(conn, ctx.project, *names)
        if running is not None and running.state == "RUNNING":
            if running.expires_at > ctx.now:
                return read_tuning(conn, ctx, names, profile, ["it runs already"])
            tunings.end_tuning(conn, running.tuning_id, "EXPIRED", ctx.now)
        usable = candidates(conn, ctx.project, names)
        members, notes = _pick(conn, ctx, wish)
        shares = _shares(conn, ctx, usable, members, wish.again)
        if members and not shares:
            notes = (*notes, "these devices measured all of it already; --again measures anew")
        if shares:
            _ask(conn, ctx, wish, names, profile, usable, shares)
        view = read_tuning(conn, ctx, names, profile, notes)
    deps.wake()
    return view


def get_tuning(deps: Deps, ctx: Ctx, model: str, version: str, profile: str) -> TuningView:
    """How it stands. NotFoundError for names that do not exist."""
    with deps.store.read() as conn:
        names, found = _names(conn, ctx, model, version, profile)
        return read_tuning(conn, ctx, names, found)


def cancel_tuning(deps: Deps, ctx: Ctx, model: str, version: str, profile: str) -> TuningView:
    """End what runs: devices stop within seconds of hearing it. RefusedError where nothing runs."""
    with deps.store.write() as conn:
        names, found = _names(conn, ctx, model, version, profile)
        row = tunings.newest_tuning(conn, ctx.project, *names)
        if row is None or row.state != "RUNNING":
            raise RefusedError(f"nothing measures {model}:{version} for {profile}")
        tunings.end_tuning(conn, row.tuning_id, "CANCELLED", ctx.now)
        asked = [one.device_id for one in tunings.shares_of(conn, row.tuning_id) if one.build_ids]
        ring(conn, ctx, asked)
        _tell(conn, ctx, "tuning_cancelled", names, tuning=row.tuning_id)
        view = read_tuning(conn, ctx, names, found)
    deps.wake()
    return view


def apply_ladder(
    deps: Deps,
    ctx: Ctx,
    *,
    model: str,
    version: str,
    profile: str,
    build_ids: Sequence[str] = (),
    reset: bool = False,
) -> TuningView:
    """Make the proposal the ladder of the profile, for rollouts from now on; ``reset`` undoes that.

    ``build_ids`` are those that the person saw. RefusedError where the proposal is another by now,
    or empty.
    """
    with deps.store.write() as conn:
        names, found = _names(conn, ctx, model, version, profile)
        view = read_tuning(conn, ctx, names, found)
        if reset:
            tunings.put_choice(conn, ctx.project, names, None)
            _tell(conn, ctx, "ladder_chosen", names, ladder="the fastest of each variant")
            return read_tuning(conn, ctx, names, found)
        if not view.proposed:
            raise RefusedError(
                f"no measured build of {model}:{version} keeps to the budget of {profile}",
                *(
                    f"{one.seen.gate.key.variant} {one.seen.gate.key.recipe}: {one.reason}"
                    for one in view.standings
                ),
            )
        if build_ids and tuple(build_ids) != view.proposed:
            raise RefusedError(
                "the measurements give another ladder by now; nothing was changed",
                f"look again: fleetctl build tune {model}:{version} --profile {profile}",
            )
        choice = ChoiceRow(view.proposed, view.measured_on, ctx.now, ctx.actor)
        tunings.put_choice(conn, ctx.project, names, choice)
        rungs = [one.seen.gate.key for one in view.standings if one.rung]
        told = " > ".join(f"{key.variant} {key.recipe}" for key in rungs)
        _tell(conn, ctx, "ladder_chosen", names, ladder=told, measured_on=view.measured_on)
        return read_tuning(conn, ctx, names, found)


def _names(
    conn: Connection, ctx: Ctx, model: str, version: str, profile: str
) -> tuple[Names, Profile]:
    row = require_version(conn, ctx.project, model, version)
    profiles = load_profiles(conn, ctx.project)
    if profile not in profiles:
        raise NotFoundError(
            f"profile {profile or '–'} does not exist", *suggest_names(profile, sorted(profiles))
        )
    return (row.model, row.version, profile), profiles[profile]


def _pick(conn: Connection, ctx: Ctx, wish: Wish) -> tuple[list[Member], tuple[str, ...]]:
    """Devices of the profile that the selector picks, those online first, at most so many."""
    selector = read_selector(conn, ctx.project, wish.selector)
    members = load_members(conn, ctx.project, None, selector.models)
    picked = [one for one in members if not wish.selector or matches(selector, one.subject)]
    fit = {one.subject.device_id: one for one in picked if one.subject.profile == wish.profile}
    if fit:
        order = in_order(wish.model + wish.version, fit)
        first = sorted(order, key=lambda name: not fit[name].online)
        return [fit[name] for name in first[: wish.devices or DEVICES]], ()
    lines: tuple[str, ...] = ()
    if wish.selector and not picked and members:
        found = nobody_matches(selector, [one.subject for one in members], wish.selector)
        lines = (found.message, *found.lines)
    return [], (*lines, f"no device of {wish.profile} is there to measure: nothing was asked")


def _shares(
    conn: Connection, ctx: Ctx, usable: Sequence[SeenRow], members: Sequence[Member], again: bool
) -> dict[str, tuple[str, ...]]:
    """What each device has still to measure, of what it can run."""
    builds = [seen.build for seen in usable if seen.build is not None]
    words = words_of(conn, ctx.project, [one.build_id for one in builds])
    known = {
        (build_id, word.device_id)
        for build_id, said in words.items()
        for word in said
        if word.measured.ok and not word.stale
    }
    found = {
        one.subject.device_id: tuple(
            build.build_id
            for build in builds
            if build.runtime in one.runtimes
            and (again or (build.build_id, one.subject.device_id) not in known)
        )
        for one in members
    }
    return {name: ids for name, ids in found.items() if ids}


def _ask(
    conn: Connection,
    ctx: Ctx,
    wish: Wish,
    names: Names,
    profile: Profile,
    usable: Sequence[SeenRow],
    shares: dict[str, tuple[str, ...]],
) -> None:
    row = TuningRow(
        tuning_id=tunings.new_tuning_id(conn, partial(ctx.ids.new, "m")),
        model=names[0],
        version=names[1],
        profile=names[2],
        selector=wish.selector,
        state="RUNNING",
        options={
            "warmup_s": WARMUP_S if not wish.soak_s else min(WARMUP_S, wish.soak_s),
            "soak_s": wish.soak_s or SOAK_S,
            "measure_s": wish.measure_s or MEASURE_S,
            "heat_limit_c": profile.throttle_c or HEAT_LIMIT_C,
        },
        build_ids=tuple(seen.build.build_id for seen in usable if seen.build),
        created_at=ctx.now,
        created_by=ctx.actor,
        expires_at=ctx.now + timedelta(seconds=wish.expires_s or EXPIRES_S),
    )
    devices = [
        TuningDeviceRow(row.tuning_id, name, ids, len(ids), "") for name, ids in shares.items()
    ]
    tunings.add_tuning(conn, ctx.project, row, devices)
    ring(conn, ctx, shares)
    _tell(
        conn, ctx, "tuning_started", names,
        tuning=row.tuning_id, devices=" ".join(shares), builds=count_of(len(usable), "build"),
    )  # fmt: skip


def _tell(conn: Connection, ctx: Ctx, kind: str, names: Names, **details: str) -> None:
    model, version, profile = names
    events.append(
        conn,
        ctx.project,
        ctx.now,
        kind,
        ctx.actor,
        model=model,
        version=version,
        details={"profile": profile, **details},
    )
