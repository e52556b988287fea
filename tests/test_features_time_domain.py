"""Time-domain statistics: physics, numpy and scipy as oracles, scaling laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from scipy import stats

from edge_agent.features.time_domain import STATISTICS, build

N = 8192


def naive(x):
    """The slow, obvious twin in float64."""
    x = np.asarray(x, np.float64)
    a = np.abs(x)
    rms, abs_mean, sqrt_amplitude = np.sqrt(np.mean(x**2)), a.mean(), np.mean(np.sqrt(a)) ** 2
    return {
        "mean": x.mean(),
        "std": x.std(),
        "rms": rms,
        "abs_mean": abs_mean,
        "sqrt_amplitude": sqrt_amplitude,
        "peak": a.max(),
        "peak_to_peak": np.ptp(x),
        "skewness": stats.skew(x),
        "kurtosis": stats.kurtosis(x, fisher=False),
        "crest_factor": a.max() / rms,
        "shape_factor": rms / abs_mean,
        "impulse_factor": a.max() / abs_mean,
        "clearance_factor": a.max() / sqrt_amplitude,
        "energy": np.sum(x**2),
        "zero_crossing_rate": np.mean(np.diff(np.signbit(x))),
    }


def features(x, **params):
    extractor = build(1.0, len(x), **params)
    return dict(zip(extractor.names, extractor(np.asarray(x, np.float32))[0].tolist(), strict=True))


def sine(amplitude=1.0, cycles=64, n=N):
    return (amplitude * np.sin(2 * np.pi * cycles * (np.arange(n) + 0.5) / n)).astype(np.float32)


def test_a_sine():
    """A sine has rms A / sqrt 2, crest factor sqrt 2, kurtosis 1.5, no skewness, 2 f / fs crossings."""
    v = features(sine(3.0))
    assert v["rms"] == pytest.approx(3.0 / math.sqrt(2), rel=1e-5)
    assert v["crest_factor"] == pytest.approx(math.sqrt(2), rel=1e-3)
    assert v["kurtosis"] == pytest.approx(1.5, rel=1e-5)
    assert v["skewness"] == pytest.approx(0.0, abs=1e-5)
    assert v["abs_mean"] == pytest.approx(3.0 * 2 / math.pi, rel=1e-3)
    assert v["zero_crossing_rate"] == pytest.approx(127 / (N - 1))


def test_a_square_wave():
    """A square wave is all peak: every factor is 1 and so is the kurtosis."""
    v = features(np.where(np.arange(N) % 64 < 32, 2.0, -2.0))
    for name in ("crest_factor", "shape_factor", "impulse_factor", "clearance_factor", "kurtosis"):
        assert v[name] == pytest.approx(1.0, rel=1e-5), name


def test_gaussian_noise():
    """Gaussian noise has kurtosis 3 and skewness 0 within five sampling errors."""
    v = features(np.random.default_rng(0).standard_normal(N))
    assert abs(v["kurtosis"] - 3.0) < 5 * math.sqrt(24 / N)
    assert abs(v["skewness"]) < 5 * math.sqrt(6 / N)


def test_impulses_raise_kurtosis_and_crest_factor():
    """A blow every 512 samples, too short to move the rms much, shows in kurtosis and crest factor."""
    x = np.random.default_rng(0).standard_normal(N)
    y = x.copy()
    y[::512] += 12.0
    quiet, struck = features(x), features(y)
    assert struck["kurtosis"] > 3 * quiet["kurtosis"]
    assert struck["crest_factor"] > 2 * quiet["crest_factor"]
    assert struck["rms"] < 1.2 * quiet["rms"]


@pytest.mark.parametrize("offset", [0.0, 0.5, -30.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_agrees_with_numpy_and_scipy(offset, scale):
    """All 15 agree with numpy and scipy.stats in float64 to 1e-5, with offsets and at any scale."""
    rng = np.random.default_rng(7)
    for x in (rng.standard_normal(N), rng.exponential(size=N), rng.standard_normal(2500) * sine(n=2500)):
        x = (scale * (x + offset)).astype(np.float32)
        wanted, got = naive(x), features(x)
        for name in STATISTICS:
            slack = 1e-5 * wanted["rms"] if name == "mean" else 3e-5 if name == "skewness" else 0.0
            assert_allclose(got[name], wanted[name], rtol=1e-5, atol=slack, err_msg=name)


def test_an_offset_a_thousand_times_the_vibration():
    """Under an offset of 1000 the moments keep the accuracy that float32 samples themselves have."""
    x = (1000.0 + np.random.default_rng(5).standard_normal(N)).astype(np.float32)
    wanted, got = naive(x), features(x)
    for name in ("mean", "std", "kurtosis", "energy", "peak_to_peak"):
        assert got[name] == pytest.approx(wanted[name], rel=1e-5), name


def test_silence_and_constants():
    """Silence is 0 in every statistic; a constant has no spread, no skewness and no kurtosis."""
    assert set(features(np.zeros(N)).values()) == {0.0}
    v = features(np.full(N, 0.1))
    assert [v[n] for n in ("std", "skewness", "kurtosis", "zero_crossing_rate")] == [0.0] * 4
    # Sums are single precision, in the order of whichever BLAS is there.
    assert [v[n] for n in ("mean", "rms", "peak", "abs_mean")] == pytest.approx([0.1] * 4, rel=2e-5)
    assert [v[n] for n in ("crest_factor", "shape_factor", "clearance_factor")] == pytest.approx(
        [1.0] * 3, rel=1e-5
    )


def test_remove_dc_makes_statistics_blind_to_an_offset():
    """With remove_dc gravity changes nothing but the mean."""
    x = np.random.default_rng(4).standard_normal(N)
    still, tilted = features(x, remove_dc=True), features(x + 9.81, remove_dc=True)
    assert tilted.pop("mean") - still.pop("mean") == pytest.approx(9.81, rel=1e-5)
    for name, value in still.items():
        assert tilted[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
    assert naive(x - x.mean())["kurtosis"] == pytest.approx(tilted["kurtosis"], rel=1e-5)


def test_subset_and_log():
    """Names choose and order the statistics; log takes the natural logarithm of those that cannot be negative."""
    x = np.random.default_rng(2).standard_normal(N)
    plain = features(x)
    assert features(x, names=["kurtosis", "rms"]) == {"kurtosis": plain["kurtosis"], "rms": plain["rms"]}
    logged = features(x, log=True)
    assert logged["rms"] == pytest.approx(math.log(plain["rms"]), abs=1e-6)
    assert (logged["mean"], logged["skewness"]) == (plain["mean"], plain["skewness"])
    some = features(x, log=["rms"])
    assert some["rms"] == logged["rms"]
    assert some["std"] == plain["std"]
    assert features(np.zeros(N), names=["rms"], log=True)["rms"] == pytest.approx(math.log(1e-20))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"names": ["rms", "RMS"]}, "'RMS'; known: mean, std"),
        ({"names": ["rms", "rms"]}, "'rms' twice"),
        ({"names": []}, "expected a list of statistics"),
        ({"log": ["mean"]}, "'mean', which can be negative"),
        ({"log": ["loudness"]}, "'loudness'; known"),
        ({"names": ["rms"], "log": ["std"]}, "'std'; known: rms"),
    ],
)
def test_wrong_parameters_are_refused(params, says):
    """A statistic that does not exist, stands twice or has no logarithm is refused by name."""
    with pytest.raises(ValueError) as caught:
        build(1.0, N, **params)
    assert says in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    x=arrays(np.float32, st.integers(2, 300), elements=st.floats(-100, 100, width=16)),
    exponent=st.integers(-40, 40),
)
def test_scaling_law(x, exponent):
    """A power of two on the samples multiplies the amplitudes by it and changes no factor."""
    unit = 2.0**exponent
    before, after = features(x), features(np.ldexp(x, exponent))
    power = {"energy": 2} | dict.fromkeys(STATISTICS[:7], 1)
    for name in STATISTICS:
        wanted = before[name] * unit ** power.get(name, 0)
        # a near-constant window's higher moments are rounding: compare where there is a spread
        if name in ("skewness", "kurtosis", "std") and before["std"] < 1e-3 * before["rms"]:
            continue
        slack = 1e-5 * before["rms"] * unit if name == "mean" else 1e-4 if name == "skewness" else 0.0
        assert after[name] == pytest.approx(wanted, rel=1e-4, abs=slack), name
