"""The three-channel image: each block is what its source says, in its place."""

from __future__ import annotations

import re

import numpy as np
import pytest
from naive import area_means
from numpy.testing import assert_allclose, assert_array_equal
from scipy import signal

from edge_agent.features import scalogram, vector1200
from edge_agent.features.image3 import build

FS, N = 10000.0, 8192


def record(seed=0):
    """Noise with a hum and two knocks, float32."""
    x = np.random.default_rng(seed).standard_normal(N) + np.sin(2 * np.pi * 50 * np.arange(N) / FS)
    x[[2000, 6000]] += 30
    return x.astype(np.float32)


def blocks(x, size=64, fs=FS):
    """(cwt, stft, context), each (size, size)."""
    return np.split(build(fs, N, size=size)(x), 3, axis=1)


@pytest.mark.parametrize("size", [35, 64, 224])
def test_shape_names_and_range(size):
    """(size, 3 size) in [0, 1]; the names say kind and band, the context's its number."""
    extractor = build(FS, N, size=size)
    v = extractor(record())
    assert v.shape == (size, 3 * size)
    assert v.min() == 0.0
    assert 0.99 < v.max() <= 1.0
    names = extractor.names
    assert all(re.fullmatch(r"cwt_[\d.]+_[\d.]+hz", name) for name in names[:size])
    assert all(re.fullmatch(r"stft_[\d.]+_[\d.]+hz", name) for name in names[size : 2 * size])
    assert names[2 * size :] == tuple(f"context_{i}" for i in range(size))


def test_first_block_is_the_scalogram():
    """The cwt block is the family `scalogram` as it comes by default."""
    assert_array_equal(blocks(record())[0], scalogram.build(FS, N)(record()))


@pytest.mark.parametrize("size", [64, 224])
def test_second_block_is_the_pooled_spectrogram_of_scipy(size):
    """The stft block is scipy.signal.stft's magnitude without DC, area-pooled and stretched to [0, 1]."""
    x = record(1)
    z = (x - x.mean()) / x.std()
    _, _, c = signal.stft(z.astype(np.float64), FS, nperseg=256, noverlap=192, boundary=None, padded=False)
    pooled = area_means(area_means(np.abs(c)[1:], size).T, size)
    wanted = (pooled - pooled.min()) / (pooled.max() - pooled.min())
    assert_allclose(blocks(x, size)[1], wanted, atol=1e-4)


@pytest.mark.parametrize("f", [300.0, 1200.0, 3900.0])
def test_a_sine_is_a_bright_row_of_its_frequency_in_both_pictures(f):
    """The brightest cwt and stft rows are, within one, those whose names hold the sine's frequency."""
    x = np.sin(2 * np.pi * f * np.arange(N) / FS).astype(np.float32)
    names = build(FS, N).names
    for block, start in zip(blocks(x)[:2], (0, 64), strict=True):
        limits = [tuple(map(float, name[:-2].split("_")[1:])) for name in names[start : start + 64]]
        (wanted,) = [i for i, (lo, hi) in enumerate(limits) if lo <= f < hi]
        assert abs(int(block.mean(axis=0).argmax()) - wanted) <= 1


def test_a_knock_is_a_bright_column_in_both_pictures():
    """Two knocks shine in the columns of their times."""
    for block in blocks(record())[:2]:
        assert set(np.argsort(block[:, 32:].mean(axis=1))[-2:]) <= {14, 15, 16, 46, 47}


def test_third_block_is_the_vector_row_by_row():
    """The context block holds the 1200 values one after the other, each part from 0 to 1, in order; then zeros."""
    x = record(2)
    v = vector1200.build(FS, N, log=True)(x)[0]
    context = blocks(x)[2].reshape(-1)
    assert not context[1200:].any()
    for _, first, stop in vector1200.PARTS:
        part = context[first:stop]
        assert part.min() == 0.0
        assert part.max() == pytest.approx(1.0, abs=1e-6)
        wanted = (v[first:stop] - v[first:stop].min()) / np.ptp(v[first:stop])
        assert_allclose(part, wanted, atol=1e-5)


def test_silence_is_black():
    """Silence has no pattern in the two pictures; its context is the same each time and finite."""
    cwt, stft, context = blocks(np.zeros(N, np.float32))
    assert not cwt.any()
    assert not stft.any()
    assert np.isfinite(context).all()


@pytest.mark.parametrize(
    ("fs", "n", "params", "says"),
    [
        (FS, 4096, {}, "8192 samples"),
        (4000.0, N, {}, "4000 Hz"),
        (FS, N, {"size": 34}, "size is 34; it must be from 35 to 512"),
        (FS, N, {"scales": 1}, "scales is 1"),
    ],
)
def test_wrong_parameters_are_refused(fs, n, params, says):
    """Records without a vector and pictures too small for it are refused with value and bound."""
    with pytest.raises(ValueError, match=says):
        build(fs, n, **params)
