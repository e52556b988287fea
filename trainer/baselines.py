"""What needs no training: how far a window lies from healthy ones, by its mean spectrum or by fifteen statistics.

    window ─► log-mel values, mean over the frames ──► Euclidean distance to the nearest healthy windows
           └► the 15 statistics of `time_domain` ────► Mahalanobis distance to their mean

Whatever a network is worth, it is worth beside these. Both see one window at a time, take a minute to fit, and know
only healthy windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from edge_agent.errors import RecordingError
from edge_agent.features import Family, FeatureSet, FeatureSpec, standardisation
from edge_agent.recordings import Recording, windows
from edge_agent.signals import F32, F64

#: Mel bands of the mean spectrum: the first number whose filters all hold a bin of the spectrum.
MEL_BANDS = (128, 64, 32, 16, 8, 4)
_BATCH = 16


class Distance(Protocol):
    """How far feature vectors lie from those it was fitted to."""

    @property
    def typical(self) -> float:
        """What healthy vectors have, in the middle: distances over it can be compared between machines."""

    def score(self, v: Any) -> F64:
        """(m, d) -> (m,), at least 0."""


@dataclass(frozen=True)
class Neighbours:
    """Mean Euclidean distance to the k nearest references, each feature in deviations of the references.

    references : (n, d) standardised; offset, scale : (d,)
    """

    references: F64
    offset: F64
    scale: F64
    k: int = 1

    @classmethod
    def fit(cls, v: Any, k: int = 1) -> Neighbours:
        """From healthy vectors (n, d). Raises ValueError for fewer than k of them."""
        v = _vectors(v, k)
        offset, scale = (np.asarray(c) for c in standardisation(v))
        return cls((v - offset) / scale, offset, scale, k)

    @property
    def typical(self) -> float:
        """Median distance of a reference from the others; 1 where they are all the same, or only one."""
        if len(self.references) <= self.k:
            return 1.0
        found = np.empty(len(self.references))
        for i, row in enumerate(self.references):
            d2 = np.square(self.references - row).sum(1)
            d2[i] = np.inf
            found[i] = np.sqrt(np.partition(d2, self.k - 1)[: self.k]).mean()
        return float(np.median(found)) or 1.0

    def score(self, v: Any) -> F64:
        """(m, d) -> (m,). A reference itself has 0 at k = 1."""
        x = (np.asarray(v, np.float64) - self.offset) / self.scale
        out = np.empty(len(x))
        for i, row in enumerate(x):
            d2 = np.square(self.references - row).sum(1)
            out[i] = np.sqrt(np.partition(d2, self.k - 1)[: self.k]).mean()
        return out


@dataclass(frozen=True)
class Mahalanobis:
    """sqrt((v - m)ᵀ S⁻¹ (v - m)) in features standardised by the healthy ones.

    S = (1 - a)·C + a·tr(C)/d·I with C the covariance (1/n) of n healthy vectors and a = d / (n + d) (our choice): fifteen
    statistics of which several nearly repeat each other need it, ten windows need it most, and with thousands it is
    hardly there.
    """

    offset: F64
    scale: F64
    precision: F64
    shrinkage: float

    @classmethod
    def fit(cls, v: Any) -> Mahalanobis:
        """From healthy vectors (n, d). Raises ValueError for fewer than two."""
        v = _vectors(v, 2)
        n, d = v.shape
        offset, scale = (np.asarray(c) for c in standardisation(v))
        x = (v - offset) / scale
        covariance = x.T @ x / n - np.outer(x.mean(0), x.mean(0))
        a = d / (n + d)
        level = float(np.trace(covariance)) / d
        # Windows that are all equal have no covariance: then it is the plain distance.
        shrunk = (1.0 - a) * covariance + a * (level or 1.0) * np.eye(d)
        return cls(offset, scale, np.linalg.inv(shrunk), a)

    @property
    def typical(self) -> float:
        """1: the covariance is a measure for each machine already."""
        return 1.0

    def score(self, v: Any) -> F64:
        """(m, d) -> (m,); 0 at the mean of the healthy vectors."""
        x = (np.asarray(v, np.float64) - self.offset) / self.scale
        d2: F64 = np.einsum("ij,jk,ik->i", x, self.precision, x)
        return np.sqrt(np.maximum(d2, 0.0))


def _vectors(v: Any, at_least: int) -> F64:
    found: F64 = np.asarray(v, np.float64)
    if found.ndim != 2 or len(found) < at_least:
        raise ValueError(
            f"healthy vectors have shape {found.shape}; expected (n, d) with n at least {at_least}"
        )
    return found


@dataclass(frozen=True)
class Baseline:
    """One of the two, fitted: raw windows in, scores out."""

    features: FeatureSet
    distance: Distance

    def score(self, x: F32) -> F64:
        """(m, n_channels, n_samples) -> (m,)."""
        return self.distance.score(describe(self.features, x))


#: Name -> how it is fitted to healthy vectors, as the tables call them.
NAMES = ("mean_spectrum_knn", "statistics_mahalanobis")


def features_of(name: str, spec: FeatureSpec) -> FeatureSet:
    """The features of a baseline on windows as `spec` cuts them."""

    def of(family: Family) -> FeatureSet:
        return FeatureSet(
            FeatureSpec(spec.fs_hz, spec.n_samples, spec.hop_samples, spec.n_channels, (family,))
        )

    if name == "statistics_mahalanobis":
        return of(Family("time_domain"))
    if name != "mean_spectrum_knn":
        raise ValueError(f"baseline {name!r} is unknown; known: {', '.join(NAMES)}")
    # 64 ms and at least 512 samples as the family's default, but never longer than the window.
    usual = 2 ** int(np.ceil(np.log2(max(512.0, 0.064 * spec.fs_hz))))
    n_fft = min(usual, 2 ** int(np.log2(spec.n_samples)))
    for n_mels in MEL_BANDS:
        try:
            return of(Family("log_mel", {"n_fft": n_fft, "n_mels": n_mels}))
        except ValueError as error:
            refused = error
    raise ValueError(f"windows of {spec.n_samples} samples are too short for a mean spectrum: {refused}")


def describe(features: FeatureSet, x: F32) -> F64:
    """(m, n_channels, n_samples) -> (m, d): the mean over the frames of a window."""
    return np.asarray(features.raw(x).mean(1, dtype=np.float64))


def fit(name: str, spec: FeatureSpec, healthy: F32, k: int = 1) -> Baseline:
    """The baseline `name` on healthy raw windows (n, n_channels, n_samples)."""
    features = features_of(name, spec)
    return Baseline(features, _fitted(name, describe(features, healthy), k))


def _fitted(name: str, v: F64, k: int = 1) -> Distance:
    return Neighbours.fit(v, k) if name == "mean_spectrum_knn" else Mahalanobis.fit(v)


@dataclass(frozen=True)
class Described:
    """One recording's windows: the time (s) at which each ends, and baseline -> its vectors (n, d)."""

    end: F64
    vectors: Mapping[str, F64]


