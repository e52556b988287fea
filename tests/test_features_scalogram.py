"""Morlet transform and pooled scalogram: PyWavelets as oracle, physics, names, refusals."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import area_means
from numpy.testing import assert_allclose, assert_array_equal

from edge_agent.features.scalogram import build, cwt, frequencies, pooling, unit_range

pywt = pytest.importorskip("pywt")

FS, N = 20000.0, 8192
SCALES = np.arange(1, 129)


def signals():
    """Windows of a machine, of noise, and of what lies between: (name, (N,) float64 of mean 0 and deviation 1)."""
    rng = np.random.default_rng(0)
    t = np.arange(N) / FS
    since = t % (1 / 137.0)
    blows = np.exp(-since / 1e-3) * np.sin(2 * np.pi * 4000 * since)
    found = {
        "defect in noise": blows + 0.3 * rng.standard_normal(N),
        "loud defect": blows + 0.05 * rng.standard_normal(N),
        "white noise": rng.standard_normal(N),
        "red noise": np.cumsum(rng.standard_normal(N)),
        "hum": np.sin(2 * np.pi * 440 * t) + 0.01 * rng.standard_normal(N),
        "impulses": (np.arange(N) % 811 == 0) * 1.0,
        "one impulse": np.eye(1, N, 4000)[0],
    }
    return {name: (x - x.mean()) / x.std() for name, x in found.items()}


def sine(f, a=1.0, n=N):
    return (a * np.sin(2 * np.pi * f * np.arange(n) / FS)).astype(np.float32)


def rows_hz(extractor):
    return np.array([[float(v) for v in name[4:-2].split("_")] for name in extractor.names])


@pytest.mark.parametrize("name", signals())
def test_transform_equals_pywt(name):
    """Every scale of 1 to 128 is pywt.cwt's (float64) to 1e-6 of the scale's own largest coefficient."""
    x = signals()[name]
    wanted = pywt.cwt(x, SCALES, "morl")[0]
    got = cwt(x.astype(np.float32), SCALES)
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    difference = np.abs(got - wanted).max(axis=1)
    # red noise has scales of 1/10000 of the largest coefficient: there float32 sees the largest one's rounding
    assert (difference <= 1e-5 * np.abs(wanted).max(axis=1) + 1e-7 * np.abs(wanted).max()).all()


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 700),
    scales=st.lists(st.floats(1.0, 40.0), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_transform_equals_pywt_for_any_length_and_scales(n, scales, seed):
    """Windows shorter than the wavelet, scales that are no whole numbers, in any order: the same coefficients."""
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    wanted = pywt.cwt(x.astype(np.float64), scales, "morl")[0]
    assert_allclose(cwt(x, scales), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_transform_of_many_windows_is_that_of_each():
    """Leading axes come first, then scales, then time; a batch is its windows bit for bit."""
    x = np.random.default_rng(1).standard_normal((2, 3, 500)).astype(np.float32)
    got = cwt(x, [2, 5.5, 20])
    assert got.shape == (2, 3, 3, 500)
    for i in np.ndindex(2, 3):
        assert_array_equal(got[i], cwt(x[i], [2, 5.5, 20]))


@pytest.mark.parametrize("scale", [8.0, 32.0, 100.0])
def test_transform_of_a_sine_has_the_amplitude_of_the_formula(scale):
    """A sine at the wavelet's centre frequency has the amplitude A sqrt(pi s / 2) at that scale."""
    c = cwt(sine(0.8125 * FS / scale, 3.0), [scale])[0, 2000:6000]
    assert np.abs(c).max() == pytest.approx(3.0 * np.sqrt(np.pi * scale / 2), rel=0.03)


@pytest.mark.parametrize(
    ("scales", "says"),
    [([0.0], "above 0"), ([4, -1], "-1"), ([float("nan")], "nan"), ([0.01], "0.01, too small")],
)
def test_impossible_scales_are_refused(scales, says):
    """A scale that is not positive or has no wavelet left is refused with its value."""
    with pytest.raises(ValueError, match=says):
        cwt(np.zeros(100, np.float32), scales)


