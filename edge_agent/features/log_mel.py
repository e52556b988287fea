"""Log-mel spectrogram and MFSC (mel-frequency spectral coefficients) of a sound or vibration window.

x ─► pre-emphasis ─► Hann frames ─► |FFT|^2 ─► mel filters ─► dB ─► [static, delta, delta-delta, energy]
"""

from __future__ import annotations

import numpy as np

from edge_agent import fft
from edge_agent.features._bank import Bank
from edge_agent.features._checks import choice, flag, integer, number
from edge_agent.features._rows import Rows, frames, hann, sample_count
from edge_agent.signals import F32, F64

#: Samples of the frames transformed in one call. Windowed copy and spectrum (0.25 MiB each) then stay in the
#: cache and below what the allocator gives back to the system: at twice the size a 10 s clip took 585 page
#: faults and 1.9 instead of 0.7 ms.
_BLOCK = 65536
_DB = np.float32(10.0 / np.log(10.0))


def build(
    fs_hz: float,
    n_samples: int,
    n_fft: int | None = None,
    hop: int | None = None,
    n_mels: int | None = None,
    fmin: float = 0.0,
    fmax: float | None = None,
    height: str = "equal",
    spectrum: str = "power",
    preemphasis: float = 0.0,
    center: bool = False,
    floor: float = 1e-10,
    deltas: int | None = None,
    delta_width: int = 2,
    energy: bool | None = None,
    mfsc: int | None = None,
) -> LogMel:
    """Log-mel values of (..., n_samples) -> (..., n_frames, n_mels * (1 + deltas) + energy), in dB.

    n_fft, hop  : samples; default 64 ms and at least 512, rounded up to a power of two (1024 at 16 kHz);
                  half of it
    n_mels      : triangular filters from fmin to fmax Hz (default fs/2), equally spaced on the HTK scale; 128
                  mel(f) = 2595 log10(1 + f / 700)
    height      : "equal": every filter's peak is 1; "area": peak 2 / (upper - lower limit in Hz), which
                  lowers the wide filters at high frequencies
    spectrum    : "power" |FFT|^2 -> 10 log10, or "magnitude" |FFT| -> 20 log10
    preemphasis : mu of y_t = x_t - mu x_{t-1}, y_0 = (1 - mu) x_0; 0 is off, 0.97 usual for sound
    center      : zeros before and after, so that frame i is centred on sample i * hop; otherwise only whole
                  frames: n_frames = 1 + (n_samples - n_fft) // hop
    floor       : power (in magnitude: its square root) below which the value stays: silence gives
                  10 log10(1e-10) = -100 dB in every band
    deltas      : 0, 1 or 2 orders of d_t = sum_k k (C_{t+k} - C_{t-k}) / (2 sum k^2), k = 1..delta_width;
                  over the first and last delta_width frames the difference to the next inner frame; 0
    energy      : the log of the sum of squares of each windowed frame as the last feature, in dB; false
    mfsc        : MFSC of size N, a multiple of 3: N/3 static values, N/3 deltas, N/3 deltas of these, and the energy,
                  N + 1 in all; stands for n_mels N/3, deltas 2, energy true, which are not given beside it

    Periodic Hann window, no scaling: equals librosa.power_to_db(librosa.feature.melspectrogram(y=x,
    sr=fs, n_fft=n_fft, hop_length=hop, n_mels=n_mels, htk=True, norm=None, center=False), top_db=None) to
    1e-3 dB where the band holds more than 1e-9 of its frame's power (below, float32 rounding speaks).
    ValueError where a filter is so narrow that it catches no FFT bin.
    """
    fs = number("fs_hz", fs_hz, above=0.0)
    n_samples = sample_count(n_samples, at_least=16)
    if mfsc is not None:
        for name, value in (("n_mels", n_mels), ("deltas", deltas), ("energy", energy)):
            if value is not None:
                raise ValueError(
                    f"{name} is {value!r} beside mfsc {mfsc!r}, which says it already; give one or the other"
                )
        if integer("mfsc", mfsc, at_least=3) % 3:
            raise ValueError(
                f"mfsc is {mfsc}; it must be a multiple of 3: as many static values, deltas and second deltas"
            )
        n_mels, deltas, energy = int(mfsc) // 3, 2, True
    length = (
        2 ** int(np.ceil(np.log2(max(512.0, 0.064 * fs)) - 1e-9))
        if n_fft is None
        else integer("n_fft", n_fft, at_least=16)
    )
    step = max(1, length // 2) if hop is None else integer("hop", hop)
    center = flag("center", center)
    if length > n_samples and not center:
        raise ValueError(f"n_fft is {length}; it must be at most the window's {n_samples} samples")
    top = number("fmax", fs / 2.0 if fmax is None else fmax, above=0.0, at_most=fs / 2.0)
    low = number("fmin", fmin, at_least=0.0, below=top)
    edges = mel_edges(integer("n_mels", 128 if n_mels is None else n_mels), low, top)
    weights = mel_weights(edges, fs, length, choice("height", height, ("equal", "area")) == "area")
    return LogMel(
        n_samples,
        edges,
        weights,
        length,
        step,
        center,
        choice("spectrum", spectrum, ("power", "magnitude")) == "power",
        number("preemphasis", preemphasis, at_least=0.0, at_most=1.0),
        number("floor", floor, at_least=1e-30),
        integer("deltas", 0 if deltas is None else deltas, at_least=0, at_most=2),
        integer("delta_width", delta_width),
        flag("energy", False if energy is None else energy),
    )


def mel_edges(n_mels: int, fmin: float, fmax: float) -> F64:
    """(n_mels + 2,) Hz: filter i rises from edge i to i + 1 and falls to i + 2; 1000 Hz is 1000 mel."""
    mel = 2595.0 * np.log10(1.0 + np.array([fmin, fmax]) / 700.0)
    return np.asarray(700.0 * (10.0 ** (np.linspace(mel[0], mel[1], n_mels + 2) / 2595.0) - 1.0))


def mel_weights(edges: F64, fs_hz: float, n_fft: int, equal_area: bool) -> F64:
    """(n_mels, n_fft // 2 + 1) weights of triangular filters with these edges."""
    f = np.arange(n_fft // 2 + 1) * (fs_hz / n_fft)
    lower, peak, upper = edges[:-2, np.newaxis], edges[1:-1, np.newaxis], edges[2:, np.newaxis]
    weights: F64 = np.maximum(0.0, np.minimum((f - lower) / (peak - lower), (upper - f) / (upper - peak)))
    empty = ~weights.any(1)
    if empty.any():
        i = int(empty.argmax())
        raise ValueError(
            f"mel filter {i} ({edges[i]:.4g} to {edges[i + 2]:.4g} Hz) catches no FFT bin of {fs_hz / n_fft:.4g} Hz; "
            f"lower n_mels {len(edges) - 2}, or raise n_fft {n_fft} or fmin {edges[0]:.4g}"
        )
    return weights * (2.0 / (upper - lower)) if equal_area else weights


def delta(c: F32, width: int) -> F32:
    """(n_frames, F) -> (n_frames, F), change a frame; a ramp of 1 a frame gives 1 everywhere.

    Regression over `width` frames to both sides; where they do not exist, the difference to the next
    inner frame (as in the HTK book). A single frame gives 0.
    """
    n = c.shape[0]
    d = np.zeros_like(c)
    if n == 1:
        return d
    edge = min(width, n)
    head = min(edge, n - 1)
    d[:head] = c[1 : head + 1] - c[:head]
    tail = max(n - edge, head)
    d[tail:] = c[tail:] - c[tail - 1 : -1]
    if n > 2 * width:
        inner = d[width : n - width]
        inner[:] = 0.0
        for k in range(1, width + 1):
            inner += np.float32(k) * (c[width + k : n - width + k] - c[width - k : n - width - k])
        inner *= np.float32(0.5 / sum(k * k for k in range(1, width + 1)))
    return d


class LogMel(Rows):
    """See `build`."""

    def __init__(
        self,
        n_samples: int,
        edges: F64,
        weights: F64,
        n_fft: int,
        hop: int,
        center: bool,
        power: bool,
        preemphasis: float,
        floor: float,
        deltas: int,
        delta_width: int,
        energy: bool,
    ) -> None:
        limits = list(zip(edges[:-2], edges[2:], strict=True))
        static = [f"mel_{lo:.0f}_{hi:.0f}hz" for lo, hi in limits]
        if len(set(static)) != len(static):
            static = [f"mel_{lo:.7g}_{hi:.7g}hz" for lo, hi in limits]
        names = static + [f"{'d' * order}_{name}" for order in range(1, deltas + 1) for name in static]
        padded = n_samples + 2 * (n_fft // 2) if center else n_samples
        super().__init__(n_samples, names + ["energy"] * energy, 1 + (padded - n_fft) // hop)
        self._pad = n_fft // 2 if center else 0
        self._n_fft, self._hop = n_fft, hop
        self._window = hann(n_fft)
        self._bank = Bank(weights)
        self._power = power
        self._mu = np.float32(preemphasis)
        self._floor = np.float32(floor)
        self._deltas, self._delta_width = deltas, delta_width
        self._energy = energy

    def row(self, x: F32) -> F32:
        if self._mu:
            y = x.copy()
            y[1:] -= self._mu * x[:-1]
            y[0] -= self._mu * x[0]
            x = y
        if self._pad:
            x = np.pad(x, self._pad)
        n_mels = self._bank.n_bands
        out = np.empty((self.n_frames, len(self.names)), np.float32)
        cut = frames(x, self._n_fft, self._hop)
        spectrum = np.empty((self.n_frames, self._n_fft // 2 + 1), np.float32)
        rows = max(1, _BLOCK // self._n_fft)
        for start in range(0, self.n_frames, rows):
            block = slice(start, start + rows)
            windowed = cut[block] * self._window
            if self._energy:
                out[block, -1] = np.einsum("tn,tn->t", windowed, windowed)
            np.abs(fft.rfft(windowed), out=spectrum[block])
        if self._power:
            spectrum *= spectrum
        out[:, :n_mels] = self._bank(spectrum)
        static = out[:, :n_mels]
        static[:] = self._decibel(static) if self._power else 2.0 * self._decibel(static, root=True)
        if self._energy:
            out[:, -1] = self._decibel(out[:, -1])
        for order in range(1, self._deltas + 1):
            before = out[:, (order - 1) * n_mels : order * n_mels]
            out[:, order * n_mels : (order + 1) * n_mels] = delta(before, self._delta_width)
        return out

    def _decibel(self, v: F32, root: bool = False) -> F32:
        floor = np.sqrt(self._floor) if root else self._floor
        return np.asarray(np.log(np.maximum(v, floor)) * _DB)