@dataclass(frozen=True)
class Describer:
    """Both baselines' features of recordings, cut as the agent cuts them; samples are not kept."""

    spec: FeatureSpec
    features: Mapping[str, FeatureSet] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: FeatureSpec) -> Describer:
        """For a bundle's own windows."""
        return cls(spec, {name: features_of(name, spec) for name in NAMES})

    def __call__(self, recording: Recording) -> Described:
        cut = windows(recording, self.spec.n_samples, self.spec.hop_samples)
        ends: list[float] = []
        parts: dict[str, list[F64]] = {name: [] for name in self.features}
        while batch := list(islice(cut, _BATCH)):
            x = np.stack([w.samples for w in batch])
            ends += [w.end for w in batch]
            for name, features in self.features.items():
                parts[name].append(describe(features, x))
        shaped = {
            name: np.concatenate(p) if p else np.zeros((0, len(self.features[name].names)))
            for name, p in parts.items()
        }
        return Described(np.array(ends, np.float64), shaped)

    def fit(self, healthy: Iterable[Recording]) -> dict[str, Distance]:
        """Baseline -> its distance from the windows of healthy recordings; RecordingError where they hold none."""
        described = [self(recording) for recording in healthy]
        n = sum(len(d.end) for d in described)
        if n < 2:
            raise RecordingError(
                f"{len(described)} healthy recordings hold {n} windows of {self.spec.n_samples} samples; expected at "
                "least two to compare with: give --baselines more or longer recordings"
            )
        return {
            name: _fitted(name, np.concatenate([d.vectors[name] for d in described]))
            for name in self.features
        }
