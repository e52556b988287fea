"""What the families share: window by window over any leading axes, guarded squares, guarded logarithms.

Windows are taken one at a time because one window's intermediates fit the cache of the device's core; one
window and ten thousand are therefore the same arithmetic, and batch equals one by one bit for bit.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.signals import F32

#: Logarithms are taken of max(v, LOG_FLOOR), so that silence gives ln(1e-20) = -46.05 and not -inf. It lies
#: far below the quantisation noise of a 24-bit converter at full scale 1 (3e-16 in power).
LOG_FLOOR = 1e-20


class Rows(ABC):
    """Base of the extractors: subclasses prepare one window of shape (n_samples,) in `row`."""

    #: Largest sum of squares that `row` can take without overflow; louder windows are clipped to the
    #: amplitude at which no window of that length exceeds it (1e7 for 10 000 samples: no sensor's unit).
    max_energy: ClassVar[float] = 1e18

    def __init__(self, n_samples: int, names: Sequence[str], n_frames: int = 1) -> None:
        self.n_samples = n_samples
        self.names = tuple(names)
        self.n_frames = n_frames

    @abstractmethod
    def row(self, x: F32) -> F32:
        """(n_samples,) contiguous -> (n_frames, F), or (F,) where n_frames is 1."""

    def __call__(self, x: F32) -> F32:
        """(..., n_samples) -> (..., n_frames, F) float32; finite on every finite input."""
        if x.shape[-1:] != (self.n_samples,):
            raise ValueError(f"window has shape {x.shape}; expected (..., {self.n_samples})")
        lead = x.shape[:-1]
        out = np.empty((*lead, self.n_frames, len(self.names)), np.float32)
        for index in itertools.product(*map(range, lead)):
            row = np.ascontiguousarray(x[index], np.float32)
            out[index] = self.row(self._bounded(row) if self.max_energy < math.inf else row)
        return out

    def _bounded(self, row: F32) -> F32:
        with np.errstate(over="ignore"):
            energy = float(np.dot(row, row))
        if energy <= self.max_energy:
            return row
        limit = np.float32(math.sqrt(self.max_energy / self.n_samples))
        return np.clip(row, -limit, limit)


def sample_count(value: object, at_least: int = 2) -> int:
    """The window length as an int; ValueError below `at_least`."""
    if not isinstance(value, int) or value < at_least:
        raise ValueError(f"n_samples is {value!r}; it must be a whole number, at least {at_least}")
    return value


def log_mask(log: object, names: Sequence[str], signed: Sequence[str] = ()) -> NDArray[np.bool_] | None:
    """Which features get their logarithm: none for False, every non-negative one for True, or those listed.

    None where there is none to take. ValueError for an unknown name or one that can be negative.
    """
    if isinstance(log, bool):
        chosen: set[str] = {n for n in names if n not in signed} if log else set()
    elif isinstance(log, Sequence) and not isinstance(log, str):
        for name in log:
            if name not in names:
                raise ValueError(f"log names {name!r}; known: {', '.join(names)}")
            if name in signed:
                raise ValueError(f"log names {name!r}, which can be negative; take it as it is")
        chosen = set(log)
    else:
        raise ValueError(f"log is {log!r}; expected true, false or a list of feature names")
    mask = np.array([n in chosen for n in names])
    return mask if mask.any() else None


def guarded_log(v: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """ln(max(v, LOG_FLOOR)) where `mask` says so, v elsewhere; (..., F) -> (..., F)."""
    if mask is None:
        return v
    if mask.all():
        return np.asarray(np.log(np.maximum(v, LOG_FLOOR)))
    return np.asarray(np.where(mask, np.log(np.maximum(v, LOG_FLOOR)), v))


def hann(n: int) -> F32:
    """Periodic Hann window, (n,) float32: 0 at the first sample, 1 in the middle of an even n; mean 0.5."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)).astype(np.float32)


def frames(x: F32, length: int, hop: int) -> F32:
    """(n,) contiguous -> (1 + (n - length) // hop, length), a view: frame i starts at sample i * hop."""
    n = 1 + (x.shape[0] - length) // hop
    step = x.itemsize
    # as_strided would do, at 3 us a call; x is contiguous, and the buffer protocol checks the bounds
    cut: F32 = np.ndarray((n, length), np.float32, x, 0, (hop * step, step))
    return cut
