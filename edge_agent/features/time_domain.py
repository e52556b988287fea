"""The 15 classical statistics of a vibration window, in a few passes over float32 samples.

The mean absolute value of an LSTM autoencoder on run-to-failure snapshots (one value a channel and
snapshot), and every other scalar condition indicator, is this family with `names`:
`{"kind": "time_domain", "params": {"names": ["abs_mean"]}}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from edge_agent.features._checks import flag
from edge_agent.features._rows import Rows, guarded_log, log_mask, sample_count
from edge_agent.signals import F32, F64

#: In the order in which they are returned by default.
STATISTICS = (
    "mean",
    "std",
    "rms",
    "abs_mean",
    "sqrt_amplitude",
    "peak",
    "peak_to_peak",
    "skewness",
    "kurtosis",
    "crest_factor",
    "shape_factor",
    "impulse_factor",
    "clearance_factor",
    "energy",
    "zero_crossing_rate",
)
_SIGNED = ("mean", "skewness")
_LARGEST = float(np.finfo(np.float32).max)


def build(
    fs_hz: float,
    n_samples: int,
    names: Sequence[str] | None = None,
    log: bool | Sequence[str] = False,
    remove_dc: bool = False,
) -> TimeDomain:
    """Time-domain statistics of (..., n_samples) -> (..., 1, len(names)).

    names     : which of `STATISTICS`, in this order; all 15 by default
    log       : natural logarithm of all but mean and skewness (true), or of those listed
    remove_dc : subtract the mean before all but the mean itself; for sensors that also see gravity or bias

    With x the samples in the sensor's unit and n their number:

    mean, std             : std with 1/n, as in the other moments
    rms, energy           : sqrt(sum x^2 / n) and sum x^2 (unit^2 samples); a sine of amplitude 1 has rms 0.7071
    abs_mean              : sum |x| / n; sqrt_amplitude: (sum sqrt|x| / n)^2
    peak, peak_to_peak    : max |x| and max x - min x
    skewness, kurtosis    : third and fourth standardised moment; Pearson: Gaussian 3, sine 1.5
    crest_factor          : peak / rms; a sine has sqrt 2, impulses of a damaged bearing far more
    shape_factor          : rms / abs_mean; impulse_factor: peak / abs_mean
    clearance_factor      : peak / sqrt_amplitude
    zero_crossing_rate    : sign changes / (n - 1); a sine of f Hz has 2 f / fs

    A quotient whose denominator vanishes is 0: silence gives 0 everywhere, a constant no skewness or kurtosis.
    Agrees with numpy and scipy.stats in float64 to 1e-5 relative, at any scale from 1e-38 to 1e38.
    """
    if names is not None and (not isinstance(names, (list, tuple)) or not names):
        raise ValueError(f"names is {names!r}; expected a list of statistics: {', '.join(STATISTICS)}")
    chosen = STATISTICS if names is None else tuple(names)
    for name in chosen:
        if name not in STATISTICS:
            raise ValueError(f"names has {name!r}; known: {', '.join(STATISTICS)}")
        if chosen.count(name) > 1:
            raise ValueError(f"names has {name!r} twice")
    return TimeDomain(sample_count(n_samples), chosen, log, flag("remove_dc", remove_dc))


class TimeDomain(Rows):
    """See `build`."""

    max_energy: ClassVar[float] = math.inf  # scales extreme windows itself

    def __init__(
        self, n_samples: int, names: Sequence[str], log: bool | Sequence[str], remove_dc: bool
    ) -> None:
        super().__init__(n_samples, names)
        self._pick = [STATISTICS.index(name) for name in names]
        self._log = log_mask(log, names, _SIGNED)
        self._remove_dc = remove_dc
        self._ones = np.ones(n_samples, np.float32)

    def row(self, x: F32) -> F32:
        n, ones = self.n_samples, self._ones
        top, low = float(x.max()), float(x.min())
        exponent = 0
        peak = max(top, -low)
        if peak > 1e6 or 0.0 < peak < 1e-3:
            # fourth powers of such samples leave float32; a power of two changes no digit
            exponent = math.frexp(peak)[1]
            x = np.ldexp(x, -exponent)
            top, low, peak = (math.ldexp(v, -exponent) for v in (top, low, peak))
        # The mean in two steps, then moments about the first step corrected by the second: float32 sums
        # keep their accuracy under an offset a thousand times larger than the vibration.
        first = float(np.float32(np.dot(x, ones) / n))
        c = x - np.float32(first)
        rest = float(np.dot(c, ones)) / n
        mean = first + rest
        if self._remove_dc:
            c -= np.float32(rest)
            x, rest, peak = c, 0.0, max(top - mean, mean - low)
        square = c * c
        m2 = float(np.dot(c, c)) / n
        m3 = float(np.dot(square, c)) / n
        m4 = float(np.dot(square, square)) / n
        variance = m2 - rest * rest
        if variance <= (1e-7 * mean) ** 2:  # the rounding of a constant is not a vibration
            variance = skewness = kurtosis = 0.0
        else:
            skewness = (m3 - 3.0 * rest * m2 + 2.0 * rest**3) / variance**1.5
            kurtosis = (m4 - 4.0 * rest * m3 + 6.0 * rest * rest * m2 - 3.0 * rest**4) / variance**2
        power = variance if self._remove_dc else variance + mean * mean
        rms = math.sqrt(power)
        magnitude = np.abs(x)
        abs_mean = float(np.dot(magnitude, ones)) / n
        sqrt_amplitude = (float(np.dot(np.sqrt(magnitude, out=magnitude), ones)) / n) ** 2
        below = x < 0.0
        crossings = np.count_nonzero(np.not_equal(below[1:], below[:-1]))
        unit = math.ldexp(1.0, exponent)
        values = (
            mean * unit,
            math.sqrt(variance) * unit,
            rms * unit,
            abs_mean * unit,
            sqrt_amplitude * unit,
            peak * unit,
            (top - low) * unit,
            skewness,
            kurtosis,
            peak / rms if rms else 0.0,
            rms / abs_mean if abs_mean else 0.0,
            peak / abs_mean if abs_mean else 0.0,
            peak / sqrt_amplitude if sqrt_amplitude else 0.0,
            n * power * unit * unit,
            crossings / (n - 1),
        )
        picked = np.array([values[i] for i in self._pick])
        bounded: F64 = np.clip(guarded_log(picked, self._log), -_LARGEST, _LARGEST)
        return bounded.astype(np.float32)
