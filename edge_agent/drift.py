"""A slow change of the healthy scores, told once: not a stream of alarms.

    log score ─► z against the baseline ─┬─► slow mean beyond the allowance, for as long again ─► told, since ...
                (windows below the limit)└─► back within half of it ──────────────────────────► may be told again

The allowance is never below one standard deviation of a single healthy score, and grows with what the scores
themselves leave open: how strongly neighbours resemble each other, and how short the baseline was. So a
stationary machine stays quiet however its scores wander, and a baseline of an hour is not taken for more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_agent.signals import F64, rfc3339
from edge_agent.values import replace

#: The slow mean forgets within this many windows at least, and within so many correlation times.
SLOW_WINDOWS, SLOW_TIMES = 100, 20.0
#: Smallest change of the mean that is told, in standard deviations of a single score.
LEAST_SHIFT = 1.0
#: Standard errors of the slow mean and of the baseline's own mean that are allowed for.
ERRORS_OF_MEAN, ERRORS_OF_BASELINE = 4.0, 3.0
#: Windows over which spread and correlation are measured again while watching, and the most that is believed of the latter.
OWN_WINDOWS, MOST_CORRELATED = 300.0, 0.98
#: A score counts for at most this many standard deviations: one freak window is no drift.
MOST_Z = 5.0
HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Reference:
    """Healthy scores in brief: mean and standard deviation of their natural logarithm, the number n that it rests on,
    and their correlation time in windows (1: independent)."""

    mean: float
    std: float
    n: int
    correlation: float = 1.0

    def slow(self, correlation: float) -> float:
        """Windows within which the slow mean forgets."""
        return max(float(SLOW_WINDOWS), SLOW_TIMES * correlation)

    def allowance(self, correlation: float, spread: float) -> float:
        """Change of the mean, in standard deviations, beyond which it is told: 1.0 to infinity."""
        # An exponential mean over L windows has the variance of one of them times correlation / (2 L).
        of_mean = math.sqrt(correlation / (2.0 * self.slow(correlation)))
        of_baseline = math.sqrt(correlation / max(self.n, 1))
        return spread * max(LEAST_SHIFT, ERRORS_OF_MEAN * of_mean + ERRORS_OF_BASELINE * of_baseline)


@dataclass(frozen=True)
class Drift:
    """What is remembered of one sensor.

    n      : windows taken; slow, fast : the two running means of z
    square, product, last : running means of z's square and of its product with the one before, about the slow mean; what
             lies in them beyond the baseline's own spread and correlation widens the allowance
    beyond : windows in a row that the slow mean has been beyond the allowance
    since  : end of the last window at which the fast mean was within half the allowance, s
    told   : HIGHER or LOWER while it was told and has not returned, else ""
    """

    n: int = 0
    slow: float = 0.0
    fast: float = 0.0
    square: float = 1.0
    product: float = 0.0
    last: float = 0.0
    beyond: int = 0
    since: float | None = None
    told: str = ""


@dataclass(frozen=True)
class Told:
    """One notice: since when, which way, and the change as a factor on the typical score."""

    since: float
    way: str
    factor: float
    z: float

    @property
    def text(self) -> str:
        """For people."""
        return (
            f"the machine's normal scores have become {self.way}: {self.factor:.2f} times those of the baseline, "
            f"{abs(self.z):.1f} standard deviations, all of it below the limit; since {rfc3339(self.since)}"
        )


def correlation_time(x: F64) -> float:
    """Windows that a mean of x (n,) counts as one: 1 + 2 Σ autocorrelation, 1.0 to n / 4.

    Geyer's initial positive sequence (Statistical Science 7, 1992): the sum ends where a pair of neighbouring lags
    is no longer positive. White noise gives about 1, AR(1) at lag-1 correlation r about (1 + r) / (1 - r): 19 at 0.9.
    """
    x = np.asarray(x, np.float64)
    n = x.size
    x = x - x.mean() if n else x
    variance = float(x @ x)
    if n < 8 or not variance > 0.0:
        return 1.0
    spectrum = np.abs(np.fft.rfft(x, 2 * n)) ** 2
    rho = np.fft.irfft(spectrum, 2 * n)[:n] / variance
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)
    stop = int(np.argmax(pairs <= 0.0)) if (pairs <= 0.0).any() else pairs.size
    return float(min(max(2.0 * pairs[:stop].sum() - 1.0, 1.0), max(1.0, n / 4.0)))


#: Independent scores that a baseline must be worth before a drift against it means anything.
LEAST_INDEPENDENT = 10.0


def reference(scores: F64) -> Reference | None:
    """The reference of healthy scores (n,) in time order; None where they are too few or all alike: fewer than 20, or
    worth fewer than ten independent ones."""
    scores = np.asarray(scores, np.float64)
    if scores.size < 20:
        return None
    logs = np.log(np.maximum(scores, 1e-12 * max(float(scores.mean()), 1e-300)))
    std = float(logs.std())
    if not std > 1e-9:
        return None
    n, time = scores.size, correlation_time(logs)
    # A short series shows too short a time and too small a spread: both are corrected by what their number leaves open.
    time *= 1.0 + 4.0 * math.sqrt(time / n)
    if n / time < LEAST_INDEPENDENT:
        return None
    return Reference(float(logs.mean()), std / math.sqrt(1.0 - time / n), int(n), time)


def step(drift: Drift, reference: Reference, score: float, t: float) -> tuple[Drift, Told | None]:
    """Take the score of one window below the limit, which ended at t (s); windows above it are the alarm's affair."""
    floor = math.exp(max(reference.mean - 50.0, -700.0))
    z = (math.log(max(score, floor)) - reference.mean) / reference.std
    z = min(max(z, -MOST_Z), MOST_Z)
    n = drift.n + 1
    # A short baseline tells spread and correlation badly: those of the running scores count where they are larger.
    off = z - drift.slow
    square = drift.square + (off * off - drift.square) / OWN_WINDOWS
    product = drift.product + (off * drift.last - drift.product) / OWN_WINDOWS
    lag1 = min(max(product / square, 0.0), MOST_CORRELATED) if square > 0.0 else 0.0
    correlation = max(reference.correlation, (1.0 + lag1) / (1.0 - lag1))
    length = reference.slow(correlation)
    allowance = reference.allowance(correlation, max(1.0, math.sqrt(square)))
    # From zero, as if the past had been that of the baseline: a start is no change.
    slow = drift.slow + (z - drift.slow) / length
    fast = drift.fast + (z - drift.fast) * min(1.0, 5.0 / length)
    since = t if drift.since is None or abs(fast) < allowance / 2.0 else drift.since
    beyond = drift.beyond + 1 if abs(slow) > allowance else 0
    told = "" if abs(slow) < allowance / 2.0 else drift.told
    drift = Drift(n, slow, fast, square, product, off, beyond, since, told)
    if told or beyond < length:
        return drift, None
    way = HIGHER if slow > 0.0 else LOWER
    return replace(drift, told=way), Told(since, way, math.exp(slow * reference.std), slow)
