"""Why a score is high: the features that carry it, and where a convolutional network looked.

    error or attention map (n_patches, width, F) ─mean─► (F,) ─against healthy windows─► Cause, ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from edge_agent.signals import F32, F64


class Cause(NamedTuple):
    """One line of an event's `why`: share of the excess over normal, and z against normal."""

    feature: str
    share: float
    z: float


def explain(names: Sequence[str], residual: F32, mean: F64, std: F64, top: int = 3) -> tuple[Cause, ...]:
    """The features that carry the score, largest share first.

    residual, mean, std : (F,); mean and std are those of the residual on healthy windows.
    The share is that of the summed excess max(0, residual - mean); without any excess the answer is empty.
    Where there are many bands of one kind, neighbours are told as one: the share is their sum, z that of
    their sum as if they always moved together, which never overstates it.
    """
    excess = np.maximum(np.asarray(residual, np.float64) - mean, 0.0)
    total = float(excess.sum())
    if not total > 0.0:
        return ()
    causes = [
        Cause(
            name,
            round(float(excess[group].sum()) / total, 3),
            round(min(float(excess[group].sum() / max(std[group].sum(), 1e-9)), MAX_Z), 1),
        )
        for name, group in _groups(tuple(names))
    ]
    causes.sort(key=lambda cause: -cause.share)
    return tuple(cause for cause in causes[:top] if cause.share > 0.0)


#: Largest z that is told: an attention map may be 0 on every healthy window, and then any number is "far".
MAX_Z = 999.0
#: Bands of one kind that a person is told apart: 128 mel bands become 16.
MAX_BANDS = 16
_BAND = re.compile(r"(?P<kind>.*_)(?P<lo>[\d.]+)_(?P<hi>[\d.]+)hz")