def test_transform_of_a_single_sample_is_refused():
    """There is no transform of fewer than two samples."""
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        cwt(np.zeros(1, np.float32), [4])


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", signals())
def test_picture_is_the_pooled_magnitude_of_pywts_coefficients(name, size):
    """Correlation with the area-pooled |pywt.cwt| at full resolution is at least 0.999, for 64 and 224 columns."""
    x = signals()[name]
    full = area_means(area_means(np.abs(pywt.cwt(x, SCALES, "morl")[0]), size).T, size)  # (time, scale)
    got = build(FS, N, size=size)(x.astype(np.float32))
    assert np.corrcoef(got.ravel(), full[:, ::-1].ravel())[0, 1] >= 0.999
    level = build(FS, N, size=size, normalise="none")(x.astype(np.float32))
    assert level.mean() == pytest.approx(full.mean(), rel=0.02)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("kind", ["whistle", "burst", "sweep"])
def test_picture_of_a_lone_high_tone_has_the_traces_that_pywt_gives_it(kind, size):
    """Where pywt's table of 4096 points puts traces of a high tone into low rows, ours has them: 0.995 at least."""
    t = np.arange(N) / FS
    x = {
        "whistle": np.sin(2 * np.pi * 6100 * t) + 0.01 * np.random.default_rng(0).standard_normal(N),
        "burst": np.sin(2 * np.pi * 4000 * t) * ((t > 0.1) & (t < 0.15)),
        "sweep": np.sin(2 * np.pi * (50 * t + 9000 * t**2)),
    }[kind]
    x = (x - x.mean()) / x.std()
    full = area_means(area_means(np.abs(pywt.cwt(x, SCALES, "morl")[0]), size).T, size)[:, ::-1]
    got = build(FS, N, size=size)(x.astype(np.float32))
    assert np.corrcoef(got.ravel(), full.ravel())[0, 1] >= 0.995


@pytest.mark.parametrize(
    ("n", "size", "scales"), [(8000, 64, 128), (1000, 30, 50), (997, 32, 64), (4096, 100, 40)]
)
def test_picture_of_other_windows(n, size, scales):
    """Window lengths that share no factor with the picture, and other numbers of scales, keep the correlation."""
    x = np.random.default_rng(n).standard_normal(n)
    x = (x - x.mean()) / x.std()
    c = np.abs(pywt.cwt(x, np.arange(1, scales + 1), "morl")[0])
    full = area_means(area_means(c, size).T, size)[:, ::-1]
    got = build(FS, n, size=size, scales=scales)(x.astype(np.float32))
    assert np.corrcoef(got.ravel(), full.ravel())[0, 1] >= 0.998


@pytest.mark.parametrize("f", [200.0, 433.0, 1210.0, 2900.0, 5000.0, 8200.0])
def test_the_row_of_a_sine_is_the_brightest(f):
    """A sine is brightest in the row whose name holds its frequency, or in the one beside it."""
    extractor = build(FS, N)
    brightest = int(extractor(sine(f)).mean(axis=0).argmax())
    limits = rows_hz(extractor)
    (wanted,) = np.flatnonzero((limits[:, 0] <= f) & (f < limits[:, 1]))
    assert abs(brightest - wanted) <= 1


