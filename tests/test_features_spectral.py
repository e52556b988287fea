"""Spectra: physics, scipy.signal as oracle, scaling laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import signal

from edge_agent.features.spectral import build

FS, N = 20000.0, 8192


def features(x, **params):
    extractor = build(FS, len(x), **params)
    return dict(zip(extractor.names, extractor(np.asarray(x, np.float32))[0].tolist(), strict=True))


def sine(f, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * f * np.arange(N) / FS + 0.3)


def noise(seed=0, n=N):
    return np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("n_fft", [8192, 2048, 1001, 256])
@pytest.mark.parametrize("overlap", [0.5, 0.0, 0.75])
def test_psd_agrees_with_welch(n_fft, overlap):
    """The bins of "psd" are scipy.signal.welch's to 1e-5 of the largest, for one segment or many."""
    x = (noise() + sine(1234.5, 3.0) + 5.0).astype(np.float32)
    extractor = build(FS, N, mode="psd", n_fft=n_fft, overlap=overlap)
    f, wanted = signal.welch(
        x.astype(float), FS, nperseg=n_fft, noverlap=n_fft - (n_fft - int(overlap * n_fft))
    )
    assert_allclose(extractor(x)[0], wanted[1:], rtol=1e-4, atol=1e-5 * wanted.max())
    assert extractor.names[0] == f"psd_{f[1]:.7g}hz"


def test_a_sine_has_half_its_squared_amplitude_in_its_band():
    """A sine of amplitude A has A^2 / 2 in the band that holds it and next to nothing elsewhere."""
    v = features(sine(1000, 3.0), bands=[[100, 800], [800, 1200], [1200, 10000]])
    assert list(v) == ["band_100_800hz", "band_800_1200hz", "band_1200_10000hz"]
    assert v["band_800_1200hz"] == pytest.approx(4.5, rel=1e-4)
    assert v["band_100_800hz"] + v["band_1200_10000hz"] < 1e-4


def test_bands_that_cover_everything_hold_the_variance():
    """However the range is cut into bands, their powers add up to the variance of Gaussian noise."""
    x = noise()
    for cut in ({"n_bands": 1}, {"n_bands": 7}, {"bands": [[0, 123.4], [123.4, 10000]]}, {"n_bands": 3000}):
        total = sum(features(x + 9.81, **cut).values())
        assert total == pytest.approx(sum(features(x, n_bands=1).values()), rel=1e-4), cut
        assert total == pytest.approx(x.var(), rel=0.1)


@pytest.mark.parametrize("fs", [8000.0, 10000.0, 25600.0])
def test_band_means_of_the_psd_equal_the_slow_integral(fs):
    """1050 band means over 1 to 2000 Hz equal a fine numerical integral of the bins, below bin width too."""
    x = noise(3).astype(np.float32)
    got = build(fs, N, mode="psd", n_bands=1050, range_hz=[1, 2000])(x)[0]
    _, psd = signal.welch(x.astype(float), fs, nperseg=N)
    psd[0] *= 2  # one-sided estimates halve DC; its bin stands for half a bin width
    edges = np.linspace(1, 2000, 1051)
    fine = (np.arange(400) + 0.5) / 400
    where = edges[:-1, np.newaxis] + np.diff(edges)[:, np.newaxis] * fine
    naive = psd[np.rint(where / (fs / N)).astype(int)].mean(1)
    assert_allclose(got, naive, rtol=0.02, atol=1e-3 * naive.max())
    assert got.mean() == pytest.approx(naive.mean(), rel=1e-4)


def test_stft_means_agree_with_scipy():
    """127 means are those of scipy.signal.stft without padding, DC removed, DC and Nyquist dropped."""
    x = (noise() + 100.0).astype(np.float32)
    extractor = build(FS, N, mode="stft_means")
    f, _, z = signal.stft(x.astype(float) - x.mean(), FS, nperseg=256, boundary=None, padded=False)
    assert_allclose(extractor(x)[0], np.abs(z).mean(1)[1:-1], rtol=1e-5)
    assert len(extractor.names) == 127
    assert extractor.names[0] == f"stft_{f[1]:.7g}hz"


def test_stft_mean_of_a_sine_on_a_bin():
    """A sine of amplitude A on a bin has A / 2 there and A / 4 in both neighbours."""
    v = list(features(sine(10 * FS / 256, 2.0), mode="stft_means").values())
    assert v[8:11] == pytest.approx([0.5, 1.0, 0.5], rel=1e-4)
    assert max(v[:8] + v[11:]) < 1e-5


def test_an_offset_changes_nothing():
    """The mean is removed before every spectrum."""
    x = noise()
    for params in ({}, {"mode": "psd"}, {"mode": "psd", "n_fft": 512}, {"mode": "stft_means"}):
        level = max(features(x, **params).values())
        assert_allclose(
            list(features(x + 50, **params).values()), list(features(x, **params).values()), atol=1e-4 * level
        )


def test_log_and_silence():
    """The logarithm is natural and silence stands on its floor of ln(1e-20)."""
    x = noise()
    plain, logged = features(x), features(x, log=True)
    assert_allclose(list(logged.values()), np.log(list(plain.values())), rtol=1e-5)
    assert set(features(np.zeros(N)).values()) == {0.0}
    assert_allclose(list(features(np.zeros(N), log=True).values()), np.log(1e-20), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_scaling_law(gain, seed):
    """Twice the amplitude is four times the power and density, and twice the mean magnitude."""
    x = noise(seed, 1024)
    for params, power in (({}, 2), ({"mode": "psd", "n_fft": 256}, 2), ({"mode": "stft_means"}, 1)):
        loud = np.array(list(features(gain * x, **params).values()))
        assert_allclose(loud, gain**power * np.array(list(features(x, **params).values())), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"mode": "cepstrum"}, "mode is 'cepstrum'; expected one of bands, psd, stft_means"),
        ({"bands": [[500, 100]]}, "bands[0] is [500, 100]; lo must be below hi"),
        ({"bands": [[0, 100], [500, 10001]]}, "bands[1][1] is 10001; it must be at most 10000"),
        ({"bands": [[0, 100], [0, 100]]}, "bands repeat: band_0_100hz"),
        ({"bands": [[0, 100]], "n_bands": 3}, "one or the other"),
        ({"n_fft": 9000}, "n_fft is 9000; it must be from 8 to 8192"),
        ({"overlap": 1.0}, "overlap is 1; it must be below 1"),
        ({"mode": "stft_means", "bands": [[0, 100]]}, "bands is not for mode 'stft_means'"),
        ({"mode": "stft_means", "n_fft": 255}, "must be even"),
    ],
)
def test_wrong_parameters_are_refused(params, says):
    """A mode, band or segment that cannot be is refused with name, value and bound."""
    with pytest.raises(ValueError) as caught:
        build(FS, N, **params)
    assert says in str(caught.value)
