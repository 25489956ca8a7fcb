"""The gate: what a build has to show before it may be released to the devices of a profile.

Refuses silence: a figure that a recipe demands and nobody measured is a refusal with its reason.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from controller.domain.build import Evidence, GateVerdict, Precision, Recipe
from controller.domain.device import Profile
from controller.domain.finding import Finding
from controller.domain.gate_quality import judge_quality
from controller.domain.interval import Interval
from controller.domain.words import ms

# Of the float file with the program it was exported from. One row may sit on an edge (a tie).
MIN_LIKENESS_PCT = 95.0
# A version so many times as large or as slow as the one before it is let through by a person alone.
# Below the floors nobody would notice, and a clock's noise doubles what takes microseconds.
DRIFT_TIMES = 2.0
DRIFT_LEAST_BYTES, DRIFT_LEAST_MS = 1024**2, 1.0


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict, why in one line (every figure with its n), and all that was looked at."""

    verdict: GateVerdict
    reason: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Previous:
    """What devices of the profile get of the version before, by the same variant and recipe."""

    version: str
    size_bytes: int
    p50_ms: float
    p50_interval_ms: Interval | None
    measured_on: str


def refuse_early(
    recipe: Recipe, profile: Profile, dataset: str | None, wanted: str
) -> GateResult | None:
    """A refusal that needs no compile, or None.

    ``dataset`` is the one found, ``wanted`` the name that was looked for.
    """
    if profile.recipes and recipe.name not in profile.recipes:
        return _refused(
            f"recipe {recipe.name} is not one of profile {profile.name};"
            f" apply a profile whose recipes name it"
        )
    if recipe.runtime not in profile.runtimes:
        return _refused(
            f"profile {profile.name} has no runtime {recipe.runtime};"
            f" apply a profile whose runtimes name it"
        )
    if recipe.needs_dataset and dataset is None:
        return _refused(
            f"no dataset {wanted}: {_who(recipe)} needs calibration and evaluation rows;"
            f" fleetctl admin dataset push {wanted} FILE.npz"
        )
    return None


def _who(recipe: Recipe) -> str:
    return recipe.precision if recipe.precision is Precision.INT8 else f"recipe {recipe.name}"


def recipes_of(
    profile: Profile, recipes: Mapping[str, Recipe], reported: Collection[str]
) -> tuple[str, ...]:
    """The recipes to build for a profile where nobody named any.

    ``reported`` are the runtimes that at least one of its devices has: nothing is compiled that no
    device could run. Where none says so yet, the profile's first runtime counts, which every device
    of the class is expected to have.
    """
    able = frozenset(reported) & frozenset(profile.runtimes) or frozenset(profile.runtimes[:1])
    names = profile.recipes or [
        name
        for name, one in recipes.items()
        # Pruning and training change what a model answers: they are asked for by name.
        if one.runtime in profile.runtimes and not one.passes
    ]
    return tuple(
        name
        for name in sorted(names)
        # What the profile names and cannot run is told by its gate, not left out in silence.
        if name not in recipes
        or recipes[name].runtime in able
        or recipes[name].runtime not in profile.runtimes
    )


def gate(
    evidence: Evidence,
    profile: Profile,
    recipe: Recipe,
    host_matches: bool,
    previous: Previous | None = None,
) -> GateResult:
    """Judge one build for one profile.

    A bound on accuracy or agreement has to be proven: the end of the 95 % interval meets it, never
    the figure alone, so that a few rows prove nothing. Where they do not, the reason says about how
    many would. Accuracy is judged on the paired difference row by row, whose interval is much
    narrower than that of two shares. The latency budget binds only where the measuring host is of
    the profile's class. ``previous`` is None where this is the first version, or the same file.
    """
    findings = (
        *(Finding(True, note) for note in evidence.notes),
        *_numbers(evidence),
        *_export(evidence),
        *judge_quality(evidence, recipe),
        *_speed(evidence, recipe),
        *_memory(evidence, profile),
        *_latency(evidence, profile, host_matches),
        *_drift(evidence, previous),
    )
    refusals = [one.text for one in findings if not one.ok]
    if refusals:
        return GateResult(GateVerdict.REFUSED, "; ".join(refusals), findings)
    return GateResult(GateVerdict.PASSED, "; ".join(one.text for one in findings), findings)


