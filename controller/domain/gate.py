"""The gate: what a build has to show before it may be released to the devices of a profile.

Refuses silence: a figure that a recipe demands and nobody measured is a refusal with its reason.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from controller.domain.build import Evidence, GateVerdict, Precision, Recipe
from controller.domain.device import Profile
from controller.domain.interval import Interval
from controller.domain.words import ms

# Of the float file with the program it was exported from. One row may sit on an edge (a tie).
MIN_LIKENESS_PCT = 95.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a judgement: what was looked at, and whether it holds."""

    ok: bool
    text: str

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {"ok": self.ok, "text": self.text}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Finding":
        """Read :meth:`to_json`."""
        return cls(bool(value["ok"]), str(value["text"]))


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict, why in one line (every figure with its n), and all that was looked at."""

    verdict: GateVerdict
    reason: str
    findings: tuple[Finding, ...] = ()


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
            f"no dataset {wanted}: {recipe.precision} needs calibration and evaluation rows;"
            f" fleetctl admin dataset push {wanted} FILE.npz"
        )
    return None


def recipes_of(
    profile: Profile, recipes: Mapping[str, Recipe], reported: Collection[str]
) -> tuple[str, ...]:
    """The recipes to build for a profile where nobody named any.

    ``reported`` are the runtimes that at least one of its devices has: nothing is compiled that no
    device could run. Where none says so yet, the profile's first runtime counts, which every device
    of the class is expected to have.
    """
    able = frozenset(reported) & frozenset(profile.runtimes) or frozenset(profile.runtimes[:1])
    names = profile.recipes or [n for n, r in recipes.items() if r.runtime in profile.runtimes]
    return tuple(
        name
        for name in sorted(names)
        # What the profile names and cannot run is told by its gate, not left out in silence.
        if name not in recipes
        or recipes[name].runtime in able
        or recipes[name].runtime not in profile.runtimes
    )


def gate(evidence: Evidence, profile: Profile, recipe: Recipe, host_matches: bool) -> GateResult:
    """Judge one build for one profile.

    Agreement has to be proven: the lower end of its interval meets the bound. The accuracy drop
    is judged on the paired difference itself, since its interval on some hundred rows is wider
    than any useful bound; the reason says n and interval, so that nobody takes it for more.
    The latency budget binds only where the measuring host is of the profile's class.
    """
    findings = (
        *_numbers(evidence),
        *_export(evidence),
        *_accuracy(evidence, recipe),
        *_agreement(evidence, recipe),
        *_speed(evidence, recipe),
        *_memory(evidence, profile),
        *_latency(evidence, profile, host_matches),
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


def _accuracy(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    bound, delta = recipe.gate.max_accuracy_drop_pts, evidence.accuracy_delta_pts
    if bound is None:
        return []
    if delta is None:
        if evidence.agreement is not None:
            return [Finding(True, "accuracy not measured: the dataset has no labels")]
        return [Finding(False, "no dataset to measure accuracy on")]
    text = f"accuracy {_signed(delta)} against the source's, n={delta.n}"
    if delta.value < -bound:
        return [Finding(False, f"{text}, allowed −{bound:g} points")]
    return [Finding(True, text)]


def _agreement(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    bound, found = recipe.gate.min_agreement_pct, evidence.agreement
    if bound is None:
        return []
    if found is None:
        return [Finding(False, "no dataset to measure agreement on")]
    text = (
        f"agreement {found.value:.1f} % with the source"
        f" (95 % interval {found.low:.1f}–{found.high:.1f}, n={found.n})"
    )
    if found.low < bound:
        return [Finding(False, f"{text}, the lower end has to reach {bound:g} %")]
    return [Finding(True, text)]


def _speed(evidence: Evidence, recipe: Recipe) -> list[Finding]:
    if not recipe.gate.not_slower_than_fp32 or recipe.precision is Precision.FP32:
        return []
    if evidence.fp32_p50_ms is None:
        return [Finding(False, f"fp32 of {recipe.runtime} was not measured beside it")]
    pair = (
        f"p50 {ms(evidence.p50_ms)} ms, fp32 {ms(evidence.fp32_p50_ms)} ms, n={evidence.latency_n}"
    )
    if evidence.p50_ms > evidence.fp32_p50_ms:
        return [Finding(False, f"slower than fp32 of {recipe.runtime}: {pair}")]
    return [Finding(True, pair)]


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
    if not host_matches:
        text = f"latency not measured on this class (measured on {evidence.measured_on})"
        return [Finding(True, text)]
    text = f"p95 {ms(evidence.p95_ms)} ms, budget {budget:g} ms, n={evidence.latency_n}"
    return [Finding(evidence.p95_ms <= budget, text)]


def _refused(reason: str) -> GateResult:
    return GateResult(GateVerdict.REFUSED, reason, (Finding(False, reason),))


def _signed(delta: Interval) -> str:
    def one(number: float) -> str:
        text = f"{number:+.1f}".replace("-", "−")
        return "±0.0" if text in ("+0.0", "−0.0") else text

    return f"{one(delta.value)} points (95 % interval {one(delta.low)} to {one(delta.high)})"


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"
