"""The 1200-d vector: its parts are the families', its shares those of a spectrum one can check in the head."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import signal

from edge_agent.features import spectral, time_domain
from edge_agent.features.vector1200 import PARTS, build

FS, N = 10000.0, 8192


def record(seed=0):
    """Noise with a hum and an offset, float32."""
    rng = np.random.default_rng(seed)
    return (0.5 + rng.standard_normal(N) + np.sin(2 * np.pi * 50 * np.arange(N) / FS)).astype(np.float32)


def high(x, fs=FS, **params):
    extractor = build(fs, N, **params)
    return dict(zip(extractor.names[-8:], extractor(x)[0, -8:], strict=True))


def test_layout_is_15_127_1050_8():
    """The four parts follow each other and fill 1200 uniquely named values."""
    extractor = build(FS, N)
    v = extractor(record())
    assert v.shape == (1, 1200)
    assert len(set(extractor.names)) == 1200
    assert [stop - first for _, first, stop in PARTS] == [15, 127, 1050, 8]
    assert extractor.names[0] == "mean"
    assert extractor.names[-1] == "power_above_4000hz"
    assert extractor.names[142].startswith("psd_1_")
    assert extractor.names[1191].endswith("_2000hz")


@pytest.mark.parametrize("log", [False, True])
def test_first_parts_are_the_families(log):
    """Statistics, STFT means and PSD are those of `time_domain` and `spectral`, with the option as well."""
    x = record()
    v = build(FS, N, log=log)(x)[0]
    assert_array_equal(v[:15], time_domain.build(FS, N, log=log)(x)[0])
    assert_array_equal(v[15:142], spectral.build(FS, N, mode="stft_means", log=log)(x)[0])
    psd = spectral.build(FS, N, mode="psd", n_bands=1050, range_hz=[1, 2000], log=log)
    assert_array_equal(v[142:1192], psd(x)[0])


@pytest.mark.parametrize("fs", [8000.0, 10000.0, 25600.0])
def test_parts_agree_with_scipy(fs):
    """STFT means, the PSD's power from 1 to 2000 Hz and the shares are those of scipy in float64."""
    x = record(1)
    v = build(fs, N)(x)[0].astype(np.float64)
    c = x.astype(np.float64) - x.mean(dtype=np.float64)
    _, _, z = signal.stft(c, fs, nperseg=256, boundary=None, padded=False)
    assert_allclose(v[15:142], np.abs(z).mean(1)[1:-1], rtol=1e-4)
    f, p = signal.welch(c, fs, nperseg=N)
    inside = (f > 1) & (f < 2000)
    assert v[142:1192].mean() * 1999 == pytest.approx(p[inside].sum() * fs / N, rel=2e-3)
    spectrum, f = np.abs(np.fft.rfft(c)), np.fft.rfftfreq(N, 1 / fs)
    for i, limit in enumerate((1000, 2000, 3000, 4000)):
        for part, share in ((v[1192:1196], spectrum), (v[1196:1200], spectrum**2)):
            assert part[i] == pytest.approx(share[f > limit].sum() / share.sum(), rel=1e-4, abs=1e-6)


def test_a_sine_lies_above_the_thresholds_below_it():
    """A sine of 2.5 kHz has its power above 1 and 2 kHz and none above 3 and 4 kHz, whatever its level and offset."""
    for a in (1e-12, 1.0, 1e6):
        x = (a * np.sin(2 * np.pi * 2500 * np.arange(N) / FS) + 0.1 * a).astype(np.float32)
        found = high(x)
        assert [round(float(found[f"power_above_{k}000hz"]), 3) for k in (1, 2, 3, 4)] == [1, 1, 0, 0]


def test_a_quarter_of_the_power_from_half_the_amplitude():
    """Lines of amplitudes 2 and 1 below and above 1 kHz: a third of the amplitude, a fifth of the power."""
    t = np.arange(N) / 8192.0
    x = (2 * np.sin(2 * np.pi * 500 * t) + np.sin(2 * np.pi * 1500 * t)).astype(np.float32)
    found = high(x, fs=8192.0)
    assert found["amplitude_above_1000hz"] == pytest.approx(1 / 3, rel=5e-3)
    assert found["power_above_1000hz"] == pytest.approx(0.2, rel=1e-4)
    assert found["power_above_2000hz"] == pytest.approx(0.0, abs=1e-6)


def test_white_noise_is_shared_by_bandwidth():
    """Of white noise up to 5 kHz four fifths of either lie above 1 kHz; at 8 kHz nothing lies above 4 kHz."""
    x = np.random.default_rng(3).standard_normal(N).astype(np.float32)
    found = high(x)
    assert found["amplitude_above_1000hz"] == pytest.approx(0.8, abs=0.02)
    assert found["power_above_1000hz"] == pytest.approx(0.8, abs=0.03)
    assert high(x, fs=8000.0)["power_above_4000hz"] == 0.0


def test_silence_has_no_shares():
    """Silence and a constant give 0 in every spectral value, with `log` the floor."""
    assert not build(FS, N)(np.zeros(N, np.float32)).any()
    assert not np.array(list(high(np.full(N, 2.0, np.float32)).values())).any()
    assert_allclose(build(FS, N, log=True)(np.zeros(N, np.float32))[0, 142:], np.log(1e-20), rtol=1e-6)


@pytest.mark.parametrize(("fs", "n"), [(FS, 4096), (FS, 8193), (7999.0, N), (1000.0, N)])
def test_other_records_are_refused(fs, n):
    """Another length or a lower sampling rate is refused, with both, and with what to take instead."""
    with pytest.raises(
        ValueError, match=rf"8192 samples at 8000 Hz or more.*{n}.*{fs:g} Hz.*time_domain and spectral"
    ):
        build(fs, n)
