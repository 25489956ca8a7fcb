"""Policies and ladders: when a device steps or returns, and over which rungs.

Refuses a ladder without a local rung: a device has to be able to serve by itself.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from controller.domain.build import PassedBuild
from controller.domain.evidence import OnInconclusive, Worse
from controller.domain.hosting import Hosting
from controller.domain.selection import EVERYTHING, Selector, Subject, matches
from controller.domain.selector import parse_filter
from controller.domain.spec import Spec
from controller.errors import InvalidError

OFF = "off"
# What devices can use; a slip is told here, not by a rollout that fails on every one of them.
_NAMED = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}=(?:[A-Za-z0-9][A-Za-z0-9._+-]{0,127})?"
_ENDPOINT = re.compile(
    rf"grpc://(?:[^\s/?#:\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{{1,5}}(?:\?{_NAMED}(?:&{_NAMED})*)?"
)

# Defaults of the thresholds, in the units of the manifest.
_LADDER_DEFAULTS: Mapping[str, float] = {
    "p95_budget_ms": 100.0,
    "p95_recover_pct": 70.0,
    "queue_age_ms": 500.0,
    "temperature_down_c": 80.0,
    "temperature_up_c": 74.0,
    "memory_down_pct": 92.0,
    "memory_up_pct": 85.0,
    "cpu_down_pct": 95.0,
    "cpu_up_pct": 80.0,
    "link_down_ms": 150.0,
    "link_up_ms": 80.0,
    "link_loss_pct": 20.0,
    "dwell_down_s": 3.0,
    "dwell_up_s": 30.0,
    "window_s": 10.0,
}
_HYSTERESIS = (
    ("temperature_up_c", "temperature_down_c"),
    ("memory_up_pct", "memory_down_pct"),
    ("cpu_up_pct", "cpu_down_pct"),
    ("link_up_ms", "link_down_ms"),
)
_MAY_BE_ZERO = ("temperature_down_c", "temperature_up_c", "dwell_down_s", "dwell_up_s")


class RungKind(StrEnum):
    """Where a rung infers."""

    LOCAL = "local"
    REMOTE = "remote"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class RungWish:
    """One rung as a policy names it: a variant, a remote endpoint, or off."""

    rung: str
    kind: RungKind
    endpoint: str = ""
    first: bool = False


@dataclass(frozen=True, slots=True)
class GateLimits:
    """By what a wave is stopped beside the absolute limits; None: by nothing."""

    slower_pct: float | None = None  # than before, on the same devices and beside untouched ones
    stepped_down_pts: float | None = None  # more answers below the heaviest rung, points
    worse: Worse = Worse.ROLL_BACK
    on_inconclusive: OnInconclusive = OnInconclusive.PAUSE


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the agent decides by for one model."""

    name: str
    model: str = "*"
    selector: Selector = EVERYTHING
    priority: int = 0
    slow_threshold_ms: float = 100.0
    slow_count: int = 5
    idle_gap_s: float = 2.0
    min_inferences: int = 200
    min_s: float = 60.0
    max_s: float = 1800.0
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict(_LADDER_DEFAULTS))
    rungs: tuple[RungWish, ...] = ()  # empty: all variants, heavy to light
    gate: GateLimits = GateLimits()

    def to_manifest(self) -> dict[str, object]:
        """The ``policy`` of a manifest's model entry."""
        return {
            "name": self.name,
            "slow_threshold_ms": self.slow_threshold_ms,
            "slow_count": self.slow_count,
            "idle_gap_s": self.idle_gap_s,
            "probation": {
                "min_inferences": self.min_inferences,
                "min_s": self.min_s,
                "max_s": self.max_s,
            },
            "ladder": dict(self.thresholds),
        }


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a device's ladder; ``build`` for local rungs, ``endpoint`` for remote ones."""

    rung: str
    kind: RungKind
    build: PassedBuild | None = None
    endpoint: str = ""

    def to_manifest(self, profile: str, hosting: Hosting | None = None) -> dict[str, object]:
        """The entry of a manifest's ``ladder``."""
        build = self.build
        options = hosting.of(build.runtime) if build and hosting else {}
        custom = {"profile": profile, "build": build.build_id if build else ""}
        return {
            "rung": self.rung,
            "kind": self.kind.value,
            "variant": build.variant if build else None,
            "runtime": build.runtime if build else None,
            "recipe": build.recipe if build else None,
            "endpoint": self.endpoint or None,
            "memory_bytes": build.peak_rss_bytes if build else None,
            "target": None
            if build is None
            else {
                "digest": build.digest,
                "length": build.length,
                "media_type": build.media_type,
                "custom": {**custom, "options": options} if options else custom,
                "sources": [],
            },
        }


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs of a device, or why it has none. ``missing``: wanted rungs that no build fills."""

    rungs: tuple[Rung, ...]
    reason: str = ""
    missing: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """What all its files weigh together, each digest once."""
        files = {r.build.digest: r.build.length for r in self.rungs if r.build is not None}
        return sum(files.values())


def parse_policy(name: str, spec: Mapping[str, object]) -> Policy:
    """The ``spec`` of ``kind: Policy``; InvalidError names the key that is wrong."""
    top = Spec(spec, f"Policy {name}: spec").only(
        "model", "selector", "priority", "slow_threshold_ms", "slow_count", "idle_gap_s",
        "probation", "ladder", "rungs", "gate",
    )  # fmt: skip
    proving = top.sub("probation").only("min_inferences", "min_s", "max_s")
    policy = Policy(
        name=name,
        model=top.text("model", "*"),
        selector=parse_filter(top.text("selector", "")),
        priority=top.whole("priority", 0),
        slow_threshold_ms=_positive(top, "slow_threshold_ms", 100.0),
        slow_count=top.whole("slow_count", 5, least=1),
        idle_gap_s=top.number("idle_gap_s", 2.0),
        min_inferences=proving.whole("min_inferences", 200, least=1),
        min_s=proving.number("min_s", 60.0),
        max_s=proving.number("max_s", 1800.0),
        thresholds=_thresholds(top.sub("ladder")),
        rungs=_wishes(spec.get("rungs"), top.where),
        gate=_gate(top.sub("gate")),
    )
    if policy.max_s < policy.min_s:
        raise InvalidError(
            f"{proving.where}: max_s {policy.max_s:g} is below min_s {policy.min_s:g}"
        )
    return policy


def pick_policy(policies: Iterable[Policy], model: str, subject: Subject) -> Policy:
    """The policy of a model on a device.

    The highest priority among those whose model and selector match; one that names the model beats
    ``*``, then the first by name. Where none matches, the built-in defaults named ``default``.
    """
    fitting = [
        policy
        for policy in policies
        if policy.model in (model, "*") and matches(policy.selector, subject)
    ]
    if not fitting:
        return Policy("default")
    return min(fitting, key=lambda p: (p.model == "*", -p.priority, p.name))


def compose_ladder(
    variants: Sequence[str],
    passed: Iterable[PassedBuild],
    profile: str,
    policy: Policy,
    runtimes: Iterable[str] | None = None,
    chosen: Sequence[str] = (),
) -> Ladder:
    """The ladder of a device of ``profile``: the builds ``chosen`` for it, heavy to light.

    Without any, or where a policy wants a variant of which none is chosen or the device has the
    runtime of none: per variant its fastest passed build.

    ``variants`` heavy to light; ``runtimes`` are those the device reports (None: not asked). A
    rung that the policy wants (without one: every variant) and no build fills is ``missing``: a
    device without its light rung has nothing to step down to, one without its heavy rung is worse
    than its model. What goes out so, a person decides. Names of other models' variants are no wish.
    """
    passed = list(passed)
    fastest = fastest_builds(passed, runtimes)
    picked = chosen_builds(passed, runtimes, chosen)
    wishes = policy.rungs or _own_wishes(variants, passed, chosen)
    rungs: list[Rung] = []
    missing: list[str] = []
    for wish in sorted(wishes, key=lambda w: not w.first):
        if wish.kind is not RungKind.LOCAL:
            rungs.append(Rung(wish.rung, wish.kind, endpoint=wish.endpoint))
        elif wish.rung in picked:
            rungs += _rungs_of(picked[wish.rung])
        elif wish.rung in fastest:
            rungs.append(Rung(wish.rung, RungKind.LOCAL, fastest[wish.rung]))
        elif wish.rung in variants:
            missing.append(wish.rung)
    if not any(rung.kind is RungKind.LOCAL for rung in rungs):
        return Ladder((), f"no passed build for profile {profile}", tuple(missing))
    if not policy.rungs and picked:
        place = {build_id: number for number, build_id in enumerate(chosen)}
        rungs.sort(key=lambda rung: place.get(rung.build.build_id if rung.build else "", -1))
    return Ladder(tuple(rungs), "", tuple(missing))


def chosen_builds(
    passed: Iterable[PassedBuild], runtimes: Iterable[str] | None, chosen: Sequence[str]
) -> dict[str, list[PassedBuild]]:
    """By variant, in their order, the builds chosen for a ladder that a device can run.

    One that was chosen and may not be released any more is none of them.
    """
    able = None if runtimes is None else frozenset(runtimes)
    known = {one.build_id: one for one in passed}
    found: dict[str, list[PassedBuild]] = {}
    for build_id in chosen:
        build = known.get(build_id)
        if build is not None and (able is None or build.runtime in able):
            found.setdefault(build.variant, []).append(build)
    return found


def _own_wishes(
    variants: Sequence[str], passed: Sequence[PassedBuild], chosen: Sequence[str]
) -> tuple[RungWish, ...]:
    """All variants; of a chosen ladder its own, for the others were cut with their reason."""
    mine = {one.variant for one in passed if one.build_id in set(chosen)}
    return tuple(
        RungWish(variant, RungKind.LOCAL) for variant in variants if not mine or variant in mine
    )


def _rungs_of(builds: Sequence[PassedBuild]) -> list[Rung]:
    """A variant's first build has its name; further ones name their recipe too."""
    return [
        Rung(one.variant if not place else f"{one.variant}-{one.recipe}", RungKind.LOCAL, one)
        for place, one in enumerate(builds)
    ]