def test_an_impulse_is_a_vertical_line():
    """One impulse lights all high rows in the column of its time and nothing far away."""
    for at in (1000, 4321, 8000):
        x = np.zeros(N, np.float32)
        x[at] = 1.0
        picture = build(FS, N, z_score=False, normalise="none")(x)
        assert (picture[:, -16:].argmax(axis=0) == at // 128).all()
        far = np.abs(np.arange(64) - at // 128) > 4
        assert picture[far, -16:].max() < 0.02 * picture[:, -16:].max()


def test_a_burst_shines_at_its_time_and_frequency():
    """Of a burst of 2 kHz between samples 5000 and 5512 most of the brightness lies in its columns and rows."""
    x = sine(2000.0)
    x[:5000], x[5512:] = 0.0, 0.0
    extractor = build(FS, N, normalise="none")
    energy = np.square(extractor(x))
    columns = slice(5000 // 128 - 1, 5512 // 128 + 2)
    limits = rows_hz(extractor)
    rows = (limits[:, 1] > 1400) & (limits[:, 0] < 2800)
    assert energy[columns][:, rows].sum() > 0.9 * energy.sum()


def test_level_is_kept_on_request():
    """Without z-score and min-max ten times the amplitude is ten times the picture; with them it is the same one."""
    x = signals()["defect in noise"].astype(np.float32)
    level = build(FS, N, z_score=False, normalise="none")
    assert_allclose(level(10 * x), 10 * level(x), rtol=1e-4, atol=1e-5)
    assert_allclose(build(FS, N)(10 * x), build(FS, N)(x), atol=1e-4)
    assert_allclose(level(x + 5), level(x), rtol=1e-2, atol=1e-3)
    assert_allclose(
        build(FS, N, normalise="none", log=True)(x), np.log(build(FS, N, normalise="none")(x)), atol=1e-5
    )


def test_picture_spans_zero_to_one_and_silence_is_black():
    """Min-max reaches 0 and 1 exactly; silence and a constant are 0 everywhere."""
    for size in (64, 224):
        extractor = build(FS, N, size=size)
        picture = extractor(signals()["white noise"].astype(np.float32))
        assert (picture.min(), picture.max()) == (0.0, 1.0) or picture.max() == pytest.approx(1.0, abs=1e-6)
        assert picture.max() <= 1.0
        assert not extractor(np.zeros(N, np.float32)).any()
        assert not extractor(np.full(N, 9.81, np.float32)).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=20))
def test_unit_range_never_leaves_it(values):
    """Whatever the values, the result lies in [0, 1] and keeps their order."""
    v = np.array([values], np.float32)
    got = unit_range(v.copy())
    assert ((got >= 0.0) & (got <= 1.0)).all()
    order = np.argsort(v[0], kind="stable")
    assert (np.diff(got[0][order]) >= 0).all()


@pytest.mark.parametrize("fs", [1000.0, 10000.0, 25600.0, 96000.0])
@pytest.mark.parametrize("size", [32, 64, 128, 224])
def test_rows_are_neighbouring_bands_in_ascending_order(fs, size):
    """Names say bands without gap from fs 0.8125 / 128.5 to fs / 2, unique, in plain decimals."""
    extractor = build(fs, N, size=size)
    edges = frequencies(fs, 128, size)
    assert (np.diff(edges) > 0).all()
    assert edges[0] == pytest.approx(0.8125 * fs / 128.5)
    assert edges[-1] == pytest.approx(fs / 2)
    limits = rows_hz(extractor)
    assert (limits[:, 0] < limits[:, 1]).all()
    assert_array_equal(limits[1:, 0], limits[:-1, 1])
    assert all(re.fullmatch(r"cwt_[\d.]+_[\d.]+hz", name) for name in extractor.names)
    assert len(set(extractor.names)) == size


@pytest.mark.parametrize(("n", "size"), [(128, 64), (128, 224), (1024, 7), (36.5, 5)])
def test_pooling_is_the_mean_over_equal_areas(n, size):
    """Each row of the weights adds up to 1, each sample counts alike; a ramp keeps its mean."""
    weights = pooling(n, size)
    assert_allclose(weights.sum(1), 1.0)
    assert_allclose(weights.sum(0)[: int(n)], size / n)
    if n == int(n):
        ramp = np.arange(n)
        assert_allclose(weights @ ramp, area_means(ramp[np.newaxis], size)[0], atol=1e-9)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"size": 1}, "size is 1; it must be from 2 to 8192"),
        ({"size": 9000}, "size is 9000"),
        ({"scales": 1}, "scales is 1"),
        ({"normalise": "max"}, "normalise is 'max'; expected one of minmax, none"),
        ({"z_score": 1}, "z_score is 1; expected true or false"),
    ],
)
def test_wrong_parameters_are_refused(params, says):
    """A picture that cannot be is refused with name, value and bound."""
    with pytest.raises(ValueError, match=says):
        build(FS, N, **params)


def test_a_picture_needs_no_library_of_a_workstation():
    """Building and calling the family loads PyWavelets and numpy, no more of scipy than the agent has already."""
    code = (
        "import sys, numpy as np; from edge_agent.features import build\n"
        "build('scalogram', 2e4, 8192, {})(np.ones(8192, np.float32))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'matplotlib', 'pandas', 'librosa')"
        " or m.startswith(('scipy.signal', 'scipy.stats', 'scipy.special'))], 'pywt' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[] True"
