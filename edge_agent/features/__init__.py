"""Window in, feature matrix out; one file per family, found by its name in this folder.

    Window (n_channels, n_samples)
      └─ every family ──► (n_frames, F)      F = features of all families and channels, side by side
           └─ (v - offset) / scale           constants from the bundle, in float, before any int8
                └─ context ──► (n_patches, width, F)     what the model sees
                     over frames : `width` frames of one window, every `hop` frames
                     over windows: the last `width` feature vectors (a history), one patch

A family module defines `build(fs_hz, n_samples, **params) -> Extractor`. Its parameters are stored in
the bundle, so trainer and agent run the same code with the same numbers.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge_agent.signals import F32, F64


class Extractor(Protocol):
    """One family, prepared for one sampling rate and window length."""

    #: one name per feature, e.g. "rms", "bpfo_envelope", "mel_1200_1310hz"; unique within the family
    names: tuple[str, ...]
    #: 1 for a vector; the number of frames for a time-frequency family
    n_frames: int

    def __call__(self, x: F32) -> F32:
        """(..., n_samples) -> (..., n_frames, len(names)) float32; finite on every finite input."""


@dataclass(frozen=True)
class Family:
    """One family and its parameters, as stored in a bundle."""

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """How feature vectors become model inputs.

    over  : "frames" cuts patches out of one window; "windows" keeps a history of feature vectors
    width : vectors per patch; hop: vectors between patches (frames only)
    max_gap_s : "windows" only; a pause between windows longer than this empties the history
    """

    over: str = "frames"
    width: int = 1
    hop: int = 1
    max_gap_s: float | None = None

    def __post_init__(self) -> None:
        if self.over not in ("frames", "windows"):
            raise ValueError(f"context.over is {self.over!r}; expected 'frames' or 'windows'")
        if self.width < 1 or self.hop < 1:
            raise ValueError(f"context width {self.width} and hop {self.hop} must be at least 1")


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that turns a window into a model input; part of the bundle.

    offset, scale: (F,) standardisation constants, applied as (v - offset) / scale.
    """

    fs_hz: float
    n_samples: int
    hop_samples: int
    n_channels: int
    families: tuple[Family, ...]
    context: Context = Context()
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


def kinds() -> tuple[str, ...]:
    """Names of the families found in this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def parameters(kind: str) -> tuple[str, ...]:
    """Names of the parameters a known family takes beside the sampling rate and the window's length."""
    module = importlib.import_module(f"{__name__}.{kind}")
    return tuple(sorted(set(inspect.signature(module.build).parameters) - {"fs_hz", "n_samples"}))