def fastest_builds(
    passed: Iterable[PassedBuild], runtimes: Iterable[str] | None = None
) -> dict[str, PassedBuild]:
    """The build of each variant that a device gets: among equals the smaller one.

    ``runtimes`` are those the device reports (None: not asked).
    """
    able = None if runtimes is None else frozenset(runtimes)
    fastest: dict[str, PassedBuild] = {}
    for build in passed:
        if able is not None and build.runtime not in able:
            continue
        best = fastest.get(build.variant)
        if best is None or _speed(build) < _speed(best):
            fastest[build.variant] = build
    return fastest


def _speed(build: PassedBuild) -> tuple[float, int, str]:
    return (float("inf") if build.p50_ms is None else build.p50_ms, build.length, build.build_id)


def _positive(spec: Spec, key: str, default: float) -> float:
    value = spec.number(key, default)
    if value == 0:
        raise InvalidError(f"{spec.where}.{key} is 0, it has to be above")
    return value


def _thresholds(spec: Spec) -> dict[str, float]:
    spec.only(*_LADDER_DEFAULTS)
    found = {
        key: spec.number(key, default) if key in _MAY_BE_ZERO else _positive(spec, key, default)
        for key, default in _LADDER_DEFAULTS.items()
    }
    for up, down in _HYSTERESIS:
        if found[up] > found[down]:
            raise InvalidError(
                f"{spec.where}: {up} {found[up]:g} is above {down} {found[down]:g}",
                "a device would step up where it has to step down",
            )
    if found["p95_recover_pct"] > 100:
        raise InvalidError(f"{spec.where}.p95_recover_pct is above 100")
    return found


