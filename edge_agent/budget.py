"""How many false alarms a user will bear, kept as a limit: the rate of voted events, not of crossings.

    healthy scores ─┬─ marginal: gamma, or peaks over threshold where gamma does not fit ── Q(p)
                    ├─ dependence: autoregression of the normal scores ──┐ simulated ──► ladder of levels
                    │  (rejected where its events or their bunching      ├─ through the vote, delays and
                    │  are not those of the scores themselves)           │  deadband of the real policy
                    └─ blocks of the scores as they are, where rejected ─┘        │
                                                                    events a window at every level
                                       budget ──► limit,  its interval ──► what can be promised

A rate of crossings says little: at p = 1 % a vote of 3 in 5 gives one event in a week where windows are
independent and ten where they are not. So the event rate itself is found, by the alarm engine's own rules, as a
function of the level, and the level whose rate is the budget is the limit.

Where dependence follows an autoregression of the normal scores (a sieve, Bühlmann, Bernoulli 3, 1997, on
Gaussian-transformed ranks), a long series can be drawn and events far rarer than the record is long counted in
it. Otherwise only what the record shows is used: the onsets at each level, and a straight line in their
logarithm over that of the level's rate (the coefficient of tail dependence, Ledford & Tawn, Biometrika 83, 1996),
not followed far beyond the record. The interval comes from blocks of the record drawn again (moving-block
bootstrap, Künsch, Ann. Stat. 17, 1989), each fitted anew.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent import alarms, episodes, thresholds
from edge_agent.alarms import AlarmPolicy
from edge_agent.signals import F64
from edge_agent.thresholds import Threshold

Index = NDArray[np.int64]

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PER = re.compile(r"(\d+(?:\.\d+)?)\s*(?:per|in|/)\s*(\d+(?:\.\d+)?)?\s*(s|min|h|d)")

#: Budgets that are offered where the one asked for cannot be promised, in seconds an event.
LADDER_S = tuple(
    [h * 3600.0 for h in (1, 2, 3, 4, 6, 8, 12)] + [d * 86400.0 for d in (1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180, 365)]
)
#: Standard deviation of ln(true rate / promised) up to which a rate is promised: 90 % of records within a factor
#: of exp(1.645 × 0.4) = 1.9, which leaves something for what the model does not know.
MAX_LOG_SD = 0.4
#: Nothing is promised beyond so many lengths of the record, however well a law fits: `make budget` bears it out to
#: there, and what lies beyond could be measured by nobody.
MOST_BEYOND = 60.0
#: Beyond this it is not looked at: a factor of 140 either way.
MOST_LOG_SD = 3.0
_Z90 = 1.645
#: Fewest independent scores from which a law of dependence is taken; below, only what was seen counts.
LEAST_INDEPENDENT = 150.0
#: Highest order of the autoregression. One that needs most of it describes something longer than it can.
MOST_ORDER = 20
#: Share of drawn records that may look as clustered as the real one before their law of dependence is dropped. A promise that
#: was wrongly given costs more than one that was wrongly refused, so the test that sees most is given most.
CHANCES = {"in bursts": 0.03, "of a sudden": 0.01, "high": 0.01}
#: The newest so many are looked at; more would make the drawn series too short beside them.
MOST = 50_000
#: Fewest healthy scores that anything is promised on.
LEAST = 40


@dataclass(frozen=True, order=True)
class Budget:
    """One false alarm in `per_s` seconds of event time; "1 per 30 d" is `Budget(30 * 86400)`."""

    per_s: float

    def __post_init__(self) -> None:
        if not 60.0 <= self.per_s <= 3660 * 86400.0:
            raise ValueError(f"a budget of one event in {self.per_s:g} s; expected 1 per 1 min to 1 per 3660 d")

    def __str__(self) -> str:
        """The largest unit in which the number is at least 1."""
        unit, size = next(((u, s) for u, s in (("d", 86400.0), ("h", 3600.0)) if self.per_s >= s), ("min", 60.0))
        return f"1 per {self.per_s / size:.3g} {unit}"


def parse(text: str) -> Budget:
    """Read "1 per 30 d", "2 per d", "0.5 per 12 h" (s, min, h, d). ValueError with what was expected."""
    found = _PER.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0.0:
        raise ValueError(f"{text!r}; expected such as `1 per 30 d` (s, min, h, d)")
    return Budget(float(found[2] or 1.0) * _UNITS[found[3]] / float(found[1]))


@dataclass(frozen=True)
class Promise:
    """A limit for a budget, and what may be promised of it.

    threshold : the limit; `false_alarm_rate` is the rate of single crossings there, `params` hold log_sd, n_eff,
                wanted_s and, where something is promised, promised_s
    wanted    : the budget asked for
    promised  : the tightest that the scores support, at most `wanted`; None where they support nothing
    interval  : events a day at the limit, 5 % and 95 %
    statement : one sentence where `promised` is not `wanted`, else None
    """

    threshold: Threshold
    wanted: Budget
    promised: Budget | None
    interval: tuple[float, float]
    statement: str | None = None


def fit(
    scores: F64, hop_s: float, policy: AlarmPolicy, wanted: Budget, *, floor: float = 0.0, seed: int = 0
) -> Promise:
    """The limit at which healthy windows raise `wanted` events, by this policy.

    scores : (n,) healthy, held out, in time order, one every `hop_s` seconds
    floor  : the limit that would act without a budget, 0 where there is none
    Where they cannot support the budget, `promised` is the tightest one they do support, and the limit errs towards
    silence: it is the one at which the upper end of the 90 % interval of the event rate is `wanted`, and never below
    `floor` - windows that are too few to promise anything are no reason to alarm more than before. Raises ValueError with the figures where no limit can be fitted at all (see
    `thresholds.fit`), or where the policy cannot meet the budget at any limit.
    """
    scores = np.asarray(scores, np.float64).ravel()[-MOST:]
    thresholds.fit(scores, "gamma", 0.01)  # refuses what no limit can rest on, in its words
    if hop_s >= wanted.per_s:
        raise ValueError(
            f"a window every {_span(hop_s)} and a budget of {wanted}: every window could be an event; "
            f"expected a budget of 1 per {_span(2 * hop_s)} or rarer"
        )
    model = _model(scores.tobytes(), hop_s, policy, seed)
    limit_p = model.level(hop_s / wanted.per_s)
    sd = model.log_sd(limit_p)
    promised: Budget | None = None
    if scores.size >= LEAST:
        ladder = [s for s in LADDER_S if 2.0 * hop_s < s < wanted.per_s]
        for per_s in (wanted.per_s, *reversed(ladder)):
            if model.supports(hop_s / per_s):
                promised = Budget(per_s)
                break
    kept = promised == wanted
    if not kept:
        limit_p = model.level(hop_s / wanted.per_s * math.exp(-_Z90 * min(sd, MOST_LOG_SD)))
    value = model.marginal.isf(limit_p) / policy.warning_ratio
    if not kept:
        value = max(value, floor)
    per_day = 86400.0 / wanted.per_s
    told = {"wanted_s": wanted.per_s} | ({} if promised is None else {"promised_s": promised.per_s})
    threshold = Threshold(
        value,
        model.marginal.method,
        float(limit_p),
        scores.size,
        {**model.marginal.params, "log_sd": sd, "n_eff": model.n_eff, **told},
    )
    statement = None
    if not kept:
        best = "nothing can be promised" if promised is None else f"the best that can be promised is {promised}"
        statement = (
            f"{scores.size} windows ({_span(scores.size * hop_s)}) cannot support {wanted}; {best}: "
            f"{model.why_not(hop_s / wanted.per_s)}. The limit errs towards silence until then: "
            f"record more healthy windows (edge-agent commission), or ask for less"
        )
    spread = math.exp(_Z90 * min(sd, MOST_LOG_SD))
    return Promise(
        replace(threshold, warning=statement), wanted, promised, (per_day / spread, per_day * spread), statement
    )


def told(threshold: Threshold) -> dict[str, str | None] | None:
    """{"wanted": "1 per 30 d", "promised": ...} of a limit that keeps a budget; None for any other limit."""
    if "wanted_s" not in threshold.params:
        return None
    promised = threshold.params.get("promised_s")
    return {
        "wanted": str(Budget(threshold.params["wanted_s"])),
        "promised": None if promised is None else str(Budget(promised)),
    }


def supported(scores: F64, hop_s: float, policy: AlarmPolicy, wanted: Budget, *, seed: int = 0) -> bool:
    """Whether these scores carry the promise of this budget: what `fit` asks of each."""
    scores = np.asarray(scores, np.float64).ravel()[-MOST:]
    return scores.size >= LEAST and _model(scores.tobytes(), hop_s, policy, seed).supports(hop_s / wanted.per_s)


# ---------------------------------------------------------------------------------------------- the model


class _Marginal(NamedTuple):
    """How single scores are distributed: `isf(p)` the level exceeded with probability p, `sf` its inverse."""

    method: str
    params: dict[str, float]
    isf: Callable[[float], float]
    sf: Callable[[float], float]


#: Levels, as the probability of a crossing, at which events are counted.
_LEVELS = np.exp(np.linspace(math.log(0.4), math.log(2e-6), 40))
#: Length of the simulated series, and the fewest events that a rate is read from in it.
_DRAWN, _COUNTED = 1 << 21, 25
#: So many windows above a level are looked at there.
_CROSSINGS = 12_000


@lru_cache(maxsize=32)
def _model(blob: bytes, hop_s: float, policy: AlarmPolicy, seed: int) -> _Model:
    return _Model(np.frombuffer(blob, np.float64), hop_s, policy, seed)


class _Model:
    """Events a window as a function of the probability p of a crossing, with its uncertainty."""

    def __init__(self, scores: F64, hop_s: float, policy: AlarmPolicy, seed: int) -> None:
        self.scores, self.hop_s, self.policy = scores, hop_s, policy
        rng = np.random.default_rng([0xB0D6E7, seed])
        z = normal_scores(scores)
        self.coefficients = autoregression(z)
        self.n_eff = max(5.0, scores.size / dependence_time(z))
        self.marginal = marginal(scores, self.n_eff)
        drawn = simulate(self.coefficients, _DRAWN, rng)
        self.sieve = self._fits(drawn, z)
        if self.sieve is not None and scores.size >= 10 * thresholds.POT_MIN_EXCESSES:
            self.marginal = _pot(scores)  # what was seen, as it was seen
        self._p, self._rate = self._ladder(drawn) if self.sieve is None else self._observed()
        self._marginal_spread(rng)
        self._dependence_spread(z, rng)

    # -- events at a level

    def _events(self, x: F64, p: float, sf: Callable[[float], float] | None = None) -> int:
        """Onsets in a series of normal scores at the level p, scaled up where a part of the series tells enough."""
        part = min(x.size, math.ceil(_CROSSINGS / p))
        level = self.marginal.isf(p)
        back = min(max((sf or self.marginal.sf)(level * (1.0 - self.policy.deadband)), p), 1.0 - 1e-12)
        seen = onsets(x[:part], normal_isf(p), normal_isf(back), self.policy, self.hop_s).size
        return round(seen * x.size / part)

    def _ladder(self, drawn: F64) -> tuple[F64, F64]:
        p: list[float] = []
        rate: list[float] = []
        for level in _LEVELS:
            n = self._events(drawn, level)
            if n < _COUNTED and p:
                break
            if n >= _COUNTED:
                p.append(level)
                rate.append(n / drawn.size)
        return _rising(p, rate)

    def _observed(self) -> tuple[F64, F64]:
        """The same ladder from the scores themselves, down to five events."""
        p, rate = [], []
        for level in _LEVELS:
            value = float(np.quantile(self.scores, 1.0 - level))
            n = onsets(self.scores, value, value * (1.0 - self.policy.deadband), self.policy, self.hop_s).size
            if n >= 5:
                p.append(level)
                rate.append(n / self.scores.size)
        return _rising(p, rate)

    def _fits(self, drawn: F64, z: F64) -> str | None:
        """None where the scores bunch and vote as the autoregression does, else what does not fit."""
        n = z.size
        if n < 200:
            return None  # nothing could be told from so few
        if self.n_eff < LEAST_INDEPENDENT:
            return f"{n} windows hold only about {self.n_eff:.0f} independent ones: the level wanders slowly"
        if n >= 25 * MOST_ORDER and self.coefficients.size >= 0.75 * MOST_ORDER:
            return f"scores hang together over {self.coefficients.size} windows and more: the level wanders slowly"
        records = _blocks(drawn, n)[:400]
        own, others = (together(x, self.coefficients) for x in (z[None], records))
        for name, at in own.items():
            beyond = int(np.count_nonzero(others[name] >= at[0]))
            if beyond <= CHANCES[name] * others[name].size:
                return f"high scores come {name}, as in {beyond} of {others[name].size} draws of the same correlation"
        if self.scores.min() > 0.0:
            height, drawn_heights = float(_height(np.log(self.scores)[None])[0]), _height(records)
            beyond = int(np.count_nonzero(drawn_heights >= height))
            if beyond <= CHANCES["high"] * drawn_heights.size:
                return (
                    f"the highest scores lie {height:.3g} quartile ranges above the median of their logarithms, as in {beyond} of "
                    f"{drawn_heights.size} log-normal draws: they are of another kind than the rest"
                )
        for level in _LEVELS[::3]:
            expected = max(self._events(drawn, level), 1) * n / drawn.size
            seen = self._events(z, level)
            if abs(seen - expected) > 3.3 * math.sqrt(expected) + 0.05 * expected + 1.0:
                return f"{seen} events where draws of the same correlation give {expected:.2g}"
            if seen == 0 and expected < 0.01:
                break
        for length in sorted({max(20, n // 200), max(40, n // 50), max(60, n // 15)}):
            seen_var, drawn_var = (float(_blocks(x, length).mean(1).var()) for x in (z, drawn))
            if seen_var > drawn_var * (1.0 + 3.5 * math.sqrt(2.0 * length / n)):
                return (
                    f"the level wanders over {_span(length * self.hop_s)}: {seen_var / drawn_var:.1f} times the variance that "
                    "short correlation explains"
                )
        return None

    # -- from rate to level and back

    def level(self, rate: float) -> float:
        """Probability of a crossing at which `rate` events come a window."""
        lp, lr = np.log(self._p), np.log(self._rate)
        goal = math.log(rate)
        if goal > lr[0]:
            return float(self._p[0])
        if goal >= lr[-1]:
            return float(math.exp(np.interp(goal, lr[::-1], lp[::-1])))
        slope = self.exponent(float(self._p[-1]))
        return float(math.exp(lp[-1] + (goal - lr[-1]) / slope))

    def exponent(self, p: float) -> float:
        """d ln(events) / d ln(crossings) about p: k where windows are independent, 1 where they move together."""
        lp, lr = np.log(self._p), np.log(self._rate)
        near = np.argsort(np.abs(lp - math.log(p)))[:8]
        x, y = lp[near] - lp[near].mean(), lr[near] - lr[near].mean()
        slope = float((x * y).sum() / (x * x).sum()) if near.size > 1 else float(self.policy.vote[0])
        return min(max(slope, 0.8), float(self.policy.vote[0]))

    # -- how sure

    def _marginal_spread(self, rng: np.random.Generator, draws: int = 80) -> None:
        """ln(true p / p) over the record's blocks drawn again, at every level of the ladder."""
        n = self.scores.size
        length = int(min(max(1, round(5.0 * n / self.n_eff)), max(1, n // 5)))
        levels = np.exp(np.linspace(math.log(0.3), math.log(1e-6), 30))
        own = np.array([self.marginal.isf(p) for p in levels])
        out = []
        for _ in range(draws):
            starts = rng.integers(0, n - length + 1, -(-n // length))
            again = (starts[:, None] + np.arange(length)).ravel()[:n]
            sample = self.scores[again]
            if np.ptp(sample) <= 1e-9 * sample.max():
                continue
            other = _KINDS[self.marginal.method](sample)
            out.append([math.log(max(other.sf(x), 1e-30)) for x in own])
        deviation = np.asarray(out) - np.log(levels)
        self._levels = levels
        self._p_sd = np.minimum(np.sqrt((deviation**2).mean(0)), 20.0)

    def _dependence_spread(self, z: F64, rng: np.random.Generator) -> None:
        """ln(events) for one standard error of the correlation: two series with the same noise, one more correlated."""
        if self.sieve is not None:
            self._rho_sd = 0.0
            return
        rho = float(np.clip(np.corrcoef(z[:-1], z[1:])[0, 1], -0.5, 0.98)) if z.size > 2 else 0.0
        step = math.sqrt(max(1.0 - rho * rho, 0.02) / z.size)
        counts = []
        noise = int(rng.integers(2**31))
        size = 1 << 18
        for r in (rho - step, rho + step):
            x = simulate(np.array([min(max(r, -0.6), 0.99)]), size, np.random.default_rng(noise))
            p = next((p for p in _LEVELS if self._events(x, p) < 200), _LEVELS[-1])
            counts.append((p, self._events(x, p)))
        p = max(counts[0][0], counts[1][0])
        both = []
        for r in (rho - step, rho + step):
            x = simulate(np.array([min(max(r, -0.6), 0.99)]), size, np.random.default_rng(noise))
            both.append(max(1, self._events(x, p)))
        self._rho_sd = abs(math.log(both[1] / both[0])) / 2.0

    def log_sd(self, p: float) -> float:
        """Standard deviation of ln(true event rate / promised) at the level p."""
        sd_p = float(np.interp(-math.log(p), -np.log(self._levels), self._p_sd))
        if self.sieve is None:
            return math.hypot(self.exponent(p) * sd_p, self._rho_sd)
        # Without a model of dependence the count itself is what is known, and less and less beyond it.
        rate = self._rate_at(math.log(p))
        beyond = max(0.0, math.log(self._rate[-1] / rate))
        return math.hypot(self._counted(max(p, float(self._p[-1]))), 0.7 * beyond)

    def _counted(self, p: float) -> float:
        """Relative standard deviation of the number of onsets seen at the level p, from that of its blocks."""
        value = float(np.quantile(self.scores, 1.0 - p))
        at = onsets(self.scores, value, value * (1.0 - self.policy.deadband), self.policy, self.hop_s)
        variances = [float(at.size)]
        for parts in (40, 20, 10):
            counts = np.bincount(at // -(-self.scores.size // parts), minlength=parts)
            variances.append(parts * float(counts.var(ddof=1)))
        return 1.4 * math.sqrt(max(variances)) / max(at.size, 1)

    def _rate_at(self, lp: float) -> float:
        last = math.log(self._p[-1])
        if lp >= last:
            return float(math.exp(np.interp(-lp, -np.log(self._p), np.log(self._rate))))
        return float(self._rate[-1]) * math.exp(self.exponent(float(self._p[-1])) * (lp - last))

    def supports(self, rate: float) -> bool:
        """Whether this many events a window can be promised."""
        return rate * self.scores.size * MOST_BEYOND >= 1.0 and self.log_sd(self.level(rate)) <= MAX_LOG_SD

    def why_not(self, rate: float) -> str:
        """What stands against it, in words."""
        if rate * self.scores.size * MOST_BEYOND < 1.0:
            return f"that is more than {MOST_BEYOND:g} times as long as the record, and no record shows its own tail so far"
        p = self.level(rate)
        low = math.exp(-_Z90 * min(self.log_sd(p), MOST_LOG_SD))
        text = f"the true rate would lie between {low:.2g} and {1 / low:.2g} times the promised one"
        return text if self.sieve is None else f"{text}; {self.sieve}"


def marginal(scores: F64, n_eff: float) -> _Marginal:
    """Gamma where it fits bulk and tail by as many independent scores as there are, else peaks over threshold."""
    gamma = _gamma(scores)
    ordered = np.sort(scores)
    grid = np.arange(1, scores.size + 1) / scores.size
    from scipy.special import gammainc

    cdf = gammainc(gamma.params["shape"], ordered / gamma.params["scale"])
    ks = float(np.abs(cdf - grid + 0.5 / scores.size).max())
    worst = ks * math.sqrt(n_eff) / thresholds.KS_CRITICAL
    for p in (0.1, 0.03, 0.01, 0.003):
        expected = p * n_eff
        if expected >= 3.0:
            seen = float(np.count_nonzero(scores > gamma.isf(p))) / scores.size * n_eff
            worst = max(worst, abs(seen - expected) / (2.6 * math.sqrt(expected)))
    # Few independent scores hide a heavy tail from both: then gamma must at least beat its heavier neighbour.
    if (worst <= 1.0 and _beats_lognormal(scores, gamma)) or scores.size < 10 * thresholds.POT_MIN_EXCESSES:
        return gamma
    return _pot(scores)


def _beats_lognormal(scores: F64, gamma: _Marginal) -> bool:
    """Whether the gamma distribution makes the scores likelier than the log-normal one does."""
    from scipy.special import gammaln

    shape, scale = gamma.params["shape"], gamma.params["scale"]
    logs = np.log(np.maximum(scores, 1e-12 * scores.mean()))
    of_gamma = (shape - 1.0) * logs.mean() - scores.mean() / scale - float(gammaln(shape)) - shape * math.log(scale)
    of_lognormal = -logs.mean() - 0.5 * math.log(2.0 * math.pi * float(logs.var())) - 0.5
    return bool(of_gamma >= of_lognormal)


def _gamma(scores: F64) -> _Marginal:
    from scipy.special import gammaincc, gammainccinv

    shape, scale = thresholds.gamma_parameters(scores)
    return _Marginal(
        "gamma",
        {"shape": shape, "scale": scale},
        lambda p: scale * float(gammainccinv(shape, p)),
        lambda x: float(gammaincc(shape, max(x, 0.0) / scale)),
    )


def _pot(scores: F64) -> _Marginal:
    """The empirical distribution up to its 90th percentile, generalised Pareto above."""
    ordered = np.sort(scores)
    base = float(np.quantile(ordered, 0.9))
    excesses = ordered[ordered > base] - base
    share = excesses.size / ordered.size
    shape, scale = thresholds.pareto_parameters(excesses)
    # A bounded tail fitted to few excesses ends too soon: nothing healthy would ever cross beyond it.
    shape = max(shape, -0.2)
    if shape == -0.2:
        scale = float(excesses.mean()) * 1.2

    def isf(p: float) -> float:
        if p >= share:
            return float(np.quantile(ordered, 1.0 - p))
        if abs(shape) < 1e-9:
            return base + scale * math.log(share / p)
        return float(base + scale / shape * ((share / p) ** shape - 1.0))

    def sf(x: float) -> float:
        if x <= base:
            return 1.0 - float(np.searchsorted(ordered, x, "right")) / ordered.size
        inner = 1.0 + shape * (x - base) / scale
        if inner <= 0.0:
            return 1e-30
        return float(share * (math.exp(-(x - base) / scale) if abs(shape) < 1e-9 else inner ** (-1.0 / shape)))

    return _Marginal("pot", {"base": base, "shape": shape, "scale": scale, "share": share}, isf, sf)


_KINDS: dict[str, Callable[[F64], _Marginal]] = {"gamma": _gamma, "pot": _pot}


def onsets(x: F64, limit: float, back: float, policy: AlarmPolicy, hop_s: float) -> Index:
    """Windows at which an alarm of this policy begins over the values x (n,), one every `hop_s` seconds.

    `episodes.turns` with limit and return level of any quantity instead of ratios, and only where it matters: around
    the few values at or above the return level. Nothing else can begin, hold or end an alarm.
    """
    n = policy.vote[1]
    hot = np.flatnonzero(x >= back)
    if not hot.size:
        return np.zeros(0, np.int64)
    # Each stretch is followed up to the window at which the alarm is over for certain, where the next has not yet begun.
    off = 1 + math.ceil(policy.off_delay_s / hop_s - 1e-9)
    breaks = np.flatnonzero(np.diff(hot) >= n + off)
    begin, end = hot[np.r_[0, breaks + 1]], hot[np.r_[breaks, hot.size - 1]]
    length = end - begin + n + off
    at = np.repeat(begin - np.r_[0, np.cumsum(length)[:-1]], length) + np.arange(int(length.sum()))
    at = at[at < x.size]
    value = x[at]
    ratios = np.where(value >= limit, policy.warning_ratio, np.where(value >= back, alarms.return_ratio(policy), 0.0))
    found = episodes.turns(ratios, at * hop_s, policy)
    return np.asarray(at[found.at[found.raises]], np.int64)


def normal_scores(scores: F64) -> F64:
    """(n,) ranks as quantiles of the standard normal distribution: (rank - 0.5) / n."""
    from scipy.special import ndtri

    ranks = np.empty(scores.size)
    ranks[np.argsort(scores, kind="stable")] = np.arange(scores.size)
    return np.asarray(ndtri((ranks + 0.5) / scores.size), np.float64)


def normal_isf(p: float) -> float:
    """Value that a standard normal variable exceeds with probability p."""
    from scipy.special import ndtri

    return -float(ndtri(p))


def autoregression(z: F64) -> F64:
    """Coefficients (order,) of the autoregression with the least AIC, by Yule and Walker (Levinson's recursion).

    The order is at most MOST_ORDER and n / 25; white noise gives none.
    """
    n = z.size
    top = max(1, min(MOST_ORDER, n // 25))
    size = 1 << (2 * n).bit_length()
    covariance = np.fft.irfft(np.abs(np.fft.rfft(z - z.mean(), size)) ** 2, size)[: top + 1] / n
    best, a, error = (n * math.log(covariance[0]), np.zeros(0)), np.zeros(0), float(covariance[0])
    for order in range(1, top + 1):
        reflection = (covariance[order] - float(a @ covariance[order - 1 : 0 : -1][: a.size])) / error
        a = np.r_[a - reflection * a[::-1], reflection]
        error *= 1.0 - reflection * reflection
        aic = n * math.log(max(error, 1e-300)) + 2.0 * order
        if aic < best[0]:
            best = (aic, a)
    return best[1]


def innovations(z: F64, coefficients: F64) -> F64:
    """(m, n) -> (m, n - order): what an autoregression does not foresee, in standard deviations by the middle half."""
    order = coefficients.size
    e = z[:, order:].copy()
    for lag, a in enumerate(coefficients, 1):
        e -= a * z[:, order - lag : z.shape[1] - lag]
    low, high = np.quantile(e, [0.25, 0.75], axis=1, keepdims=True)
    return np.asarray((e - e.mean(1, keepdims=True)) * 1.349 / (high - low), np.float64)


def together(x: F64, coefficients: F64) -> dict[str, F64]:
    """How high scores come together in records x (m, n), by the ranks within each; what is counted -> (m,).

    in bursts   : by how much bursts at any place make the record likelier, see `_burst_evidence`
    of a sudden : mean of the 10 largest innovations
    """
    z = np.empty_like(x)
    ranked = normal_scores(np.arange(x.shape[1], dtype=np.float64))
    np.put_along_axis(z, np.argsort(x, axis=1), ranked[None], axis=1)
    e = innovations(z, coefficients)
    sudden = np.partition(e, e.shape[1] - 10, axis=1)[:, -10:].mean(1)
    return {"in bursts": _burst_evidence(e, coefficients), "of a sudden": sudden}


#: Lengths in windows and heights in standard deviations of the bursts that are looked for, and how often one begins.
_BURSTS, _BURST_HEIGHTS, _BURST_SHARE = (1, 2, 3, 5, 8), (1, 2, 3), 1.0 / 300.0


def _burst_evidence(e: F64, coefficients: F64) -> F64:
    """(m, n) innovations -> (m,): log likelihood ratio of "here and there the level is raised for some windows" to not.

    A raised level shows in the innovations as a box that has passed the same filter as they have; at each place the likelihood
    ratio of a box (Neyman & Pearson's, with the matched filter) is averaged over lengths and heights, and places count as
    independent. It weighs all of a burst: its rise, its top and its fall. Only its rank among drawn records is used.
    """
    whitening = np.r_[1.0, -coefficients]
    gain = np.abs(np.fft.fft(whitening, 4096)) ** 2
    sd = math.sqrt(1.0 / float(np.mean(1.0 / gain)))  # of an innovation, in standard deviations of the normal scores
    matched = e.copy()
    for lag, a in enumerate(coefficients, 1):
        matched[:, :-lag] -= a * e[:, lag:]
    total = np.concatenate([np.zeros((e.shape[0], 1)), np.cumsum(matched / sd, axis=1)], axis=1)
    size = e.shape[1] - max(_BURSTS)
    mean = np.zeros((e.shape[0], size))
    for length in _BURSTS:
        energy = float((np.convolve(whitening, np.ones(length)) ** 2).sum()) / sd**2
        one = np.exp(np.minimum(total[:, length : length + size] - total[:, :size], 200.0))  # beyond is evidence enough
        for height in _BURST_HEIGHTS:
            mean += math.exp(-0.5 * energy * height**2) * one**height
    mean /= len(_BURSTS) * len(_BURST_HEIGHTS)
    return np.asarray(np.log1p(_BURST_SHARE * mean).sum(1))


def _height(x: F64) -> F64:
    """(m, n) -> (m,): the tenth highest value above the median, in quartile ranges."""
    n = x.shape[1]
    low, mid, high, top = np.partition(x, [n // 4, n // 2, 3 * n // 4, n - 10], axis=1)[:, [n // 4, n // 2, 3 * n // 4, n - 10]].T
    return np.asarray((top - mid) / np.maximum(high - low, 1e-300), np.float64)


def dependence_time(z: F64) -> float:
    """Windows that are worth one independent one: 1 + 2 Σ autocorrelation, up to where it is lost in noise."""
    n = z.size
    size = 1 << (2 * n).bit_length()
    c = np.fft.irfft(np.abs(np.fft.rfft(z - z.mean(), size)) ** 2, size)[: max(2, n // 4)]
    r = c / c[0]
    lost = np.flatnonzero(r < 2.0 / math.sqrt(n))
    stop = int(lost[0]) if lost.size else r.size
    return float(max(1.0, 1.0 + 2.0 * r[1:stop].sum()))


def simulate(coefficients: F64, size: int, rng: np.random.Generator) -> F64:
    """(size,) of the Gaussian autoregression, variance 1; drawn in the frequency domain, so the end joins the start."""
    noise = rng.standard_normal(size)
    if not coefficients.size:
        return noise
    transfer = np.fft.rfft(np.r_[1.0, -coefficients], size)
    x = np.fft.irfft(np.fft.rfft(noise) / transfer, size)
    return np.asarray(x / x.std(), np.float64)


def _blocks(x: F64, length: int) -> F64:
    """(n,) cut into stretches of this length, (n // length, length); what is over at the end is left out."""
    return x[: x.size // length * length].reshape(-1, length)


def _rising(p: list[float], rate: list[float]) -> tuple[F64, F64]:
    """The part of a ladder along which rarer crossings mean rarer events; at very low levels alarms run together."""
    if not p:
        return np.array([0.4]), np.array([1e-3])
    top = int(np.argmax(rate))
    falling = np.minimum.accumulate(np.asarray(rate[top:]))
    levels = np.asarray(p[top:])
    keep = np.r_[True, np.diff(falling) < 0]
    return levels[keep], falling[keep]


def _span(seconds: float) -> str:
    """Seconds in words: 90 -> "1.5 min", 2 days -> "2 d"."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
