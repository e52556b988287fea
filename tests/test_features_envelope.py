"""Envelope spectrum: physics of modulation and impacts, scipy.signal.hilbert as oracle."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import signal

from edge_agent.bearings import Bearing
from edge_agent.features.envelope import EXAMPLE, build

FS, N = 20000.0, 8192
T = np.arange(N) / FS
F = Bearing.from_mapping(EXAMPLE["bearing"]).frequencies(EXAMPLE["speed_hz"])


def features(x, **params):
    extractor = build(FS, len(x), **params)
    return dict(zip(extractor.names, extractor(np.asarray(x, np.float32))[0].tolist(), strict=True))


def hilbert_envelope(x, band):
    """The slow, obvious twin: masked spectrum, back, analytic signal, magnitude; float64."""
    X = np.fft.rfft(np.asarray(x, float))
    f = np.arange(X.size) * FS / len(x)
    X[(f < band[0]) | (f > band[1])] = 0
    return np.abs(signal.hilbert(np.fft.irfft(X, len(x))))


def impacts(rate_hz, resonance_hz=4000.0, decay_s=1e-3, seed=0):
    """Blows that ring a resonance, in noise as strong as the ringing."""
    since = T % (1.0 / rate_hz)
    ringing = np.exp(-since / decay_s) * np.sin(2 * np.pi * resonance_hz * since)
    return ringing + 0.3 * np.random.default_rng(seed).standard_normal(N)


@pytest.mark.parametrize("band", [(2000.0, 6000.0), (500.0, 9900.0), (2500.0, 10000.0), (3000.0, 3400.0)])
@pytest.mark.parametrize("n", [8192, 8184, 6000, 8191])
def test_agrees_with_hilbert(band, n):
    """The envelope and its spectrum equal those by scipy.signal.hilbert to 1e-5, in any band and length."""
    band = (band[0], min(band[1], FS / 2 - 1.5 * FS / n))  # scipy weighs the Nyquist bin differently
    x = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    extractor = build(FS, n, band=band, frequencies_hz={"shaft": 33.3})
    wanted = hilbert_envelope(x, band)
    assert_allclose(extractor.envelope(x).T.ravel(), wanted, atol=1e-5 * wanted.max())
    window = signal.get_window("hann", n)
    amplitude = 2 / window.sum() * np.abs(np.fft.rfft((wanted - wanted.mean()) * window))
    got = extractor.spectrum(x)
    assert_allclose(got, amplitude[: got.size], atol=1e-5 * amplitude.max())


def test_high_modulations_take_the_long_way_and_agree():
    """A modulation above an eighth of fs is found where it is, as by scipy.signal.hilbert."""
    f = 1100 * FS / N  # 2686 Hz, above fs / 8
    x = ((1 + 0.5 * np.cos(2 * np.pi * f * T)) * np.sin(2 * np.pi * 5000 * T)).astype(np.float32)
    extractor = build(FS, N, band=[1000, 9500], frequencies_hz={"mesh": f}, n_harmonics=1)
    assert extractor(x)[0, 0] == pytest.approx(0.5, rel=2e-2)
    wanted = hilbert_envelope(x, (1000, 9500))
    assert_allclose(extractor.envelope(x).T.ravel(), wanted, atol=1e-5 * wanted.max())


def test_amplitude_modulation_is_read_off():
    """A carrier of amplitude 1 modulated by 1 + m cos(2 pi f t) shows m at f, whatever the carrier."""
    f = 40 * FS / N
    for carrier in (1234 * FS / N, 2000 * FS / N):
        x = (1 + 0.3 * np.cos(2 * np.pi * f * T)) * np.sin(2 * np.pi * carrier * T)
        v = features(x, band=[2000, 6000], frequencies_hz={"f": f, "g": 2.5 * f}, n_harmonics=1)
        assert v["f_envelope"] == pytest.approx(0.3, rel=1e-3)
        assert v["g_envelope"] < 1e-3


@pytest.mark.parametrize(
    ("name", "rate"),
    [("bpfo_envelope", F.bpfo), ("bpfi_envelope", F.bpfi), ("bsf_envelope", 2 * F.bsf)],
)
def test_impacts_show_at_the_frequency_of_their_defect(name, rate):
    """Blows at a defect's rate raise that feature eightfold over noise, and above those of the other races."""
    quiet = features(0.3 * np.random.default_rng(0).standard_normal(N), **EXAMPLE)
    struck = features(impacts(rate), **EXAMPLE)
    assert list(struck) == ["bpfo_envelope", "bpfi_envelope", "bsf_envelope", "ftf_envelope"]
    assert struck[name] > 8 * quiet[name]
    assert struck[name] > 3 * max(v for k, v in struck.items() if k != name)