def _gate(spec: Spec) -> GateLimits:
    spec.only("slower_pct", "stepped_down_pts", "worse", "on_inconclusive")
    worse = spec.text("worse", Worse.ROLL_BACK.value)
    if worse not in set(Worse):
        raise InvalidError(f"{spec.where}.worse is {worse!r}", f"known are {', '.join(Worse)}")
    unsure = spec.text("on_inconclusive", OnInconclusive.PAUSE.value)
    if unsure not in set(OnInconclusive):
        known = ", ".join(OnInconclusive)
        raise InvalidError(f"{spec.where}.on_inconclusive is {unsure!r}", f"known are {known}")
    return GateLimits(
        spec.optional("slower_pct"),
        spec.optional("stepped_down_pts"),
        Worse(worse),
        OnInconclusive(unsure),
    )


def _wishes(value: object, where: str) -> tuple[RungWish, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidError(f"{where}.rungs is not a list")
    wishes = tuple(_wish(item, f"{where}.rungs[{i}]") for i, item in enumerate(value))
    if len({wish.rung for wish in wishes}) != len(wishes):
        raise InvalidError(f"{where}.rungs names a rung twice")
    if not any(wish.kind is RungKind.LOCAL for wish in wishes):
        raise InvalidError(
            f"{where}.rungs has no local rung", "a device has to be able to serve by itself"
        )
    if any(wish.kind is RungKind.OFF for wish in wishes[:-1]):
        raise InvalidError(f"{where}.rungs: off can only be the last")
    return wishes


def _is_endpoint(text: str) -> bool:
    named = [pair.partition("=")[0] for pair in text.partition("?")[2].split("&")]
    return bool(_ENDPOINT.fullmatch(text)) and len(set(named)) == len(named)


def _wish(item: object, where: str) -> RungWish:
    if not isinstance(item, Mapping):
        raise InvalidError(f"{where} is not a mapping")
    spec = Spec(item, where).only("rung", "endpoint", "position")
    rung, endpoint = spec.text("rung"), spec.text("endpoint", "")
    position = spec.text("position", "as listed")
    if position not in ("as listed", "first"):
        raise InvalidError(f"{where}.position {position!r} is unknown", "known is first")
    if rung == OFF:
        if endpoint or position == "first":
            raise InvalidError(f"{where}: off has no endpoint and no position")
        return RungWish(OFF, RungKind.OFF)
    if endpoint and not _is_endpoint(endpoint):
        raise InvalidError(
            f"{where}.endpoint {endpoint!r} is no grpc://HOST:PORT",
            "a server that names versions otherwise: grpc://HOST:PORT?VERSION=NAME_THERE",
        )
    kind = RungKind.REMOTE if endpoint else RungKind.LOCAL
    return RungWish(rung, kind, endpoint, position == "first")
