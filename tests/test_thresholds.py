"""Limits: against scipy's fits, against the promised rate on fresh scores, and where they must refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gammainc

from edge_agent import thresholds


@pytest.mark.parametrize("shape", [0.4, 1.0, 3.0, 60.0])
def test_gamma_fit_is_scipys(shape):
    """The two-parameter Newton fit finds scipy's maximum-likelihood parameters and quantile."""
    x = np.random.default_rng(3).gamma(shape, 0.2, 400)
    k, scale = thresholds.gamma_parameters(x)
    k_ref, _, scale_ref = stats.gamma.fit(x, floc=0)
    assert (k, scale) == pytest.approx((k_ref, scale_ref), rel=1e-5)
    limit = thresholds.fit(x, "gamma", 1e-4).value
    assert limit == pytest.approx(stats.gamma.isf(1e-4, k_ref, scale=scale_ref), rel=1e-5)


@pytest.mark.parametrize("spread", [0.03, 0.014, 1e-3, 1e-5, 2e-8])
def test_gamma_fit_of_scores_that_hardly_differ_is_the_normal_limit(spread):
    """A narrow gamma distribution is a normal one: the limit lies 3.72 standard deviations above the mean, and a little for the
    skewness, however few digits the scores differ in. Down to there the digits must not be lost on the way."""
    x = 7.0 * (1.0 + spread * stats.norm.ppf((np.arange(400) + 0.5) / 400.0))
    limit = thresholds.fit(x, "gamma", 1e-4)
    assert (limit.value - x.mean()) / x.std() == pytest.approx(3.719 + 4.28 * spread, rel=2e-3)
    assert limit.params["shape"] * (x.std() / x.mean()) ** 2 == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("spread", [1e-8, 2e-9, 1e-12])
def test_scores_that_are_one_number_and_its_rounding_are_refused(spread):
    """Where they differ by a hundred-millionth of their mean, a ValueError says by how much and what to look at."""
    scores = 1.0 + spread * np.random.default_rng(0).random(200)
    with pytest.raises(ValueError, match=r"healthy scores (differ from 1 by|equal 1).* check that the calibration recordings differ"):
        thresholds.fit(scores, "gamma", 1e-4)
    with pytest.raises(ValueError, match="no gamma distribution can be fitted"):
        thresholds.gamma_parameters(scores)


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2, 0.5])
def test_pareto_fit_is_as_likely_as_scipys(shape):
    """The generalised Pareto fit loses less than 0.3 in log-likelihood against scipy's optimum."""
    y = stats.genpareto.rvs(shape, scale=2, size=500, random_state=7)
    k, scale = thresholds.pareto_parameters(y)
    k_ref, _, scale_ref = stats.genpareto.fit(y, floc=0)
    ours = stats.genpareto.logpdf(y, k, scale=scale).sum()
    assert ours > stats.genpareto.logpdf(y, k_ref, scale=scale_ref).sum() - 0.3


@pytest.mark.parametrize(
    ("method", "draw"),
    [
        ("gamma", lambda rng, n: rng.gamma(3, 1, n)),
        ("pot", lambda rng, n: rng.gamma(3, 1, n)),
        ("pot", lambda rng, n: rng.lognormal(0, 0.5, n)),
        ("percentile", lambda rng, n: rng.lognormal(0, 0.5, n)),
        ("mad", lambda rng, n: np.abs(rng.normal(10, 1, n))),
    ],
)
def test_promised_rate_is_kept_on_fresh_scores(method, draw):
    """Over 20 draws the median of true ÷ promised crossings of fresh scores lies in 0.6 to 1.6."""
    rng = np.random.default_rng(11)
    rates = []
    for _ in range(20):
        limit = thresholds.fit(draw(rng, 5000), method, 1e-3).value
        rates.append(float((draw(rng, 200_000) > limit).mean()) / 1e-3)
    assert 0.6 < np.median(rates) < 1.6


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).lognormal(0, 0.9, 5000),
        np.concatenate([np.random.default_rng(0).gamma(50, m / 50, 2500) for m in (1.0, 3.0)]),
    ],
    ids=["heavy tail", "two regimes"],
)
def test_a_gamma_fit_that_does_not_fit_says_so(scores):
    """Log-normal and two-regime scores get a warning that names the other method; gamma scores do not."""
    assert "method pot" in thresholds.fit(scores, "gamma", 1e-3).warning
    assert thresholds.fit(np.random.default_rng(0).gamma(3, 1, 5000), "gamma", 1e-3).warning is None


def test_goodness_of_fit_constant_is_drawn_again():
    """5 % of gamma samples with both parameters estimated exceed the stored KS constant (3 to 8 % seen)."""
    rng = np.random.default_rng(5)
    over = 0
    for _ in range(800):
        x = np.sort(rng.gamma(2.0, 1.0, 200))
        shape, scale = thresholds.gamma_parameters(x)
        cdf, grid = gammainc(shape, x / scale), np.arange(201) / 200
        over += max((grid[1:] - cdf).max(), (cdf - grid[:-1]).max()) * 200**0.5 > thresholds.KS_CRITICAL
    assert 0.02 < over / 800 < 0.08


@pytest.mark.parametrize(
    ("scores", "method", "rate", "says"),
    [
        (np.ones(100), "gamma", 1e-3, "all 100 healthy scores equal 1"),
        (np.zeros(100), "gamma", 1e-3, "all 100 healthy scores equal 0"),
        (np.arange(9.0), "gamma", 1e-3, "9 healthy scores; expected at least 10"),
        (np.r_[np.arange(20.0), np.nan], "gamma", 1e-3, "1 of 21 healthy scores are not finite"),
        (np.arange(-5.0, 20.0), "gamma", 1e-3, "must be at least 0"),
        (np.arange(50.0), "pot", 1e-3, "5 scores above the 90th percentile"),
        (np.arange(50.0), "gama", 1e-3, "expected one of gamma"),
        (np.arange(50.0), "gamma", 0.0, "expected 1e-6 to 0.5"),
    ],
)
def test_scores_that_carry_no_limit_are_refused(scores, method, rate, says):
    """Each refusal states the figures and what to do; nothing non-finite can come out."""
    with pytest.raises(ValueError, match=says):
        thresholds.fit(scores, method, rate)


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=110, max_size=300, unique=True),
    st.sampled_from(thresholds.METHODS),
    st.floats(1e-6, 0.4),
    st.floats(0.01, 100.0),
)
def test_limits_are_finite_positive_and_scale_with_the_scores(scores, method, rate, factor):
    """Any varied scores give a finite limit above 0, and scores in another unit give that limit in it."""
    x = np.array(scores)
    if np.ptp(x) < 1e-6 * x.max():
        return
    try:
        one = thresholds.fit(x, method, rate)
    except ValueError as error:
        # Bounded tails or a bulk without spread can put a limit at 0: refused, not returned.
        assert "threshold is" in str(error) or "excesses" in str(error)
        return
    assert np.isfinite(one.value)
    assert one.value > 0
    assert thresholds.fit(x * factor, method, rate).value == pytest.approx(one.value * factor, rel=1e-6)


def test_a_rarer_alarm_needs_a_higher_limit():
    """For every method the limit does not fall when fewer false alarms are asked for."""
    x = np.random.default_rng(2).gamma(2, 1, 1000)
    for method in thresholds.METHODS:
        limits = [thresholds.fit(x, method, p).value for p in (0.2, 1e-2, 1e-3, 1e-5)]
        assert limits == sorted(limits)
