"""Morlet scalogram: how strongly each frequency sounds at each time, as an image; and the transform behind it.

x ─► z-score ─► FFT ─► × wavelet of each scale ─► inverse FFT, at the rate that scale needs ─► |.| ─► mean over columns
                       (PyWavelets' own `morl`)                                                        and over rows

`cwt` is pywt.cwt(x, scales, "morl") in full; the family is its magnitude, area-pooled to a picture, without ever
making the full-size one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from edge_agent import fft
from edge_agent.features._bank import Bank
from edge_agent.features._checks import choice, flag, integer, number
from edge_agent.features._rows import Rows, guarded_log, sample_count
from edge_agent.signals import F32, F64

#: Cycles a sample of the `morl` wavelet at scale 1, as pywt.central_frequency("morl") gives it.
CENTRE = 0.8125
#: Points of pywt's tabulated wavelet as powers of two: the default of pywt.cwt.
_PRECISION = 12
#: Scales transformed in one call of `cwt`: their products (1.2 MiB for 8192 samples) stay in the cache.
_BLOCK = 32
#: The pooled image takes |c| of scale s only every 1, 2, 4 or 8 samples: every 2 from scale 9 on, and so forth. A
#: half-wave of the wavelet lasts 0.6 s samples; where a column holds many of them, few samples of each do. Found by
#: looking at the correlation that `build` promises: wider steps save 0.1 ms and lose it. Whole fours of scales
#: share a step, since pypocketfft transforms four at once.
_STEPS_FROM, _STEPS_FROM_WIDE, _WIDE = (9, 25, 65), (9, 17, 33), 100.0
_LONGEST_STEP = 8
#: Bins that share one value in the estimate of what leaks through the steps of pywt's table.
_BINS = 8
#: Below this range of values a picture is flat: rounding, not a pattern.
_FLAT = 1e-30


def build(
    fs_hz: float,
    n_samples: int,
    size: int = 64,
    scales: int = 128,
    z_score: bool = True,
    normalise: str = "minmax",
    log: bool = False,
) -> Scalogram:
    """Pooled magnitude of the Morlet transform: (..., n_samples) -> (..., size, size), time by ascending frequency.

    size      : columns (time, `n_frames`) and rows (frequency, features) of the picture
    scales    : the wavelet's scales 1 to this; the centre frequency of scale s is 0.8125 fs / s
    z_score   : mean 0 and standard deviation 1 for each window; false: only the mean is removed, so that with
                normalise "none" the level stays, in the sensor's unit
    normalise : "minmax" maps each window's picture to [0, 1]; "none" leaves the magnitudes
    log       : natural logarithm, floor 1e-20, before `normalise`

    Each pixel is the mean of abs(pywt.cwt(x, 1..scales, "morl")) over its share of scales and samples; a scale or
    sample on a limit is shared in proportion. The correlation with that picture is above 0.999 for vibration,
    noise and impulses, and above 0.995 for a single high tone, whose traces in pywt's low rows (they come from its
    tabulated wavelet, not from the signal) are estimated and not computed.

    Rows are named by the frequencies of their scales. The sampled wavelet of scale 1, nominally 0.81 fs, answers
    near 0.48 fs, so the rows of scales below 2 share what lies between 0.41 fs and fs / 2. Silence gives 0
    everywhere (with log and normalise "none" -46.05).
    """
    fs = number("fs_hz", fs_hz, above=0.0)
    n_samples = sample_count(n_samples, at_least=16)
    size = integer("size", size, at_least=2, at_most=n_samples)
    count = integer("scales", scales, at_least=2, at_most=n_samples)
    return Scalogram(
        fs,
        n_samples,
        size,
        count,
        flag("z_score", z_score),
        choice("normalise", normalise, ("minmax", "none")) == "minmax",
        flag("log", log),
    )


def cwt(x: F32, scales: Sequence[float]) -> F32:
    """(..., n) -> (..., n_scales, n) float32: the coefficients of pywt.cwt(x, scales, "morl"), to 1e-6 of the largest.

    The wavelets' spectra are kept for the last scales and lengths (4.5 MiB for 128 scales of 8192 samples). The
    result is a view into a buffer somewhat longer in time; np.ascontiguousarray makes a copy of its own size.
    A sine of amplitude A and frequency 0.8125 / s has about A sqrt(pi s / 2) as its amplitude at scale s.
    """
    if x.ndim < 1 or x.shape[-1] < 2:
        raise ValueError(f"x has shape {x.shape}; expected (..., n) with at least 2 samples")
    wanted = tuple(float(s) for s in np.atleast_1d(np.asarray(scales, np.float64)))
    n = x.shape[-1]
    length, bank = _full_bank(wanted, n)
    out = np.empty((*x.shape[:-1], len(wanted), length), np.float32)
    padded = np.zeros(length, np.float32)
    product = np.empty((min(_BLOCK, len(wanted)), bank.shape[1]), np.complex64)
    for index in np.ndindex(x.shape[:-1]):
        padded[:n] = x[index]
        spectrum = fft.rfft(padded)
        for start in range(0, len(wanted), _BLOCK):
            part = bank[start : start + _BLOCK]
            np.multiply(part, spectrum, out=product[: len(part)])
            fft.irfft(product[: len(part)], out[index][start : start + _BLOCK])
    return out[..., :n]


@lru_cache(maxsize=2)
def _full_bank(scales: tuple[float, ...], n: int) -> tuple[int, fft.C64]:
    """(FFT length, (n_scales, bins) spectra of the wavelets divided by that length)."""
    wavelets = [_wavelet(s) for s in scales]
    length = _fast_length(n, wavelets, 1)
    bank = np.empty((len(scales), length // 2 + 1), np.complex64)
    for row, taps in zip(bank, wavelets, strict=True):
        row[:] = _spectrum(taps, length, n) / length
    return length, bank


@lru_cache(maxsize=1)
def _integral() -> tuple[F64, float]:
    """pywt's tabulated integral of the `morl` wavelet from -8 to 8, and the width of a step of the table."""
    import pywt  # only where a scalogram is made: a few MiB that other sensors do without

    integral, x = pywt.integrate_wavelet(pywt.ContinuousWavelet("morl"), precision=_PRECISION)
    return np.asarray(integral, np.float64), float(x[1] - x[0])


