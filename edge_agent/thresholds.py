"""Healthy scores in, a limit with its pedigree out.

    method       limit                                                     rests on
    gamma        quantile 1 - p of a fitted gamma distribution             all scores (S4)
    pot          peaks over threshold: generalised Pareto above the 90 %   the largest tenth
    percentile   empirical quantile 1 - p                                  the largest few
    mad          median + k * 1.4826 * MAD, k the normal quantile of 1 - p the bulk only

p is the promised share of healthy windows above the limit. All scores are at least 0, higher is less
normal; a limit is always above 0, so that ratio = score / limit means something.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edge_agent.signals import F64

# scipy.special is imported where a limit is fitted: 19 MiB that an agent with its bundles' limits does without.

METHODS = ("gamma", "pot", "percentile", "mad")

#: 95 % point of sqrt(n) * KS distance when both gamma parameters were estimated from the same scores:
#: 0.87 to 0.97 over shapes 0.5 to 50 and n 30 to 3000 (tests/test_thresholds.py draws some of it again).
KS_CRITICAL = 0.95
#: Standard deviation over mean up to which scores are one number and its rounding (float32 rounds at 6e-8): no limit comes of it.
ROUNDING = 1e-8
#: ln(mean) - mean(ln) of scores, from which on Newton's differences still have digits; below it his starting value is right to 1e-8.
NARROW = 1e-4
#: Smallest number of excesses a generalised Pareto fit is asked to carry.
POT_MIN_EXCESSES = 10


@dataclass(frozen=True)
class Threshold:
    """A limit on the score and where it comes from.

    false_alarm_rate : promised share of healthy windows above `value`; None for a hand-set value
    n                : number of healthy scores it rests on
    params           : the fitted parameters by name, and the goodness of fit (`ks`, `ks_critical`)
    warning          : one sentence where the promise is doubtful, else None
    """

    value: float
    method: str
    false_alarm_rate: float | None = None
    n: int = 0
    params: dict[str, float] = field(default_factory=dict)
    warning: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"threshold is {self.value!r}; expected a finite number above 0")


def fit(scores: F64, method: str, false_alarm_rate: float) -> Threshold:
    """Fit a limit to healthy scores (n,).

    Raises ValueError, with the figures, when the scores cannot carry the method: fewer than 10, not
    finite, negative, all equal, or (pot) too few excesses.
    """
    scores = np.asarray(scores, np.float64).ravel()
    if method not in METHODS:
        raise ValueError(f"threshold method is {method!r}; expected one of {', '.join(METHODS)}")
    if not 1e-6 <= false_alarm_rate <= 0.5:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate!r}; expected 1e-6 to 0.5 a window")
    if scores.size < 10:
        raise ValueError(f"{scores.size} healthy scores; expected at least 10: calibrate on more windows")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} healthy scores are not finite"
        )
    if scores.min() < 0:
        raise ValueError(f"the smallest healthy score is {scores.min():g}; scores must be at least 0")
    if np.ptp(scores) <= 1e-9 * scores.max():
        raise ValueError(
            f"all {scores.size} healthy scores equal {scores[0]:g}: no limit can be fitted; "
            "check that the calibration recordings differ and the sensor is not stuck"
        )
    threshold = _FITS[method](scores, false_alarm_rate)
    return replace(threshold, n=int(scores.size))


def gamma_parameters(scores: F64) -> tuple[float, float]:
    """Maximum-likelihood shape and scale of a gamma distribution, location 0.

    Newton iteration on ln(k) - psi(k) = ln(mean) - mean(ln) from Minka's starting value
    (Estimating a Gamma distribution, 2002). Zeros count as 1e-12 of the mean: their logarithm
    would be infinite. Exponential scores of mean 2 give about (1, 2). Raises ValueError where the
    scores differ by `ROUNDING` of their mean or less.
    """
    from scipy.special import polygamma, psi

    mean = float(scores.mean())
    # The mean of d is 0; with it each term is at least 0, and scores that differ by a millionth keep their digits.
    d = np.maximum(scores / mean, 1e-12) - 1.0
    s = float((d - np.log1p(d)).mean())
    if not s > 0.5 * ROUNDING**2:  # the square of the relative spread, halved, as long as it is small
        raise ValueError(
            f"the {scores.size} healthy scores differ from {mean:g} by {float(scores.std()) / mean:.1g} of it: no gamma "
            "distribution can be fitted; check that the calibration recordings differ and the sensor is not stuck"
        )
    shape = (3.0 - s + math.sqrt((s - 3.0) ** 2 + 24.0 * s)) / (12.0 * s)
    for _ in range(50 if s > NARROW else 0):
        step = (math.log(shape) - float(psi(shape)) - s) / (1.0 / shape - float(polygamma(1, shape)))
        shape = max(shape - step, 0.1 * shape)
        if abs(step) <= 1e-12 * shape:
            break
    return shape, mean / shape


def _gamma(scores: F64, p: float) -> Threshold:
    from scipy.special import gammainc, gammainccinv

    shape, scale = gamma_parameters(scores)
    value = scale * float(gammainccinv(shape, p))
    ordered = np.sort(scores)
    cdf = gammainc(shape, ordered / scale)
    n = scores.size
    grid = np.arange(n + 1) / n
    ks = float(max((grid[1:] - cdf).max(), (cdf - grid[:-1]).max()))
    critical = KS_CRITICAL / math.sqrt(n)
    # The bulk decides the KS distance, the tail decides the alarms: compare both. At a level where ten
    # exceedances are expected, more than 20 have a probability of 0.2 % under the fit.
    p_tail = max(p, 10.0 / n)
    over = int(np.count_nonzero(scores > scale * float(gammainccinv(shape, p_tail)))) if p_tail < 0.5 else 0
    expected = p_tail * n
    warning = None
    if p_tail < 0.5 and over > expected + 3.2 * math.sqrt(expected):
        warning = (
            f"the gamma fit misses the tail: {over} of {n} healthy scores lie where {expected:.0f} were "
            "expected; expect more crossings than promised, or use method pot"
        )
    elif ks > critical:
        warning = (
            f"the healthy scores do not follow a gamma distribution (KS {ks:.3f} > {critical:.3f}); "
            "the promised rate is doubtful: compare with method pot"
        )
    return Threshold(
        value, "gamma", p, n, {"shape": shape, "scale": scale, "ks": ks, "ks_critical": critical}, warning
    )


def pareto_parameters(excesses: F64) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution, location 0.

    Zhang & Stephens (Technometrics 51, 2009): a weighted mean over a grid of the profile
    likelihood; no iteration that could fail. Shape > 0 is a heavy tail, < 0 a bounded one.
    """
    y = np.sort(excesses)
    n = y.size
    m = 20 + int(math.sqrt(n))
    j = np.arange(1, m + 1)
    quartile = y[max(int(n / 4 + 0.5) - 1, 0)]
    theta = 1.0 / y[-1] + (1.0 - np.sqrt(m / (j - 0.5))) / (3.0 * max(quartile, 1e-12 * y[-1]))
    k = np.log1p(-theta[:, None] * y).mean(1)
    log_likelihood = n * (np.log(-theta / k) - k - 1.0)
    weight = np.exp(log_likelihood - log_likelihood.max())
    best = float((theta * weight).sum() / weight.sum())
    shape = float(np.log1p(-best * y).mean())
    return shape, -shape / best


