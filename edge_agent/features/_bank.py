"""Sums over frequency bands: a (bins x bands) matrix that is zero but near its diagonal, applied fast.

    wide bands (mel, octaves): neighbours share a small dense block, one BLAS call each
    narrow bands (a thousand of two or three bins): gather the few bins of each and add

A compressed sparse matrix would do the same at 60 % of the speed for mel and 1.7 MiB of imports.
"""

from __future__ import annotations

import numpy as np

from edge_agent.signals import F32, F64

#: Up to so many bins a band, gathering beats BLAS calls.
_NARROW = 8
#: Bands that share one dense block; more means fewer calls but more zeros multiplied (16 is the flat
#: minimum for 128 mel bands over 513 bins).
_BLOCK = 16


class Bank:
    """Band weights (n_bands, n_bins), each band's non-zero weights contiguous."""

    def __init__(self, weights: F64) -> None:
        n_bands, n_bins = weights.shape
        self.n_bands = n_bands
        used = weights != 0.0
        first = np.where(used.any(1), used.argmax(1), 0)
        stop = np.where(used.any(1), n_bins - used[:, ::-1].argmax(1), 1)
        width = int((stop - first).max())
        self._index = None
        self._blocks: list[tuple[slice, slice, F32]] = []
        if width <= min(_NARROW, n_bins):
            start = np.minimum(first, n_bins - width)
            self._index = start + np.arange(width)[:, np.newaxis]  # (width, n_bands)
            self._weights: F32 = weights[np.arange(n_bands), self._index].astype(np.float32)
            return
        for low in range(0, n_bands, _BLOCK):
            bands = slice(low, min(low + _BLOCK, n_bands))
            bins = slice(int(first[bands].min()), int(stop[bands].max()))
            block = np.ascontiguousarray(weights[bands, bins].T, np.float32)
            self._blocks.append((bins, bands, block))

    def __call__(self, power: F32) -> F32:
        """(n_frames, n_bins) -> (n_frames, n_bands)."""
        if self._index is not None:
            return np.asarray(np.einsum("twb,wb->tb", power[:, self._index], self._weights))
        out = np.empty((power.shape[0], self.n_bands), np.float32)
        for bins, bands, block in self._blocks:
            np.matmul(power[:, bins], block, out=out[:, bands])
        return out


def band_weights(bands: F64, n_bins: int, df_hz: float, *, nyquist: bool) -> F64:
    """Weights (n_bands, n_bins) that integrate a spectrum over bands, bins shared in proportion.

    bands   : (n_bands, 2) limits in Hz
    nyquist : whether the last bin is the Nyquist frequency (an even number of samples)

    Bin k stands for (k - 1/2) df to (k + 1/2) df; the bins at 0 and at Nyquist stand for their inner half.
    A spectrum in unit^2/Hz times these weights is the power in unit^2; all bands together hold all of it.
    """
    k = np.arange(n_bins)
    lower = np.maximum(k - 0.5, 0.0) * df_hz
    upper = (k + 0.5) * df_hz
    if nyquist:
        upper[-1] = (n_bins - 1) * df_hz
    overlap = np.minimum(upper, bands[:, 1:]) - np.maximum(lower, bands[:, :1])
    return np.asarray(np.maximum(overlap, 0.0) / (upper - lower) * df_hz)
