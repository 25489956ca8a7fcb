"""Bounds that hold however often one looks: for a mean in information time, and for a share.

A wave is judged every few seconds, and a test made for one look would stop a good version sooner or
later. The bounds here are of nonnegative supermartingales, so by Ville's inequality (1939) the
chance that one is ever crossed is at most alpha, at whatever moment somebody looks or stops.

- Mean: the normal mixture of Robbins (1970) in the form of Howard, Ramdas, McAuliffe and Sekhon,
  "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of Statistics, 2021),
  section 3.2. The score of an estimate is estimate times information (1 / variance). Where the
  variance is itself estimated the guarantee is asymptotic (Waudby-Smith and others, "Time-uniform
  central limit theory and asymptotic confidence sequences", Annals of Statistics, 2024).
- Share: the beta mixture of Robbins (1970) over the binomial likelihood, exact for any n.

Refuses to read clocks and samples: it is given sums. Shares are 0-1.
"""

import math

TUNED_AT = 2000.0  # the information at which the normal bounds are tightest: a deviation of 0.022
_STEPS = 60  # of bisections: far below any figure that is shown


def best_rho(alpha: float, one_sided: bool) -> float:
    """The mixture's precision that makes its bound tight at `TUNED_AT` (Howard et al., 3.5)."""
    log = math.log(1 / (2 * alpha if one_sided else alpha))
    return TUNED_AT / (2 * log + math.log(1 + 2 * log))


def log_evidence(score: float, information: float, alpha: float) -> float:
    """ln of the evidence against "the mean is at most 0"; at ln(1 / alpha) it is disproved.

    The one-sided normal mixture: an e-process for every mean of at most 0.
    """
    rho = best_rho(alpha, one_sided=True)
    spread = information + rho
    z = score / math.sqrt(spread)
    below = 0.5 * math.erfc(-z / math.sqrt(2))
    if below <= 0.0:  # so far on the good side that no float holds it
        return -math.inf
    return 0.5 * math.log(4 * rho / spread) + z * z / 2 + math.log(below)


def mean_bound(information: float, alpha: float) -> float:
    """The score above which "the mean is at most 0" is disproved at `alpha`."""
    wanted = math.log(1 / alpha)
    low, high = 0.0, math.sqrt(information + best_rho(alpha, one_sided=True))
    while log_evidence(high, information, alpha) < wanted:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if log_evidence(middle, information, alpha) < wanted:
            low = middle
        else:
            high = middle
    return high


def mean_half_width(information: float, alpha: float) -> float:
    """Half the width of the two-sided confidence sequence around an estimate."""
    rho = best_rho(alpha, one_sided=False)
    spread = information + rho
    return math.sqrt(spread * (math.log(spread / rho) + 2 * math.log(1 / alpha))) / information


def share_bounds(successes: int, n: int, alpha: float) -> tuple[float, float]:
    """The confidence sequence of a share, 0-1. ValueError on impossible counts."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    if n == 0:
        return 0.0, 1.0
    value = successes / n
    low = _crossing(successes, n, alpha, 0.0, value) if successes else 0.0
    high = _crossing(successes, n, alpha, 1.0, value) if successes < n else 1.0
    return low, high


def _crossing(successes: int, n: int, alpha: float, out: float, inside: float) -> float:
    """Where the evidence against a share falls below 1 / alpha, between `out` and `inside`."""
    failures = n - successes
    mixed = (
        math.lgamma(successes + 0.5)
        + math.lgamma(failures + 0.5)
        - math.lgamma(n + 1.0)
        - math.log(math.pi)
    )
    wanted = math.log(1 / alpha)
    for _ in range(_STEPS):
        middle = (out + inside) / 2
        likelihood = 0.0
        if successes:
            likelihood += successes * math.log(middle)
        if failures:
            likelihood += failures * math.log1p(-middle)
        if mixed - likelihood >= wanted:
            out = middle
        else:
            inside = middle
    return out