def test_impacts_outside_the_band_do_not_count():
    """Blows that ring outside the band leave the feature at the noise."""
    struck = features(impacts(F.bpfo, resonance_hz=4000.0, decay_s=5e-3), **{**EXAMPLE, "band": [7000, 9500]})
    inside = features(impacts(F.bpfo, resonance_hz=4000.0, decay_s=5e-3), **EXAMPLE)
    assert inside["bpfo_envelope"] > 10 * struck["bpfo_envelope"]


def test_slip_within_the_tolerance_is_followed():
    """A bearing that slips by 1.5 % keeps its amplitude at 2 % tolerance and loses it at none."""
    slipped = impacts(F.bpfo * 0.985)
    wide = features(slipped, **EXAMPLE, tolerance=0.02)["bpfo_envelope"]
    narrow = features(slipped, **EXAMPLE, tolerance=0.0)["bpfo_envelope"]
    assert wide > 0.8 * features(impacts(F.bpfo), **EXAMPLE)["bpfo_envelope"]
    assert narrow < 0.6 * wide


def test_amplitude_scales_and_the_relative_one_does_not():
    """Ten times the signal is ten times the amplitude and the same amplitude relative to the floor."""
    x = impacts(F.bpfo)
    assert_allclose(
        list(features(10 * x, **EXAMPLE).values()),
        10 * np.array(list(features(x, **EXAMPLE).values())),
        rtol=1e-4,
    )
    before, after = features(x, **EXAMPLE, relative=True), features(10 * x, **EXAMPLE, relative=True)
    assert_allclose(list(after.values()), list(before.values()), rtol=1e-3)
    assert before["bpfo_envelope"] > 30


def test_the_sum_counts_every_bin_within_the_tolerance():
    """The sum over a search is at least its maximum, and equals the slow sum over bins."""
    x = impacts(F.bpfo).astype(np.float32)
    extractor = build(FS, N, **EXAMPLE, pick="sum", n_harmonics=2)
    amplitude = extractor.spectrum(x)
    f = np.arange(amplitude.size) * FS / N
    naive = 0.0
    for g in (F.bpfo, 2 * F.bpfo):
        naive += amplitude[np.abs(f - g) <= max(0.02 * g, FS / N)].sum()
    assert extractor(x)[0, 0] == pytest.approx(naive, rel=1e-5)
    assert naive >= features(x, **EXAMPLE, n_harmonics=2)["bpfo_envelope"]


def test_silence_is_zero():
    """Silence has no envelope, relative to a floor or not."""
    for relative in (False, True):
        assert set(features(np.zeros(N), **EXAMPLE, relative=relative).values()) == {0.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bearing": None, "speed_hz": None}, "envelope needs bearing with speed_hz, or frequencies_hz"),
        ({"speed_hz": None}, "bearing stands without speed_hz"),
        ({"bearing": None}, "speed_hz stands without bearing"),
        (
            {"band": [2000, 2200]},
            "bpfo is 236.4 Hz, but a band of 2000 to 2200 Hz carries no modulation above",
        ),
        ({"band": [2000, 20000]}, "band[1] is 20000; it must be at most 10000"),
        (
            {"speed_hz": 1.0},
            "ftf is 0.4433 Hz, but a window of 8192 samples at 20000 Hz resolves no less than",
        ),
        ({"frequencies_hz": {"bpfo": 100.0}}, "'bpfo', which the bearing gives already"),
        ({"pick": "mean"}, "pick is 'mean'; expected one of max, sum"),
        ({"tolerance": 0.7}, "tolerance is 0.7; it must be below 0.5"),
        ({"bearing": {"n_balls": 9}}, "bearing lacks ball_mm"),
    ],
)
def test_wrong_parameters_are_refused(change, says):
    """A band, bearing or speed that the window cannot serve is refused with values and the mend."""
    with pytest.raises(ValueError) as caught:
        build(FS, N, **{**EXAMPLE, **change})
    assert says in str(caught.value)