def build(kind: str, fs_hz: float, n_samples: int, params: Mapping[str, Any]) -> Extractor:
    """Prepare one family. Raises ValueError naming the family and what is wrong with a parameter."""
    if kind not in kinds():
        raise ValueError(f"feature family {kind!r} is unknown; known: {', '.join(kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    known = parameters(kind)
    if unknown := sorted(set(params) - set(known)):
        raise ValueError(
            f"feature family {kind}: unknown parameter {unknown[0]!r}; known: {', '.join(known)}"
        )
    extractor: Extractor = module.build(fs_hz, n_samples, **params)
    return extractor


class FeatureSet:
    """A `FeatureSpec` made ready to run: banks and windows built once, then called per window."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._extractors = [build(f.kind, spec.fs_hz, spec.n_samples, f.params) for f in spec.families]
        if not self._extractors:
            raise ValueError("feature spec has no family; expected at least one")
        frames = {e.n_frames for e in self._extractors}
        if len(frames) != 1:
            raise ValueError(
                f"families yield {sorted(frames)} frames a window; all must yield the same number"
            )
        self.n_frames = frames.pop()
        one = [name for e in self._extractors for name in e.names]
        if len(set(one)) != len(one):
            raise ValueError(f"feature names repeat: {sorted({n for n in one if one.count(n) > 1})}")
        self.names: tuple[str, ...] = (
            tuple(one)
            if spec.n_channels == 1
            else tuple(f"ch{c}.{name}" for c in range(spec.n_channels) for name in one)
        )
        context = spec.context
        if context.over == "windows":
            if self.n_frames != 1:
                raise ValueError(f"a history needs one vector a window; these families yield {self.n_frames}")
            self.n_patches = 1
        else:
            if context.width > self.n_frames:
                raise ValueError(
                    f"context width {context.width} exceeds the {self.n_frames} frames of a window"
                )
            self.n_patches = (self.n_frames - context.width) // context.hop + 1
        n = len(self.names)
        self._offset: F32 | None = None
        self._inv_scale: F32 | None = None
        if spec.offset or spec.scale:
            if len(spec.offset) != n or len(spec.scale) != n:
                raise ValueError(
                    f"standardisation has {len(spec.offset)} offsets and {len(spec.scale)} scales for {n} features"
                )
            offset, scale = np.asarray(spec.offset, np.float64), np.asarray(spec.scale, np.float64)
            if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0).all()):
                raise ValueError("standardisation constants must be finite and every scale above 0")
            self._offset, self._inv_scale = offset.astype(np.float32), (1.0 / scale).astype(np.float32)

    def raw(self, x: F32) -> F32:
        """(..., n_channels, n_samples) -> (..., n_frames, F), before standardisation."""
        if x.shape[-2:] != (self.spec.n_channels, self.spec.n_samples):
            raise ValueError(
                f"window is {x.shape[-2:]}; expected ({self.spec.n_channels}, {self.spec.n_samples})"
            )
        if self.spec.n_channels == 1:
            parts = [e(x[..., 0, :]) for e in self._extractors]
        else:
            parts = [e(x[..., c, :]) for c in range(self.spec.n_channels) for e in self._extractors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def standardise(self, v: F32) -> F32:
        """(v - offset) / scale on the last axis; the identity where the spec has no constants."""
        if self._offset is None or self._inv_scale is None:
            return v
        return (v - self._offset) * self._inv_scale

    def __call__(self, x: F32) -> F32:
        """(..., n_channels, n_samples) -> standardised (..., n_frames, F)."""
        return self.standardise(self.raw(x))

    def patches(self, v: F32) -> F32:
        """(n, F) standardised vectors -> (n_patches, width, F), where possible a view that may not be written.

        Over frames n is `n_frames`; over windows n is at least `width` and the newest count.
        """
        context = self.spec.context
        if context.over == "windows":
            return v[np.newaxis, -context.width :]
        if context.width == 1:
            return v[:: context.hop, np.newaxis]
        # Overlapping patches of C-ordered vectors are one stretch of memory each: no copy, whatever the overlap.
        view = np.lib.stride_tricks.sliding_window_view(v, context.width, axis=0)[:: context.hop]
        return np.swapaxes(view, -1, -2)


def standardisation(v: F64 | F32, floor: float = 1e-6) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per feature over all leading axes, for `FeatureSpec`.

    A feature that never changes gets the scale 1, so that silence cannot divide by zero.
    """
    flat = np.asarray(v, np.float64).reshape(-1, v.shape[-1])
    mean, std = flat.mean(0), flat.std(0)
    std = np.where(std > floor * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def value_range(v: F64 | F32, share: float = 1e-3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """One offset and one scale for all features, so that all but `share` of the values at either end lie in [0, 1].

    For networks that give pictures: the same stretch everywhere keeps dark corners dark. Values that never
    change get the scale 1.
    """
    low, high = np.quantile(np.asarray(v, np.float64), [share, 1.0 - share])
    scale = float(high - low) if high - low > 1e-6 * max(1.0, abs(float(low))) else 1.0
    return (float(low),) * v.shape[-1], (scale,) * v.shape[-1]
