"""Envelope spectrum: amplitudes at which a bearing's defects ring its resonance.

x ─► band-pass [lo, hi] ─► |analytic signal| ─► Hann, spectrum ─► amplitude at n * BPFO, n * BPFI, ...
     resonance, some kHz     one blow after      blows a second     summed over the first harmonics
                             the other
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_agent import fft
from edge_agent.bearings import Bearing
from edge_agent.features._checks import choice, flag, integer, interval, number
from edge_agent.features._rows import Rows, guarded_log, hann, log_mask, sample_count
from edge_agent.signals import F32

#: Parameters with which the house checks build this family: the bearing of NASA's IMS rig.
EXAMPLE: Mapping[str, Any] = {
    "bearing": {"n_balls": 16, "ball_mm": 8.407, "pitch_mm": 71.501, "contact_deg": 15.17},
    "speed_hz": 2000 / 60,
    "band": [2000.0, 6000.0],
}


def build(
    fs_hz: float,
    n_samples: int,
    band: Sequence[float] | None = None,
    bearing: Mapping[str, float] | None = None,
    speed_hz: float | None = None,
    frequencies_hz: Mapping[str, float] | None = None,
    n_harmonics: int = 3,
    tolerance: float = 0.02,
    pick: str = "max",
    relative: bool = False,
    log: bool | Sequence[str] = False,
) -> Envelope:
    """Envelope amplitudes of (..., n_samples) -> (..., 1, F), in the sensor's unit; silence gives 0.

    band           : [lo, hi] Hz of the resonance; default fs/8 to fs/2
    bearing        : {n_balls, ball_mm, pitch_mm, contact_deg} with speed_hz (turns a second) gives
                     bpfo_envelope, bpfi_envelope, bsf_envelope, ftf_envelope. bsf_envelope is taken at
                     2 * BSF, where a damaged ball strikes (twice a spin); the others at their own frequency
    frequencies_hz : {name: f} further modulations, each gives name_envelope; with or without a bearing
    n_harmonics    : multiples 1 to n are summed; those that the envelope cannot hold are left out
    tolerance      : slip and speed error; the search is within max(tolerance * f, one bin) of each multiple
    pick           : "max" amplitude within the tolerance, or the "sum" of all bins there
    relative       : divided by the median amplitude up to the highest bin searched: how far the line stands
                     out of the floor. White noise gives about n_harmonics times 1 to 3; silence 0
    log            : natural logarithm of all values (true), or of the names listed; floor 1e-20

    The envelope is that of abs(scipy.signal.hilbert(x)) after an ideal band-pass (bins outside the band set
    to zero), its mean removed; a carrier of amplitude 1 modulated by 1 + m cos(2 pi f t) has m at f, whatever
    the carrier. Hann window, amplitude scale: up to 15 % less between two bins (scalloping).
    """
    fs = number("fs_hz", fs_hz, above=0.0)
    n = sample_count(n_samples, at_least=16)
    df = fs / n
    lo, hi = interval("band", band or (fs / 8.0, fs / 2.0), at_least=0.0, at_most=fs / 2.0)
    lines: dict[str, float] = {}
    if bearing is not None:
        if speed_hz is None:
            raise ValueError("bearing stands without speed_hz; give the shaft's turns a second (rpm / 60)")
        known = Bearing.from_mapping(bearing).frequencies(speed_hz)
        lines = {"bpfo": known.bpfo, "bpfi": known.bpfi, "bsf": 2.0 * known.bsf, "ftf": known.ftf}
    elif speed_hz is not None:
        raise ValueError("speed_hz stands without bearing; give its geometry, or frequencies_hz alone")
    if frequencies_hz is not None and not isinstance(frequencies_hz, Mapping):
        raise ValueError(f"frequencies_hz is {frequencies_hz!r}; expected a mapping from names to Hz")
    for name, f in (frequencies_hz or {}).items():
        if name in lines:
            raise ValueError(f"frequencies_hz has {name!r}, which the bearing gives already")
        lines[name] = number(f"frequencies_hz.{name}", f, above=0.0)
    if not lines:
        raise ValueError("envelope needs bearing with speed_hz, or frequencies_hz")
    for name, f in lines.items():
        if f < 2.0 * df:
            raise ValueError(
                f"{name} is {f:.4g} Hz, but a window of {n} samples at {fs:g} Hz resolves no less than "
                f"{2.0 * df:.4g} Hz; take a longer window"
            )
        if f > hi - lo:
            raise ValueError(
                f"{name} is {f:.4g} Hz, but a band of {lo:g} to {hi:g} Hz carries no modulation above its "
                f"width of {hi - lo:g} Hz; widen the band"
            )
    harmonics = integer("n_harmonics", n_harmonics, at_most=100)
    width = number("tolerance", tolerance, at_least=0.0, below=0.5)
    searches: list[list[tuple[int, int]]] = []
    for f in lines.values():
        kept = [h * f for h in range(1, harmonics + 1) if h * f <= min(hi - lo, fs / 2.0 - 2.0 * df)]
        halves = [max(width * g, df) for g in kept]
        searches.append(
            [
                (max(1, math.ceil((g - half) / df)), min(n // 2, math.floor((g + half) / df)) + 1)
                for g, half in zip(kept, halves, strict=True)
            ]
        )
    names = [f"{name}_envelope" for name in lines]
    total = choice("pick", pick, ("max", "sum")) == "sum"
    return Envelope(fs, n, (lo, hi), names, searches, total, flag("relative", relative), log)


class Envelope(Rows):
    """See `build`.

    One FFT of 8192 points is slow beside four of 2048 that share the processor's vector lanes. The
    envelope is therefore computed as four interleaved series (samples 4m, 4m + 1, ...), each by an
    inverse FFT of a quarter of the length from phase-shifted bins; only its low bins are put together again.
    A shift in frequency does not change a magnitude, so the band may start at bin 0.
    """

    def __init__(
        self,
        fs: float,
        n_samples: int,
        band: tuple[float, float],
        names: Sequence[str],
        searches: Sequence[Sequence[tuple[int, int]]],
        total: bool,
        relative: bool,
        log: bool | Sequence[str],
    ) -> None:
        super().__init__(n_samples, names)
        self._log = log_mask(log, names)
        self._relative = relative
        df = fs / n_samples
        first = max(1, math.ceil(band[0] / df - 1e-9))
        last = min((n_samples - 1) // 2, math.floor(band[1] / df + 1e-9))
        if last <= first:
            raise ValueError(f"band {band[0]:g} to {band[1]:g} Hz holds no two bins of {df:.4g} Hz; widen it")
        self._band = slice(first, last + 1)
        bounds = np.array([b for one in searches for b in one])
        highest = int(bounds.max()) + 1  # one bin more: `reduceat` needs an element after the last search
        interleaved = n_samples % 8 == 0 and highest <= n_samples // 8 + 1
        self._phases = phases = 4 if interleaved else 1
        self._length = length = n_samples // phases
        highest = min(highest, length // 2 + 1)
        bounds = np.minimum(bounds, highest - 1)
        self._searches = bounds.ravel()
        self._groups = np.cumsum([0] + [len(one) for one in searches[:-1]])
        self._reduce = np.add.reduceat if total else np.maximum.reduceat
        phase = np.arange(phases)[:, np.newaxis]
        turn = 2j * np.pi * phase / n_samples
        self._up = (2.0 / n_samples * np.exp(turn * np.arange(last + 1 - first))).astype(np.complex64)
        self._mean = np.full(n_samples, 1.0 / n_samples, np.float32)
        window = hann(n_samples)
        self._window = np.ascontiguousarray(window.reshape(length, phases).T)
        scale = 2.0 / float(window.sum(dtype=np.float64))
        self._down = (scale * np.exp(-turn * np.arange(highest))).astype(np.complex64)

    def envelope(self, x: F32) -> F32:
        """(n_samples,) -> (phases, n_samples // phases): sample phases * m + p of the envelope at [p, m]."""
        bins = fft.rfft(x)[self._band]
        shifted = np.zeros((self._phases, self._length), np.complex64)
        low = min(self._length, bins.size)
        np.multiply(bins[:low], self._up[:, :low], out=shifted[:, :low])
        for start in range(low, bins.size, self._length):  # a band wider than fs / 4 folds over
            part = slice(start, min(start + self._length, bins.size))
            shifted[:, : part.stop - start] += bins[part] * self._up[:, part]
        return np.asarray(np.abs(fft.ifft(shifted)))

    def spectrum(self, x: F32) -> F32:
        """(n_samples,) -> amplitudes of the envelope at bins 0, 1, ... of fs / n_samples, in the unit of x."""
        e = self.envelope(x)
        e -= np.dot(e.ravel(), self._mean)
        e *= self._window
        parts = fft.rfft(e)[:, : self._down.shape[1]]
        return np.asarray(np.abs(np.einsum("pk,pk->k", self._down, parts)))

    def row(self, x: F32) -> F32:
        amplitude = self.spectrum(x)
        lines = np.add.reduceat(self._reduce(amplitude, self._searches)[::2], self._groups)
        if self._relative:
            floor = float(np.median(amplitude[1:]))
            lines = lines / floor if floor > 0.0 else np.zeros_like(lines)
        return guarded_log(lines, self._log)
