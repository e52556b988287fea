"""Model outputs in, one number a window out, and which features carry it.

Scoring is kept apart from deciding: a score knows no limit. Higher is less normal for every rule, and
every score is at least 0.

    rule            score of x (n_patches, width, F) and the model's outputs
    reconstruction  error between x and its reconstruction: mse, mae, or sse = ||x - f(x)||² a patch (S4)
    log_odds        mean over patches of log((1 - p) / p) - log(eps / (1 - eps)), p the softmax of the
                    machine's own class (S0), clipped to [eps, 1 - eps]; the shift makes it >= 0
    indicator       one feature as it is, no network
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from edge_agent.signals import F32, F64

#: p is clipped here before the logarithm: beyond it a float32 logit says nothing more (methods.md).
LOG_ODDS_EPS = 1e-6


@dataclass(frozen=True)
class ScoreRule:
    """Which rule, with its parameters; part of the bundle."""

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)


class Score(NamedTuple):
    """value: the score; residual: (F,) float32 >= 0, how far each feature is off."""

    value: float
    residual: F32


#: x (n_patches, width, F) standardised, outputs of the model -> Score
Scorer = Callable[[F32, Sequence[F32]], Score]


def reconstruction(error: str = "mse", steps: str = "all", patches: str = "mean") -> Scorer:
    """Reconstruction error against the float input.

    error   : "mse", "mae", or "sse" (the sum over a patch, S4's S(x))
    steps   : "all", or "newest": only the last vector of each patch counts
    patches : "mean" or "max" over the patches of a window
    """
    _choice("error", error, ("mse", "mae", "sse"))
    _choice("steps", steps, ("all", "newest"))
    _choice("patches", patches, ("mean", "max"))

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        difference = x - outputs[0].reshape(x.shape)
        if steps == "newest":
            difference = difference[:, -1:]
        e = (np.abs if error == "mae" else np.square)(difference, out=difference)
        by_feature: F32 = e.mean(axis=(0, 1))
        if patches == "mean":
            value = float(by_feature.mean(dtype=np.float64))
        else:
            value = float(e.mean(axis=(1, 2), dtype=np.float64).max())
        if error == "sse":
            value *= e.shape[1] * e.shape[2]
        return Score(value, by_feature)

    return score


def log_odds(target: int, n_classes: int) -> Scorer:
    """Log-odds against the machine's own class, from logits (n_patches, n_classes); in [0, 27.6]."""
    if not 0 <= target < n_classes:
        raise ValueError(f"log_odds target is {target}; expected 0 to {n_classes - 1}")
    floor = math.log(LOG_ODDS_EPS / (1.0 - LOG_ODDS_EPS))

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        logits: F64 = outputs[0].reshape(-1, n_classes).astype(np.float64)
        logits = logits - logits.max(axis=1, keepdims=True)
        e = np.exp(logits)
        p = np.clip(e[:, target] / e.sum(axis=1), LOG_ODDS_EPS, 1.0 - LOG_ODDS_EPS)
        value = float(np.log((1.0 - p) / p).mean()) - floor
        return Score(max(value, 0.0), np.abs(x.mean(axis=(0, 1))))

    return score


def indicator(index: int) -> Scorer:
    """Feature number `index` itself, of the newest vector; the rule for bundles without a network."""
    if index < 0:
        raise ValueError(f"indicator index is {index}; expected 0 or more")

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        newest = x[-1, -1]
        return Score(max(float(newest[index]), 0.0), np.abs(newest))

    return score


_RULES: dict[str, Callable[..., Scorer]] = {
    "reconstruction": reconstruction,
    "log_odds": log_odds,
    "indicator": indicator,
}


def build(rule: ScoreRule) -> Scorer:
    """Prepare a rule. Raises ValueError naming the rule and the parameter."""
    if rule.kind not in _RULES:
        raise ValueError(f"score rule {rule.kind!r} is unknown; known: {', '.join(_RULES)}")
    try:
        return _RULES[rule.kind](**rule.params)
    except TypeError as error:
        raise ValueError(f"score rule {rule.kind}: {error}") from None


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
            round(float(excess[group].sum() / max(std[group].sum(), 1e-9)), 1),
        )
        for name, group in _groups(tuple(names))
    ]
    causes.sort(key=lambda cause: -cause.share)
    return tuple(cause for cause in causes[:top] if cause.share > 0.0)


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


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"reconstruction {name} is {value!r}; expected one of {', '.join(known)}")