@lru_cache(maxsize=64)
def _groups(names: tuple[str, ...]) -> tuple[tuple[str, slice], ...]:
    """Features as they are told: runs of more than MAX_BANDS bands of one kind joined, the others alone."""
    groups: list[tuple[str, slice]] = []
    i = 0
    while i < len(names):
        found = _BAND.fullmatch(names[i])
        stop = i + 1
        if found is not None:
            kind = found["kind"]
            while stop < len(names) and (m := _BAND.fullmatch(names[stop])) is not None and m["kind"] == kind:
                stop += 1
        width = -(-(stop - i) // MAX_BANDS)
        for first in range(i, stop, width):
            last = min(first + width, stop) - 1
            name = names[first]
            low, high = _BAND.fullmatch(name), _BAND.fullmatch(names[last])
            if low is not None and high is not None:
                name = f"{low['kind']}{low['lo']}_{high['hi']}hz"
            groups.append((name, slice(first, last + 1)))
        i = stop
    return tuple(groups)


#: Shares below this are not told beside others.
LEAST_SHARE = 0.05
#: How many places one sentence names.
MAX_TOLD = 3


def sentence(causes: Sequence[Cause]) -> str:
    """The causes in words: "2.4 to 3.6 kHz carries 61 %, 100 to 200 Hz 12 % of the excess".

    Bands of one kind that touch or overlap are told as one, their shares added; an empty list gives "nothing exceeds
    what is normal".
    """
    told = sorted(_joined(causes), key=lambda part: -part[1])
    parts = [part for part in told if part[1] >= LEAST_SHARE][:MAX_TOLD] or told[:1]
    if not parts:
        return "nothing exceeds what is normal"
    words = [f"{what}{'' if i else ' carries'} {100.0 * share:.0f} %" for i, (what, share) in enumerate(parts)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) + " of the excess"


def _joined(causes: Sequence[Cause]) -> list[tuple[str, float]]:
    """(place in words, share) of each cause, neighbouring bands of one kind joined."""
    bands: dict[str, list[tuple[float, float, float]]] = {}
    out = []
    for cause in causes:
        if (m := _BAND.fullmatch(cause.feature)) is None:
            out.append((cause.feature.replace("_", " "), cause.share))
        else:
            bands.setdefault(m["kind"], []).append((float(m["lo"]), float(m["hi"]), cause.share))
    for kind, found in bands.items():
        low, high, share = min(found)
        for lo, hi, more in [*sorted(found)[1:], (np.inf, np.inf, 0.0)]:
            if lo <= high * (1.0 + 1e-9):
                high, share = max(high, hi), share + more
                continue
            out.append((_place(kind, hertz(low, high)), share))
            low, high, share = lo, hi, more
    return out


def _place(kind: str, band: str) -> str:
    """ "mel_" -> the band; "d_mel_" -> how it changes; "ch1.cwt_" -> where it was measured."""
    channel, _, name = kind.rpartition(".")
    change = "change in " if name.startswith(("d_", "dd_")) else ""
    return f"{change}{band}" + (f" of channel {channel.removeprefix('ch')}" if channel else "")


def hertz(low: float, high: float) -> str:
    """(2400, 3600) -> "2.4 to 3.6 kHz", (100, 200) -> "100 to 200 Hz", (800, 1200) -> "800 Hz to 1.2 kHz"."""
    # Zero has the unit of its neighbour.
    unit = ["Hz" if f < 1000.0 else "kHz" for f in (low or high, high)]
    value = [f"{f if u == 'Hz' else f / 1000.0:.3g}" for f, u in zip((low, high), unit, strict=True)]
    return f"{value[0]}{'' if unit[0] == unit[1] else ' Hz'} to {value[1]} {unit[1]}"


def band(name: str) -> tuple[float, float] | None:
    """(100.0, 200.0) of "mel_100_200hz"; None for a feature that is no band."""
    m = _BAND.fullmatch(name)
    return None if m is None else (float(m["lo"]), float(m["hi"]))


#: Names of a network's arrays that travel in the bundle, (...) float32.
Arrays = Mapping[str, F32]


class Head:
    """The dense layers behind the feature maps of a convolutional network: a mean over the map, then
    (weights, bias) pairs with ReLU between them.

    Kept in float beside the quantised network, for Grad-CAM only (Selvaraju et al., ICCV 2017).
    """

    def __init__(self, layers: Sequence[tuple[F32, F32]]) -> None:
        self.layers = tuple(layers)

    @classmethod
    def of(cls, arrays: Arrays) -> Head | None:
        """The head stored as head_w0 (in, out), head_b0 (out,), head_w1, ...; None where there is none."""
        n = sum(name.startswith("head_w") for name in arrays)
        return cls([(arrays[f"head_w{i}"], arrays[f"head_b{i}"]) for i in range(n)]) if n else None

    def arrays(self) -> dict[str, F32]:
        """The inverse of `of`."""
        named = ((f"head_{kind}{i}", a) for i, pair in enumerate(self.layers) for kind, a in zip("wb", pair, strict=True))
        return {name: np.asarray(a, np.float32) for name, a in named}

    def gradient(self, maps: F32, slope: F32) -> F32:
        """d(score)/d(mean of each map), (n, C), from slope = d(score)/d(output of the head), (n, K).

        maps : (n, h, w, C)
        """
        active = []
        h = maps.mean((1, 2))
        for weights, bias in self.layers[:-1]:
            h = np.maximum(h @ weights + bias, 0.0)
            active.append(h > 0.0)
        g = slope @ self.layers[-1][0].T
        for (weights, _), on in zip(reversed(self.layers[:-1]), reversed(active), strict=True):
            g = (g * on) @ weights.T
        return np.asarray(g, np.float32)


def grad_cam(maps: F32, gradient: F32, shape: tuple[int, int], channels: int = 1) -> F32:
    """Where the evidence for a higher score lies: ReLU(Σ_c gradient_c · map_c), spread over the input.

    maps     : (n, h, w, C) feature maps, h along the width of a patch, w along its features
    gradient : (n, C) or (C,)
    shape    : (width, F) of a patch; F holds `channels` pictures side by side, which share the answer
    Returns (n, width, F) float32 >= 0; a map that speaks against it everywhere gives zeros.
    """
    width, n_features = shape
    seen = np.maximum(np.einsum("nhwc,nc->nhw", maps, np.broadcast_to(gradient, (len(maps), maps.shape[-1]))), 0.0)
    rows = np.arange(width) * maps.shape[1] // width
    one = n_features // channels
    columns = np.tile(np.arange(one) * maps.shape[2] // one, channels)
    return np.asarray(seen[:, rows][:, :, columns], np.float32)
