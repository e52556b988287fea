"""The 1200 values of a vibration record of 8192 points: time statistics, spectra, and what lies at high frequencies.

x ─┬─► time_domain ─────────────────► 15    all statistics
   ├─► spectral, mode stft_means ───► 127   256-point Hann segments, without DC and Nyquist
   ├─► spectral, mode psd ──────────► 1050  1 to 2000 Hz in bands of equal width
   └─► shares above 1, 2, 3, 4 kHz ─► 8     of the amplitude spectrum, then of the power spectrum
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_agent import fft
from edge_agent.features import spectral, time_domain
from edge_agent.features._checks import flag, number
from edge_agent.features._rows import Rows, guarded_log
from edge_agent.signals import F32

N_SAMPLES, LOWEST_FS_HZ = 8192, 8000.0
PSD_BANDS, PSD_RANGE_HZ = 1050, (1.0, 2000.0)
THRESHOLDS_HZ = (1000.0, 2000.0, 3000.0, 4000.0)
#: (name, first, past the last) of the four parts of the vector.
PARTS = (("time", 0, 15), ("stft", 15, 142), ("psd", 142, 1192), ("high", 1192, 1200))


def build(fs_hz: float, n_samples: int, log: bool = False) -> Vector1200:
    """The vector of (..., 8192) -> (..., 1, 1200); the mean is removed before the spectra.

    log : natural logarithm, floor 1e-20, of everything but mean and skewness

    The last eight: with X the discrete Fourier transform of the record less its mean, `amplitude_above_1000hz` is the
    sum of |X| above 1 kHz over the sum of all |X|, `power_above_1000hz` the same of |X|², each bin of the one-sided
    spectrum counted once; 0 for silence. White noise at fs 10 kHz has 0.8 above 1 kHz in both, and at fs 8 kHz
    nothing lies above 4 kHz.

    ValueError for another number of samples than 8192 and for fs below 8 kHz.
    """
    fs = number("fs_hz", fs_hz, above=0.0)
    if n_samples != N_SAMPLES or fs < LOWEST_FS_HZ:
        raise ValueError(
            f"vector1200 is defined for windows of {N_SAMPLES} samples at {LOWEST_FS_HZ:g} Hz or more; these are "
            f"{n_samples!r} samples at {fs:g} Hz: set the window, or take time_domain and spectral, which fit any"
        )
    return Vector1200(fs, flag("log", log))


class Vector1200(Rows):
    """See `build`."""

    max_energy: ClassVar[float] = float("inf")  # the parts bound extreme windows themselves

    def __init__(self, fs: float, log: bool) -> None:
        self._families = (
            time_domain.build(fs, N_SAMPLES, log=log),
            spectral.build(fs, N_SAMPLES, mode="stft_means", log=log),
            spectral.build(fs, N_SAMPLES, mode="psd", n_bands=PSD_BANDS, range_hz=PSD_RANGE_HZ, log=log),
            HighShares(fs, log),
        )
        super().__init__(N_SAMPLES, [name for family in self._families for name in family.names])

    def row(self, x: F32) -> F32:
        parts: F32 = np.concatenate([family(x)[0] for family in self._families])
        return parts


class HighShares(Rows):
    """Shares of amplitude and power above each threshold, (..., 8192) -> (..., 1, 8); see `build`."""

    def __init__(self, fs: float, log: bool) -> None:
        names = [f"{kind}_above_{f:.0f}hz" for kind in ("amplitude", "power") for f in THRESHOLDS_HZ]
        super().__init__(N_SAMPLES, names)
        # The first bin above each: one exactly on the threshold is not above it.
        self._first = [int(np.floor(f * N_SAMPLES / fs + 1e-9)) + 1 for f in THRESHOLDS_HZ]
        self._log = np.ones(len(names), np.bool_) if log else None
        self._mean = np.full(N_SAMPLES, 1.0 / N_SAMPLES, np.float32)

    def row(self, x: F32) -> F32:
        centred = x - np.dot(x, self._mean)
        peak = float(np.abs(centred).max())
        if peak > 0.0:  # shares have no unit: near 1, squares neither vanish nor overflow
            centred = np.ldexp(centred, -int(np.frexp(peak)[1]))
        spectrum = np.abs(fft.rfft(centred))
        spectrum[0] = 0.0
        v = np.concatenate([self._shares(spectrum), self._shares(np.square(spectrum))])
        return guarded_log(v, self._log).astype(np.float32)

    def _shares(self, spectrum: F32) -> F32:
        total = float(spectrum.sum())
        if total <= 0.0:
            return np.zeros(len(self._first), np.float32)
        return np.array([min(1.0, float(spectrum[k:].sum()) / total) for k in self._first], np.float32)
