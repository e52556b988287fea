"""Slow and obvious twins of fast code."""

import numpy as np


def windows(segments, fs_hz, n_samples, hop_samples):
    """(start, samples) of every window of gap-free segments [(t0, (C, n) array)], sample by sample."""
    found = []
    for t0, x in segments:
        k = 0
        while k * hop_samples + n_samples <= x.shape[1]:
            columns = [x[:, k * hop_samples + i] for i in range(n_samples)]
            found.append((t0 + k * hop_samples / fs_hz, np.stack(columns, axis=1)))
            k += 1
    return found