def _numbers(evidence: Evidence) -> list[Finding]:
    """No recipe may switch this off: a device could make nothing of such answers."""
    rows, wrong = evidence.rows_checked, evidence.rows_not_finite
    if not rows or wrong is None:
        return [Finding(False, "no row's outputs were looked at: build it again")]
    of = f"{rows:,} generated rows" if evidence.rows_generated else f"{rows:,} rows"
    if wrong:
        return [Finding(False, f"{wrong:,} of {of} gave NaN or infinity")]
    return [Finding(True, f"no NaN or infinity in the answers to {of}")]


def _export(evidence: Evidence) -> list[Finding]:
    rows, wrong = evidence.rows_compared, evidence.rows_differing
    if not rows or wrong is None:
        return []  # the source is the float file itself
    like_pct = 100 * (rows - wrong) / rows
    if like_pct < MIN_LIKENESS_PCT:
        return [
            Finding(
                False,
                f"the export is wrong: {wrong:,} of {rows:,} rows differ from the source's"
                f" outputs beyond rounding, at least {MIN_LIKENESS_PCT:g} % have to agree",
            )
        ]
    return [Finding(True, f"the export answers as its source on {rows - wrong:,} of {rows:,} rows")]


def _speed(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    if not recipe.gate.not_slower_than_fp32 or recipe.is_plain:
        return []
    if evidence.stand_in:
        return [Finding(True, f"speed not measured: {_stand_in(evidence, recipe.runtime)}")]
    if evidence.fp32_p50_ms is None:
        return [Finding(False, f"fp32 of {recipe.runtime} was not measured beside it")]
    pair = (
        f"p50 {ms(evidence.p50_ms)} ms, fp32 {ms(evidence.fp32_p50_ms)} ms, n={evidence.latency_n}"
    )
    if evidence.p50_ms > evidence.fp32_p50_ms:
        return [Finding(False, f"slower than fp32 of {recipe.runtime}: {pair}")]
    return [Finding(True, pair)]


def _stand_in(evidence: Evidence, runtime: str) -> str:
    return (
        f"{evidence.stand_in} answered for {runtime}, which cannot run on the worker;"
        " `build tune` measures it on a device"
    )


def _memory(evidence: Evidence, profile: Profile) -> list[Finding]:
    budget = profile.memory_budget_bytes
    if budget is None:
        return []
    needs = max(evidence.size_bytes, evidence.peak_rss_bytes or 0)
    if needs > budget:
        return [Finding(False, f"needs {_mib(needs)}, budget of {profile.name} {_mib(budget)}")]
    return [Finding(True, f"needs {_mib(needs)} of {_mib(budget)}")]


def _latency(evidence: Evidence, profile: Profile, host_matches: bool) -> list[Finding]:
    budget = profile.latency_budget_ms
    if budget is None:
        return []
    if evidence.stand_in:
        return [Finding(True, f"latency not measured: {evidence.stand_in} answered here")]
    if not host_matches:
        text = f"latency not measured on this class (measured on {evidence.measured_on})"
        return [Finding(True, text)]
    text = f"p95 {ms(evidence.p95_ms)} ms, budget {budget:g} ms, n={evidence.latency_n}"
    return [Finding(evidence.p95_ms <= budget, text)]


def _drift(evidence: Evidence, previous: Previous | None) -> list[Finding]:
    """Beside the version before: a person answers for what is twice as large or as slow."""
    if previous is None:
        return []
    size, before = evidence.size_bytes, previous.size_bytes
    grown = size > DRIFT_TIMES * before and size - before > DRIFT_LEAST_BYTES
    found = [_drifted(not grown, "size", _mib(size), _mib(before), previous.version)]
    if evidence.measured_on != previous.measured_on or evidence.stand_in:
        return found  # two hosts' latencies say nothing of two versions
    # Slow only where both intervals say so, and never by a noise of microseconds.
    quick, was = evidence.p50_interval_ms, previous.p50_interval_ms
    low = quick.low if quick is not None else evidence.p50_ms
    high = was.high if was is not None else previous.p50_ms
    slowed = low > DRIFT_TIMES * high and low - high > DRIFT_LEAST_MS
    now_ms, then_ms = f"{ms(evidence.p50_ms)} ms", f"{ms(previous.p50_ms)} ms"
    return [*found, _drifted(not slowed, "p50", now_ms, then_ms, previous.version)]


def _drifted(ok: bool, what: str, now: str, then: str, version: str) -> Finding:
    if ok:
        return Finding(True, f"{what} {now}, of {version} {then}")
    return Finding(
        False,
        f"{what} {now} is more than {DRIFT_TIMES:g} times that of {version}, {then}:"
        " somebody has to override it by name and reason",
    )


def _refused(reason: str) -> GateResult:
    return GateResult(GateVerdict.REFUSED, reason, (Finding(False, reason),))


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"
