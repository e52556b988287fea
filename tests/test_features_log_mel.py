"""Log-mel and MFSC: physics, librosa as oracle, a naive twin of the deltas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from edge_agent.features.log_mel import build, delta, mel_edges, mel_weights

librosa = pytest.importorskip("librosa")

FS, N = 16000.0, 32000


def clip(seed=0, n=N):
    """Coloured noise and tones between -60 and 0 dB, like a machine."""
    rng = np.random.default_rng(seed)
    x = 0.01 * np.cumsum(rng.standard_normal(n)) / np.sqrt(np.arange(1, n + 1)) + 0.01 * rng.standard_normal(
        n
    )
    for f, a in ((50, 0.3), (1210, 0.05), (5003, 0.01)):
        x += a * np.sin(2 * np.pi * f * np.arange(n) / FS)
    return x.astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "n_mels"), [(1024, 512, 128), (2048, 512, 128), (512, 160, 40)])
@pytest.mark.parametrize("height", ["equal", "area"])
@pytest.mark.parametrize("center", [False, True])
def test_agrees_with_librosa(n_fft, hop, n_mels, height, center):
    """The decibels are librosa's to 1e-3 dB, for both filter heights, with and without padding."""
    x = clip()
    wanted = librosa.power_to_db(
        librosa.feature.melspectrogram(
            y=x.astype(np.float64), sr=FS, n_fft=n_fft, hop_length=hop, n_mels=n_mels, htk=True, center=center,
            norm=None if height == "equal" else "slaney",
        ),
        top_db=None,
    )  # fmt: skip
    got = build(FS, N, n_fft, hop, n_mels, height=height, center=center)(x)
    assert_allclose(got, wanted.T, atol=1e-3, rtol=0)


def test_magnitude_and_band_limits_agree_with_librosa():
    """Filters over magnitudes from 100 to 6000 Hz are librosa's with power=1."""
    x = clip(1)
    wanted = librosa.amplitude_to_db(
        librosa.feature.melspectrogram(
            y=x.astype(np.float64), sr=FS, n_fft=1024, hop_length=512, n_mels=64, fmin=100, fmax=6000, htk=True,
            norm=None, center=False, power=1.0,
        ),
        top_db=None,
    )  # fmt: skip
    got = build(FS, N, 1024, 512, 64, 100.0, 6000.0, spectrum="magnitude")(x)
    assert_allclose(got, wanted.T, atol=1e-3, rtol=0)


def test_preemphasis_agrees_with_librosa():
    """Pre-emphasis is librosa's from the second sample on; the first has no past and is taken as constant."""
    x = clip(2)
    emphasised = librosa.effects.preemphasis(x, coef=0.97)
    emphasised[0] = (1 - np.float32(0.97)) * x[0]
    assert_allclose(build(FS, N, preemphasis=0.97)(x), build(FS, N)(emphasised), atol=1e-3, rtol=0)


def test_a_pure_tone_peaks_in_its_band():
    """A tone is loudest in a filter whose limits hold it, at |FFT|^2 = (A n_fft / 4)^2 in an equal-height one."""
    extractor = build(FS, N)
    for f in (250.0, 1000.0, 4000.0, 7500.0):
        v = extractor((0.5 * np.sin(2 * np.pi * f * np.arange(N) / FS)).astype(np.float32))
        name = extractor.names[int(v.mean(0).argmax())]
        low, high = (float(edge) for edge in name.removeprefix("mel_").removesuffix("hz").split("_"))
        assert low <= f <= high, (f, name)
        # two of the three bins of the Hann main lobe share a filter of full height at most
        assert v.max() == pytest.approx(20 * np.log10(0.5 * 1024 / 4), abs=4.0)


def test_equal_height_filters_peak_at_one_and_equal_area_ones_do_not():
    """Equal height treats high frequencies as low ones; equal area lowers the wide filters up there."""
    edges = mel_edges(40, 0.0, 8000.0)
    equal, area = mel_weights(edges, FS, 16384, False), mel_weights(edges, FS, 16384, True)
    assert_allclose(equal.max(1), 1.0, atol=0.05)
    assert_allclose(area.sum(1) * FS / 16384, 1.0, atol=1e-2)
    assert area[-1].max() < 0.1 * area[0].max()


def test_silence_stands_on_the_floor():
    """Silence is 10 log10(floor) in every band and in the energy, and does not change in time."""
    v = build(FS, N, deltas=2, energy=True)(np.zeros(N, np.float32))
    assert_allclose(v[:, :128], -100.0, atol=1e-4)
    assert_allclose(v[:, 128:-1], 0.0)
    assert_allclose(v[:, -1], -100.0, atol=1e-4)
    assert_allclose(build(FS, N, floor=1e-6)(np.zeros(N, np.float32)), -60.0, atol=1e-4)


def test_twenty_decibels_for_a_tenfold_signal():
    """Ten times the amplitude adds 20 dB to every band and to the energy and leaves the deltas."""
    extractor = build(FS, N, deltas=1, energy=True)
    change = extractor(10 * clip()) - extractor(clip())
    assert_allclose(change[:, :128], 20.0, atol=1e-3)
    assert_allclose(change[:, -1], 20.0, atol=1e-3)
    assert_allclose(change[:, 128:-1], 0.0, atol=1e-3)