def _pot(scores: F64, p: float) -> Threshold:
    base = float(np.quantile(scores, 0.9))
    excesses = scores[scores > base] - base
    if excesses.size < POT_MIN_EXCESSES:
        raise ValueError(
            f"method pot has {excesses.size} scores above the 90th percentile; expected at least "
            f"{POT_MIN_EXCESSES}: calibrate on {10 * POT_MIN_EXCESSES} windows or more, or use gamma"
        )
    share = excesses.size / scores.size
    shape, scale = pareto_parameters(excesses)
    if p >= share:
        value = float(np.quantile(scores, 1.0 - p))
    elif abs(shape) < 1e-9:
        value = base + scale * math.log(share / p)
    else:
        value = base + scale / shape * ((share / p) ** shape - 1.0)
    return Threshold(
        value, "pot", p, scores.size, {"base": base, "shape": shape, "scale": scale, "share": share}
    )


def _percentile(scores: F64, p: float) -> Threshold:
    warning = None
    if scores.size * p < 1.0:
        warning = (
            f"{scores.size} healthy scores cannot show a rate of {p:g}: the limit is their maximum; "
            f"calibrate on {math.ceil(1 / p)} windows or more, or use method gamma or pot"
        )
    return Threshold(float(np.quantile(scores, 1.0 - p)), "percentile", p, scores.size, {}, warning)


def _mad(scores: F64, p: float) -> Threshold:
    from scipy.special import ndtri

    median = float(np.median(scores))
    sigma = 1.4826 * float(np.median(np.abs(scores - median)))
    k = float(-ndtri(p))
    params = {"median": median, "sigma": sigma, "k": k}
    return Threshold(median + k * sigma, "mad", p, scores.size, params)


_FITS: dict[str, Callable[[F64, float], Threshold]] = {
    "gamma": _gamma,
    "pot": _pot,
    "percentile": _percentile,
    "mad": _mad,
}
