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


def area_means(v, size):
    """(rows, n) -> (rows, size): the mean over equal parts of the last axis, a sample on a limit shared."""
    n = v.shape[1]
    out = np.zeros((v.shape[0], size))
    for i in range(size):
        low, high = i * n / size, (i + 1) * n / size
        for k in range(int(low), min(int(np.ceil(high)), n)):
            out[:, i] += v[:, k] * (min(high, k + 1) - max(low, k))
    return out * size / n