def test_energy_is_the_sum_of_squares_of_the_windowed_frame():
    """The energy of frame i is that of Hann times samples i hop to i hop + n_fft."""
    x = clip(3)
    v = build(FS, N, 1024, 512, energy=True)(x)[:, -1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    for i in (0, 7, len(v) - 1):
        naive = np.sum((x[512 * i : 512 * i + 1024].astype(float) * window) ** 2)
        assert v[i] == pytest.approx(10 * np.log10(naive), abs=1e-3)


def naive_delta(c, width):
    n = len(c)
    d = np.zeros_like(c)
    for t in range(n):
        if n == 1:
            continue
        if t - width >= 0 and t + width < n:
            total = sum(k * (c[t + k] - c[t - k]) for k in range(1, width + 1))
            d[t] = total / (2 * sum(k * k for k in range(1, width + 1)))
        elif t < width and t + 1 < n:
            d[t] = c[t + 1] - c[t]
        else:
            d[t] = c[t] - c[t - 1]
    return d


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 30])
def test_deltas_equal_their_naive_twin(n, width):
    """Deltas are the regression inside and one-sided differences at the edges, however few the frames."""
    c = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    assert_allclose(delta(c, width), naive_delta(c, width), atol=1e-6)


def test_delta_of_a_ramp_is_its_slope():
    """What rises by 0.5 a frame has the delta 0.5 everywhere, and the second delta 0."""
    ramp = np.repeat(0.5 * np.arange(20, dtype=np.float32)[:, np.newaxis], 2, axis=1)
    assert_allclose(delta(ramp, 2), 0.5)
    assert_allclose(delta(delta(ramp, 2), 2), 0.0)


def test_mfsc_layout():
    """MFSC of size N is N/3 static, N/3 delta, N/3 delta-delta, and the energy as one more value."""
    extractor = build(FS, N, n_mels=40, deltas=2, energy=True)
    v = extractor(clip())
    assert v.shape == (61, 3 * 40 + 1)
    assert (extractor.names[0][:4], extractor.names[40][:6], extractor.names[80][:7]) == (
        "mel_",
        "d_mel_",
        "dd_mel_",
    )
    assert extractor.names[-1] == "energy"
    assert_allclose(v[:, 40:80], naive_delta(v[:, :40], 2), atol=1e-4)
    assert_allclose(v[:, 80:120], naive_delta(v[:, 40:80], 2), atol=1e-4)


@pytest.mark.parametrize("size", [3, 39, 120, 300])
def test_mfsc_of_a_size_is_its_three_parts_and_the_energy(size):
    """`mfsc: N` is n_mels N/3 with deltas, second deltas and energy: N + 1 values a frame, the same numbers."""
    short = build(FS, N, mfsc=size)
    long = build(FS, N, n_mels=size // 3, deltas=2, energy=True)
    assert short.names == long.names
    assert len(short.names) == size + 1
    np.testing.assert_array_equal(short(clip()), long(clip()))


@pytest.mark.parametrize("fs", [1000.0, 8000.0, 16000.0, 22050.0, 44100.0, 48000.0, 96000.0])
def test_the_defaults_serve_every_sampling_rate(fs):
    """Without parameters the frames last 64 to 128 ms (512 samples where that is longer) and each of the 128 filters catches a bin."""
    extractor = build(fs, int(10 * fs))
    assert len(extractor.names) == 128
    assert 38 <= extractor.n_frames <= 311


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"n_fft": 256}, "catches no FFT bin of 62.5 Hz; lower n_mels 128, or raise n_fft 256"),
        ({"n_fft": 64000}, "n_fft is 64000; it must be at most the window's 32000 samples"),
        ({"fmax": 9000}, "fmax is 9000; it must be at most 8000"),
        ({"fmin": 500, "fmax": 400}, "fmin is 500; it must be below 400"),
        ({"height": "slaney"}, "height is 'slaney'; expected one of equal, area"),
        ({"deltas": 3}, "deltas is 3; it must be from 0 to 2"),
        ({"preemphasis": 1.5}, "preemphasis is 1.5; it must be at most 1"),
        ({"energy": 1}, "energy is 1; expected true or false"),
        ({"mfsc": 40}, "mfsc is 40; it must be a multiple of 3"),
        ({"mfsc": 0}, "mfsc is 0; it must be at least 3"),
        ({"mfsc": 39, "n_mels": 13}, "n_mels is 13 beside mfsc 39"),
        ({"mfsc": 39, "deltas": 0}, "deltas is 0 beside mfsc 39"),
        ({"mfsc": 39, "energy": False}, "energy is False beside mfsc 39"),
    ],
)
def test_wrong_parameters_are_refused(params, says):
    """A frame, band or order that cannot be is refused with name, value and bound."""
    with pytest.raises(ValueError) as caught:
        build(FS, N, **params)
    assert says in str(caught.value)
