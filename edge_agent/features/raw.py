"""The samples themselves, cut into frames: for networks that learn their own features."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from edge_agent.features._checks import integer
from edge_agent.features._rows import Rows, sample_count
from edge_agent.signals import F32


def build(fs_hz: float, n_samples: int, frame: int | None = None, decimate: int = 1) -> Raw:
    """Samples of (..., n_samples) -> (..., n_frames, frame), in the sensor's unit.

    frame    : samples a frame, features s0, s1, ...; the whole window by default
    decimate : each sample is the mean of so many neighbours, which also damps what would alias

    n_frames = n_samples // decimate // frame; what does not fill the last frame (or the last group of
    neighbours) is left out. decimate 4 on [1, 2, 3, 4, 0, 0, 0, 0] gives [2.5, 0].
    """
    n_samples = sample_count(n_samples, at_least=1)
    decimate = integer("decimate", decimate, at_most=n_samples)
    available = n_samples // decimate
    length = available if frame is None else integer("frame", frame, at_most=available)
    return Raw(n_samples, length, decimate)


class Raw(Rows):
    """See `build`."""

    max_energy: ClassVar[float] = math.inf  # takes no squares

    def __init__(self, n_samples: int, frame: int, decimate: int) -> None:
        super().__init__(n_samples, [f"s{i}" for i in range(frame)], n_samples // decimate // frame)
        self._shape = (self.n_frames, frame, decimate)
        self._used = self.n_frames * frame * decimate

    def row(self, x: F32) -> F32:
        shaped = x[: self._used].reshape(self._shape)
        if self._shape[-1] == 1:
            return shaped[..., 0]
        return np.asarray((shaped * np.float32(1.0 / self._shape[-1])).sum(-1))
