"""Three pictures of one vibration record: wavelet transform, short-time Fourier transform, and the 1200-d vector.

    columns (time) ─►  [ cwt: size rows | stft: size rows | context: size rows ]   each in [0, 1]

A network turns (size, 3 * size) into (size, size, 3) itself: `image.reshape(size, 3, size)`, then the block axis last.
"""

from __future__ import annotations

import numpy as np

from edge_agent import fft
from edge_agent.features import scalogram, vector1200
from edge_agent.features._checks import integer, number
from edge_agent.features._rows import Rows, frames, hann
from edge_agent.features.scalogram import pooling, row_names, standard, unit_range
from edge_agent.signals import F32

SEGMENT = 256


def build(fs_hz: float, n_samples: int, size: int = 64, scales: int = 128) -> Image3:
    """Blocks cwt, stft and context side by side: (..., 8192) -> (..., size, 3 * size), time by feature.

    size   : columns (time, `n_frames`) and rows of each of the three pictures, 35 to 512
    scales : of the wavelet, 1 to this

    cwt     : `scalogram` with its defaults: z-scored, pooled magnitude, min-max, ascending frequency
    stft    : magnitude of 256-point periodic Hann segments of the z-scored record, one every 64 samples, without DC;
              area-pooled to size x size, min-max, ascending frequency
    context : `vector1200` written row by row into the picture, from its first column on, then zeros; each of its four
              parts min-max to [0, 1] by itself, the natural logarithm (but of mean and skewness) before that

    Each picture of silence is 0, but for the context, whose values lie on the floor of the logarithm.
    ValueError where `vector1200` is not defined: other than 8192 samples, fs below 8 kHz.
    """
    fs = number("fs_hz", fs_hz, above=0.0)
    smallest = int(np.ceil(np.sqrt(vector1200.PARTS[-1][2])))
    return Image3(
        fs,
        n_samples,
        integer("size", size, at_least=smallest, at_most=512),
        integer("scales", scales, at_least=2, at_most=1024),
    )


class Image3(Rows):
    """See `build`."""

    def __init__(self, fs: float, n_samples: int, size: int, scales: int) -> None:
        self._vector = vector1200.build(fs, n_samples, log=True)
        self._cwt = scalogram.build(fs, n_samples, size=size, scales=scales)
        self._stft = ShortTime(fs, n_samples, size)
        context = [f"context_{i}" for i in range(size)]
        super().__init__(n_samples, [*self._cwt.names, *self._stft.names, *context], size)
        self._size = size

    def row(self, x: F32) -> F32:
        return np.concatenate([self._cwt(x), self._stft(x), self._context(x)], axis=1)

    def _context(self, x: F32) -> F32:
        v = self._vector(x)[0]
        picture = np.zeros((self._size, self._size), np.float32)
        flat = picture.reshape(-1)
        for _, first, stop in vector1200.PARTS:
            part: F32 = v[first:stop].copy()
            flat[first:stop] = unit_range(part)
        return picture


class ShortTime(Rows):
    """Magnitudes of short segments as a picture: (..., n_samples) -> (..., size, size), time by ascending frequency."""

    def __init__(self, fs: float, n_samples: int, size: int) -> None:
        edges = np.linspace(0.5, SEGMENT / 2 + 0.5, size + 1) * (fs / SEGMENT)
        edges[-1] = fs / 2.0  # the bin at fs / 2 stands for its inner half
        super().__init__(n_samples, row_names("stft", edges), size)
        self._window = hann(SEGMENT)
        self._hop = SEGMENT // 4
        n_segments = 1 + (n_samples - SEGMENT) // self._hop
        self._times: F32 = pooling(n_segments, size).astype(np.float32)
        self._bins: F32 = np.ascontiguousarray(pooling(SEGMENT // 2, size).T, np.float32)

    def row(self, x: F32) -> F32:
        z = np.empty_like(x)
        standard(x, z, True)
        windowed: F32 = frames(z, SEGMENT, self._hop) * self._window
        magnitude: F32 = np.abs(fft.rfft(windowed))[:, 1:]
        by_bin: F32 = np.matmul(magnitude, self._bins)
        picture: F32 = np.matmul(self._times, by_bin)
        return unit_range(picture)
