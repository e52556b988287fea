"""Spectra of a vibration window: band powers, power spectral density, mean short-time spectrum.

mode "bands"      : power in frequency bands, unit^2          (window by default one segment)
mode "psd"        : power spectral density, unit^2/Hz, bin by bin or as band means
mode "stft_means" : mean magnitude of 256-point segments, unit, 127 values
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_agent import fft
from edge_agent.features._bank import Bank, band_weights
from edge_agent.features._checks import choice, integer, interval, number
from edge_agent.features._rows import Rows, frames, guarded_log, hann, log_mask, sample_count
from edge_agent.signals import F32, F64

MODES = ("bands", "psd", "stft_means")


def build(
    fs_hz: float,
    n_samples: int,
    mode: str = "bands",
    bands: Sequence[Sequence[float]] | None = None,
    n_bands: int | None = None,
    range_hz: Sequence[float] | None = None,
    n_fft: int | None = None,
    overlap: float = 0.5,
    log: bool | Sequence[str] = False,
) -> PowerSpectrum | MeanShortTimeSpectrum:
    """Spectral values of (..., n_samples) -> (..., 1, F); the mean is removed first, silence gives 0.

    bands    : [[lo, hi], ...] in Hz; they may overlap. Not for "stft_means"
    n_bands  : without `bands`: that many of equal width over `range_hz`. Default 8 for "bands"; for "psd" the
               bins themselves, without DC
    range_hz : [lo, hi], default 0 to fs/2
    n_fft    : segment length; default the whole window for "bands" and "psd", 256 for "stft_means"
    overlap  : of neighbouring segments, 0 to below 1
    log      : natural logarithm of all values (true), or of the names listed; floor 1e-20

    "psd" is Welch's estimate: Hann segments (periodic), the mean of each removed, one-sided, as
    scipy.signal.welch(x, fs, nperseg=n_fft) gives it; agrees to 1e-5 of its largest value. With bands, the
    mean over each band; a bin on a limit is shared in proportion, so bands narrower than a bin are defined.
    "bands" is its integral over each band: a sine of amplitude A well inside has A^2 / 2, and bands that
    cover 0 to fs/2 add up to the variance (weighted by the window).
    "stft_means" is the mean over time of abs(scipy.signal.stft(x - mean, nperseg=n_fft, boundary=None,
    padded=False)) without DC and Nyquist: a sine of amplitude A on a bin has A / 2 there and A / 4 beside it.
    """
    fs = number("fs_hz", fs_hz, above=0.0)
    n_samples = sample_count(n_samples, at_least=8)
    mode = choice("mode", mode, MODES)
    default = 256 if mode == "stft_means" else n_samples
    length = integer("n_fft", default if n_fft is None else n_fft, at_least=8, at_most=n_samples)
    hop = length - int(number("overlap", overlap, at_least=0.0, below=1.0) * length)
    if mode == "stft_means":
        for name, value in (("bands", bands), ("n_bands", n_bands), ("range_hz", range_hz)):
            if value is not None:
                raise ValueError(f"{name} is not for mode 'stft_means'; use mode 'bands' or 'psd'")
        return MeanShortTimeSpectrum(fs, n_samples, length, hop, log)
    limits: F64 | None = None
    if bands is not None:
        if n_bands is not None or range_hz is not None:
            raise ValueError("bands stand beside n_bands or range_hz; give one or the other")
        if not isinstance(bands, (list, tuple)) or not bands:
            raise ValueError(f"bands is {bands!r}; expected a list of [lo, hi] in Hz")
        limits = np.array(
            [interval(f"bands[{i}]", b, at_least=0.0, at_most=fs / 2.0) for i, b in enumerate(bands)]
        )
    elif mode == "bands" or n_bands is not None or range_hz is not None:
        lo, hi = interval("range_hz", range_hz or (0.0, fs / 2.0), at_least=0.0, at_most=fs / 2.0)
        count = integer("n_bands", 8 if n_bands is None else n_bands)
        edges = np.linspace(lo, hi, count + 1)
        limits = np.stack([edges[:-1], edges[1:]], 1)
    return PowerSpectrum(fs, n_samples, length, hop, limits, mode == "psd", log)


class PowerSpectrum(Rows):
    """See `build`, modes "bands" and "psd"."""

    def __init__(
        self,
        fs: float,
        n_samples: int,
        n_fft: int,
        hop: int,
        bands: F64 | None,
        density: bool,
        log: bool | Sequence[str],
    ) -> None:
        df = fs / n_fft
        n_bins = n_fft // 2 + 1
        kind = "psd" if density else "band"
        if bands is None:
            names = [f"psd_{k * df:.7g}hz" for k in range(1, n_bins)]
        else:
            names = [f"{kind}_{lo:.6g}_{hi:.6g}hz" for lo, hi in bands]
            if len(set(names)) != len(names):
                raise ValueError(f"bands repeat: {sorted({n for n in names if names.count(n) > 1})[0]}")
        super().__init__(n_samples, names)
        self._log = log_mask(log, names)
        self._n_fft, self._hop = n_fft, hop
        self._window = hann(n_fft)
        self._mean = np.full(n_fft, 1.0 / n_fft, np.float32)
        n_segments = 1 + (n_samples - n_fft) // hop
        scale = np.full(n_bins, 2.0)
        scale[0] = 1.0
        if n_fft % 2 == 0:
            scale[-1] = 1.0
        scale /= fs * float(np.square(self._window, dtype=np.float64).sum()) * n_segments
        self._bank = None
        if bands is not None:
            weights = band_weights(bands, n_bins, df, nyquist=n_fft % 2 == 0) * scale
            if density:
                weights /= bands[:, 1:] - bands[:, :1]
            self._bank = Bank(weights)
        self._scale = scale.astype(np.float32)

    def row(self, x: F32) -> F32:
        segments = frames(x, self._n_fft, self._hop)
        segments = segments - (segments @ self._mean)[:, np.newaxis]
        segments *= self._window
        magnitude = np.abs(fft.rfft(segments))
        power = np.einsum("sk,sk->k", magnitude, magnitude)
        v = power[1:] * self._scale[1:] if self._bank is None else self._bank(power[np.newaxis])[0]
        return guarded_log(v, self._log)


class MeanShortTimeSpectrum(Rows):
    """See `build`, mode "stft_means"."""

    def __init__(self, fs: float, n_samples: int, n_fft: int, hop: int, log: bool | Sequence[str]) -> None:
        if n_fft % 2:
            raise ValueError(f"n_fft is {n_fft}; it must be even for mode 'stft_means'")
        names = [f"stft_{k * fs / n_fft:.7g}hz" for k in range(1, n_fft // 2)]
        super().__init__(n_samples, names)
        self._log = log_mask(log, names)
        self._n_fft, self._hop = n_fft, hop
        self._window = hann(n_fft) / np.float32(n_fft / 2.0)  # sum 1: a magnitude in the sensor's unit
        n_segments = 1 + (n_samples - n_fft) // hop
        self._mean = np.full(n_samples, 1.0 / n_samples, np.float32)
        self._average = np.full(n_segments, 1.0 / n_segments, np.float32)

    def row(self, x: F32) -> F32:
        segments = frames(x - np.dot(x, self._mean), self._n_fft, self._hop) * self._window
        magnitude = np.abs(fft.rfft(segments))
        return guarded_log((self._average @ magnitude)[1:-1], self._log)