def _wavelet(scale: float) -> F64:
    """Taps by which pywt.cwt convolves for one scale: differences of the sampled integral, times -sqrt(scale).

    pywt convolves with the integral and takes differences of the result; convolving with the differences is the
    same. The integral is sampled at the last table entry before each point, as there.
    """
    integral, step = _integral()
    if not (math.isfinite(scale) and scale > 0.0):
        raise ValueError(f"scales has {scale!r}; every scale must be above 0")
    support = step * (integral.size - 1)
    index = (np.arange(scale * support + 1) / (scale * step)).astype(int)
    sampled = integral[index[index < integral.size]][::-1]
    if sampled.size < 2:
        raise ValueError(
            f"scales has {scale:g}, too small: its wavelet falls between two samples; give 1 or more"
        )
    return np.asarray(-math.sqrt(scale) * np.diff(sampled, prepend=0.0, append=0.0))


def _fast_length(n: int, wavelets: Sequence[F64], multiple: int) -> int:
    """FFT length, a product of 2, 3 and 5, at which the wavelets' ends reach around the window's ends only outside it.

    The very last tap (below 1e-16) may reach one sample too far: that makes 9216 of 9217 for 8192 samples.
    """
    longest = max(taps.size for taps in wavelets)
    length = n + min((longest - 1) // 2, n - 1)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and length % multiple == 0:
            return length
        length += 1


def _spectrum(taps: F64, length: int, n: int) -> fft.C128:
    """(length // 2 + 1,) complex: the taps' transform, turned so that sample 0 of the result is that of the window.

    Taps further than a window of n samples from there touch none of it, and are left out.
    """
    first = (taps.size - 1) // 2  # pywt drops the first difference, then half of what is too long
    low, high = max(0, first - n + 1), min(taps.size, first + n)
    padded = np.zeros(length)
    np.add.at(padded, (np.arange(low, high) - first) % length, taps[low:high])
    return np.fft.rfft(padded)


def pooling(n: float, size: int) -> F64:
    """(size, ceil(n)) weights that average `n` unit samples over `size` equal areas; each row adds up to 1."""
    edges = np.linspace(0.0, n, size + 1)
    k = np.arange(math.ceil(n))
    overlap = np.minimum(edges[1:, np.newaxis], k + 1) - np.maximum(edges[:-1, np.newaxis], k)
    return np.asarray(np.maximum(overlap, 0.0) * (size / n))


class Pool:
    """Means over equal areas of the last axis, (rows, count) -> (rows, size), for `n` / `step` samples."""

    def __init__(self, n: int, step: int, size: int) -> None:
        self.count = -(-n // step)
        weights = pooling(n / step, size)
        self._size = size
        blocks = math.gcd(n // step, size) if n % step == 0 else 1
        # Where areas and samples coincide every so often, one small matrix serves all stretches between.
        self._small: F32 | None = None
        if size // blocks <= 16:
            small = weights[: size // blocks, : self.count // blocks]
            self._small = np.ascontiguousarray(small.T, np.float32)
        else:
            self._bank = Bank(weights)

    def __call__(self, v: F32) -> F32:
        """`v` is contiguous."""
        if self._small is None:
            return self._bank(v)
        return (v.reshape(-1, self._small.shape[0]) @ self._small).reshape(v.shape[0], self._size)


class _Group:
    """Neighbouring scales whose coefficients are taken every `step` samples, and their means over columns."""

    def __init__(self, wavelets: Sequence[F64], length: int, n: int, step: int, size: int) -> None:
        self.length = length // step
        bins = self.length // 2 + 1
        # A decimated sample stands for `step` samples: it is taken in their middle.
        middle = np.exp(2j * np.pi * np.arange(bins) / length * ((step - 1) / 2.0)) / length
        self.bank = np.empty((len(wavelets), bins), np.complex64)
        for row, taps in zip(self.bank, wavelets, strict=True):
            row[:] = _spectrum(taps, length, n)[:bins] * middle
        self.pool = Pool(n, step, size)

    def __call__(self, spectrum: fft.C64) -> F32:
        """(bins of the whole window,) -> (scales, columns), mean magnitudes."""
        product = self.bank * spectrum[: self.bank.shape[1]]
        c = fft.irfft(product, np.empty((len(product), self.length), np.float32))
        return self.pool(np.abs(c[:, : self.pool.count]))


class _Pair:
    """Rows of which each lies in one scale or two: a sum of two is less work than the product with a matrix."""

    def __init__(self, weights: F32) -> None:
        self._first = weights.argmax(1)
        rest = weights.copy()
        rest[np.arange(len(rest)), self._first] = 0.0
        self._second = rest.argmax(1)
        self._share = weights[np.arange(len(weights)), self._first][:, np.newaxis]
        self._rest = rest.max(1)[:, np.newaxis]

    def __call__(self, by_scale: F32) -> F32:
        """(scales, columns) -> (rows, columns)."""
        image: F32 = by_scale[self._first]
        image *= self._share
        second = by_scale[self._second]
        second *= self._rest
        image += second
        return image


class _Leakage:
    """What the steps of pywt's table let through, far above each wavelet's own band, in the mean over columns.

    pywt looks its wavelet up in a table of 4096 points without interpolating. From scale 30 on those steps are a
    comb of further pass-bands, 4 % of the wavelet's energy at scale 100; behind a strong high tone they are what
    one sees in the low rows of pywt's picture. Their output b is fast against the coefficient a, and unrelated to it:
    with Gaussian values of either, mean |a + b| = sqrt(mean |a|^2 + 2 / pi mean b^2). Mean b^2 of a scale follows
    from the window's power spectrum, its course in time from the window's power, smoothed as the wavelet does.
    """

    def __init__(self, wavelets: Sequence[F64], steps: Sequence[int], length: int, n: int, size: int) -> None:
        bands = length // 2 // _BINS
        self._gain: F32 = np.zeros((len(wavelets), bands), np.float32)
        for row, taps, step in zip(self._gain, wavelets, steps, strict=True):
            power = np.square(np.abs(_spectrum(taps, length, n)[:-1]))
            power[: length // step // 2] = 0.0  # these bins are in the decimated coefficients
            row[:] = power.reshape(bands, _BINS).mean(1) * (2.0 / (length * n) * 2.0 / math.pi)
        self._pool = Pool(n, 1, size)
        at = (np.arange(size) + 0.5) * (n / size)
        near = np.exp(-0.5 * np.square((at[:, np.newaxis] - at) / (len(wavelets) / 2.0)))
        self._smooth: F32 = (near / near.sum(1, keepdims=True)).astype(np.float32)

    def __call__(self, x: F32, spectrum: fft.C64, by_scale: F32) -> F32:
        """(scales, columns) mean magnitudes without -> with leakage; x is the window behind `spectrum`."""
        course = self._smooth @ self._pool(np.square(x)[np.newaxis])[0]
        total = float(course.sum())
        if total < _FLAT:
            return by_scale
        course *= np.float32(course.size / total)
        power = np.square(spectrum.real[:-1])
        power += np.square(spectrum.imag[:-1])
        level = self._gain @ power.reshape(-1, _BINS).sum(1)
        by_scale *= by_scale
        by_scale += np.multiply.outer(level, course)
        return np.sqrt(by_scale, out=by_scale)


class Scalogram(Rows):
    """See `build`."""

    def __init__(
        self, fs: float, n_samples: int, size: int, scales: int, z_score: bool, minmax: bool, log: bool
    ) -> None:
        super().__init__(n_samples, row_names("cwt", frequencies(fs, scales, size)), size)
        self._z_score, self._minmax = z_score, minmax
        self._log = np.ones(1, np.bool_) if log else None
        wavelets = [_wavelet(float(s)) for s in range(1, scales + 1)]
        self._length = _fast_length(n_samples, wavelets, 2 * _LONGEST_STEP)
        steps = [_step(s, n_samples / size) for s in range(1, scales + 1)]
        self._groups = [
            _Group([w for w, own in zip(wavelets, steps, strict=True) if own == step],
                   self._length, n_samples, step, size)
            for step in sorted(set(steps))
        ]  # fmt: skip
        self._leakage = _Leakage(wavelets, steps, self._length, n_samples, size)
        # Scales ascend and frequencies ascend against them: the rows are turned while they are pooled.
        self._rows = pooling(scales, size)[::-1].astype(np.float32)
        self._pair = _Pair(self._rows) if size >= scales else None

    def row(self, x: F32) -> F32:
        padded = np.zeros(self._length, np.float32)
        window = padded[: self.n_samples]
        standard(x, window, self._z_score)
        spectrum = fft.rfft(padded)
        by_scale: F32 = np.concatenate([group(spectrum) for group in self._groups])
        by_scale = self._leakage(window, spectrum, by_scale)
        image = (self._rows @ by_scale if self._pair is None else self._pair(by_scale)).T
        logged: F32 = guarded_log(image, self._log)
        return unit_range(logged) if self._minmax else logged


def _step(scale: int, column: float) -> int:
    """Samples between the coefficients of one scale, a power of two; at least four of them in a column."""
    step = 1
    for start in _STEPS_FROM_WIDE if column >= _WIDE else _STEPS_FROM:
        if scale >= start and 8 * step <= column:
            step *= 2
    return step


def frequencies(fs: float, scales: int, size: int) -> F64:
    """(size + 1,) Hz, ascending: the limits of the rows into which scales 1 to `scales` are pooled.

    Scale s reaches from s - 1/2 to s + 1/2; the frequency of u is 0.8125 fs / u down to u = 2 and goes straight
    from there to fs / 2 at u = 1/2.
    """
    u = np.linspace(scales, 0.0, size + 1) + 0.5
    nominal = CENTRE / np.maximum(u, 2.0)
    return np.asarray(fs * (nominal + (0.5 - CENTRE / 2.0) * np.maximum(2.0 - u, 0.0) / 1.5))


def row_names(kind: str, edges: F64) -> list[str]:
    """`kind_lo_hihz` of each row, in whole Hz where that tells them apart."""
    limits = list(itertools.pairwise(edges))
    names = [f"{kind}_{lo:.0f}_{hi:.0f}hz" for lo, hi in limits]
    if len(set(names)) != len(names) or any(f"{lo:.0f}" == f"{hi:.0f}" for lo, hi in limits):
        names = [f"{kind}_{lo:.10g}_{hi:.10g}hz" for lo, hi in limits]
    return names


def standard(x: F32, out: F32, z_score: bool) -> None:
    """`x` less its mean and, with `z_score`, divided by its standard deviation; a constant gives 0."""
    ones = np.full(x.size, 1.0 / x.size, np.float32)
    first = np.dot(x, ones)
    np.subtract(x, first, out=out)
    out -= np.dot(out, ones)  # what rounding left of the mean
    spread = math.sqrt(float(np.dot(out, out)) / x.size)
    if spread <= 1e-7 * abs(float(first)) or spread < _FLAT:
        out[:] = 0.0
    elif z_score:
        out *= np.float32(1.0 / spread)


def unit_range(image: F32) -> F32:
    """(v - min) / (max - min), in [0, 1]; 0 everywhere for a flat one. May change `image`."""
    low, high = float(image.min()), float(image.max())
    if high - low <= max(_FLAT, 1e-6 * max(abs(low), abs(high))):
        return np.zeros_like(image)
    span = np.float32(high) - np.float32(low)
    scale = np.float32(1.0) / span
    if span * scale > 1.0:
        scale = np.nextafter(scale, np.float32(0.0))
    image -= np.float32(low)
    image *= scale
    return image
