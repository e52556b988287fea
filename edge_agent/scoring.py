"""Model outputs in, one number a window out, and where in the window it comes from.

Scoring is kept apart from deciding: a score knows no limit. Higher is less normal for every rule, and
every score is at least 0.

    rule            score of x (n_patches, width, F) and the model's outputs
    reconstruction  error between x and its reconstruction: mse, mae, or sse = ||x - f(x)||² a patch (S4)
    log_odds        mean over patches of log((1 - p) / p) - log(eps / (1 - eps)), p the softmax of the
                    machine's own class (S0), clipped to [eps, 1 - eps]; the shift makes it >= 0
    vae             mean L1 error + 0.1 KL (S3)
    distance        ||z - c||² to the centre of the embeddings (Deep SVDD, S3)
    ensemble        0.6 z-scored distance + 0.4 z-scored vae (S3)
    gan             anomaly degree of a generator's reconstruction (S1)
    knn             distance of the embedding to the nearest healthy references
    indicator       one feature as it is, no network
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from edge_agent.causes import Arrays, Head, grad_cam
from edge_agent.signals import F32, F64

#: p is clipped here before the logarithm: beyond it a float32 logit says nothing more (methods.md).
LOG_ODDS_EPS = 1e-6


@dataclass(frozen=True)
class ScoreRule:
    """Which rule, with its parameters; part of the bundle."""

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """value: the score; `excess` gives, when asked, where it comes from: (n_patches, width, F) float32 >= 0.

    Most windows are healthy and nobody asks: the map is made for those that people will look at.
    """

    value: float
    excess: Callable[[], F32]

    @property
    def residual(self) -> F32:
        """(F,): how far each feature is off, mean over patches and time."""
        residual: F32 = self.excess().mean(axis=(0, 1))
        return residual


#: x (n_patches, width, F) standardised, outputs of the model -> Score
Scorer = Callable[[F32, Sequence[F32]], Score]


def reconstruction(arrays: Arrays, error: str = "mse", steps: str = "all", patches: str = "mean") -> Scorer:
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
        value = _mean(e) if patches == "mean" else float(e.mean(axis=(1, 2), dtype=np.float64).max())
        if error == "sse":
            value *= e.shape[1] * e.shape[2]
        return Score(value, lambda: e)

    return score


def vae(arrays: Arrays, beta: float = 0.1, error: str = "mae") -> Scorer:
    """Mean L1 error + beta · KL (S3), from outputs (reconstruction, mean (n, d), log variance (n, d)).

    error : "mae"; "mse"; or "mse_per_rms" (our choice), the squared error of each patch over the RMS of the patch
            itself: a picture with more ink has more edges to miss. Its square is floored at 0.02, so that an empty
            picture divides by 0.14, not by 0
    KL to the standard normal, mean over the d latent dimensions (our choice: it then has the scale of the
    mean error, whatever d is): -(1 + v - m² - e^v) / 2.
    """

    _choice("error", error, ("mae", "mse", "mse_per_rms"))

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        difference = x - outputs[0].reshape(x.shape)
        e = (np.abs if error == "mae" else np.square)(difference, out=difference)
        if error == "mse_per_rms":
            e /= np.sqrt(0.02 + np.square(x).mean(axis=(1, 2), keepdims=True))
        return Score(_mean(e) + beta * _divergence(outputs[1], outputs[2]), lambda: e)

    return score


def distance(arrays: Arrays) -> Scorer:
    """Squared distance of the embedding to the centre (Deep SVDD, S3), mean over patches.

    arrays : center (d,); outputs : (n_patches, d)
    """
    center = arrays["center"]

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        return Score(_distance(outputs[0], center), lambda: np.square(x))

    return score


def ensemble(
    arrays: Arrays,
    distance_mean: float,
    distance_std: float,
    vae_mean: float,
    vae_std: float,
    weight: float = 0.6,
    beta: float = 0.1,
) -> Scorer:
    """weight · z-scored distance + (1 - weight) · z-scored VAE score (S3), shifted by its lowest value to be >= 0.

    outputs : (embedding, reconstruction, mean, log variance); the constants are those of the training scores
    """
    center = arrays["center"]
    floor = -weight * distance_mean / distance_std - (1.0 - weight) * vae_mean / vae_std

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        e = np.abs(x - outputs[1].reshape(x.shape))
        d = (_distance(outputs[0], center) - distance_mean) / distance_std
        v = (_mean(e) + beta * _divergence(outputs[2], outputs[3]) - vae_mean) / vae_std
        return Score(max(weight * d + (1.0 - weight) * v - floor, 0.0), lambda: e)

    return score


def gan(arrays: Arrays, lam: float = 1.0) -> Scorer:
    """Anomaly degree λ·L_n + (1 - λ)·L_o of a generator's reconstruction (S1), mean over patches.

    outputs : (G(ẑ), ẑ (n_patches, N_z)). L_n = ||x - G(ẑ)||₂ / N times sqrt(N) (our choice: the RMS error, which
    does not shrink with the picture), L_o = -||ẑ||₂ / sqrt(N_z), about -1 on what was trained; 2 is added to it, so
    that the sum is >= 0 for all but a latent vector twice as long as any drawn one. |x - G(ẑ)| is the mask.

    λ is 1 by default: with a trained encoder L_o points the wrong way. What is strange gets the longer ẑ, and L_o
    alone ranked handwritten digits with an AUC of 0.15 to 0.36 (3 and 9 as the normal class, where this was chosen).
    """
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"gan lam is {lam}; expected 0 to 1")

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        e = np.abs(x - outputs[0].reshape(x.shape))
        near = np.sqrt(np.square(e).mean(axis=(1, 2), dtype=np.float64))
        z = outputs[1].reshape(len(x), -1)
        length = np.sqrt(np.square(z).mean(axis=1, dtype=np.float64))
        return Score(max(float((lam * near + (1.0 - lam) * (2.0 - length)).mean()), 0.0), lambda: e)

    return score


def log_odds(arrays: Arrays, target: int, n_classes: int, channels: int = 1) -> Scorer:
    """Log-odds against the own class, from logits (n_patches, n_classes); in [0, 27.6].

    Where the network gives feature maps as its second output and the bundle holds its head, the map is Grad-CAM
    of the log-odds; else the squared standardised input.
    """
    _target(target, n_classes)
    floor = math.log(LOG_ODDS_EPS / (1.0 - LOG_ODDS_EPS))
    head = Head.of(arrays)

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        logits: F64 = outputs[0].reshape(-1, n_classes).astype(np.float64)
        logits = logits - logits.max(axis=1, keepdims=True)
        e = np.exp(logits)
        p = np.clip(e[:, target] / e.sum(axis=1), LOG_ODDS_EPS, 1.0 - LOG_ODDS_EPS)
        value = float(np.log((1.0 - p) / p).mean()) - floor

        def seen() -> F32:
            if head is None or len(outputs) < 2:
                return np.square(x)
            others = e.copy()
            others[:, target] = 0.0
            slope = others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300)
            slope[:, target] = -1.0
            gradient = head.gradient(outputs[1], slope.astype(np.float32))
            return grad_cam(outputs[1], gradient, (x.shape[1], x.shape[2]), channels)

        return Score(max(value, 0.0), seen)

    return score


def knn(
    arrays: Arrays,
    k: int = 1,
    metric: str = "cosine",
    target: int = 0,
    n_classes: int = 1,
    output: int = 1,
    spectrum: float = 0.0,
    whiten: float = 0.0,
) -> Scorer:
    """Mean distance of the window's embedding to its k nearest references of the own class.

    arrays : references (m, d') of healthy training windows, group (m,) the class of each; with `whiten` also
             projection (d, d'), through which an embedding goes before it is compared (the references have been)
    output : which output is the embedding, (n_patches, d), or feature maps (n_patches, h, w, d), whose mean over
             the map it then is; its mean over the patches stands for the window
    metric : "cosine" (1 - cos, in [0, 2]) or "euclidean"
    spectrum : above 0, the input's mean over patches and time, so much weighted, stands beside the embedding
    whiten : above 0, the ridge with which the projection was made (`embedding_of`, `trainer.ship`)
    """
    _choice("metric", metric, ("cosine", "euclidean"))
    _target(target, n_classes)
    if k < 1:
        raise ValueError(f"knn k is {k}; expected 1 or more")
    references = _unit(arrays["references"], metric)[arrays["group"].astype(np.int64) == target]
    projection = arrays["projection"] if whiten > 0.0 else None
    if not len(references):
        raise ValueError(f"knn target {target} has no reference among {len(arrays['group'])}")

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        out = outputs[output]
        own = embedding_of(x, out, spectrum)
        own = _unit(own if projection is None else own @ projection, metric)
        d2 = np.square(references - own).sum(axis=1, dtype=np.float64)
        nearest = np.argsort(d2, kind="stable")[:k]
        value = float((d2[nearest] / 2.0 if metric == "cosine" else np.sqrt(d2[nearest])).mean())

        def seen() -> F32:
            # Uphill for the score, in terms of the embedding before the projection.
            slope = own - references[nearest].mean(0)
            if projection is not None:
                slope = projection @ slope
            n, shape = out.shape[-1], (x.shape[1], x.shape[2])
            where = grad_cam(out, slope[:n], shape) if out.ndim == 4 else np.square(x)
            if spectrum > 0.0:
                # Both as shares of a mean: of the map over all places, of a band over time.
                band = np.maximum(x * slope[n:], 0.0) * np.float32(spectrum / shape[0])
                where = band if out.ndim < 4 else where / np.float32(shape[0] * shape[1]) + band
            return where

        return Score(value, seen)

    return score


def embedding_of(x: F32, out: F32, spectrum: float = 0.0) -> F32:
    """What `knn` compares, before any projection: `embedding(out)`, and with `spectrum` > 0 the mean of x beside it.

    x : (n_patches, width, F); returns (d,) or (d + F,)
    """
    own = embedding(out)
    if not spectrum > 0.0:
        return own
    return np.concatenate([own, np.float32(spectrum) * x.mean(axis=(0, 1))]).astype(np.float32)


def embedding(out: F32) -> F32:
    """(d,): the mean over patches, and over the map where there is one, of (n_patches, [h, w,] d)."""
    return np.asarray(out.reshape(-1, out.shape[-1]).mean(0), np.float32)


def indicator(arrays: Arrays, index: int) -> Scorer:
    """Feature number `index` itself, of the newest vector; the rule for bundles without a network."""
    if index < 0:
        raise ValueError(f"indicator index is {index}; expected 0 or more")

    def score(x: F32, outputs: Sequence[F32]) -> Score:
        newest = x[-1:, -1:]
        return Score(max(float(newest[0, 0, index]), 0.0), lambda: np.abs(newest))

    return score


_RULES: dict[str, Callable[..., Scorer]] = {
    "reconstruction": reconstruction,
    "vae": vae,
    "distance": distance,
    "ensemble": ensemble,
    "gan": gan,
    "log_odds": log_odds,
    "knn": knn,
    "indicator": indicator,
}

#: What a recipe may say of each rule beside its kind: a choice of words, or (lowest, highest, default). All else the
#: data decide.
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "reconstruction": {"error": ("mse", "mae", "sse"), "steps": ("all", "newest"), "patches": ("mean", "max")},
    "vae": {"beta": (0.0, 1e3, 0.1), "error": ("mae", "mse", "mse_per_rms")},
    "distance": {},
    "ensemble": {"weight": (0.0, 1.0, 0.6), "beta": (0.0, 1e3, 0.1)},
    "gan": {"lam": (0.0, 1.0, 1.0)},
    "log_odds": {},
    "knn": {
        "k": (1, 1000, 1), "metric": ("cosine", "euclidean"), "spectrum": (0.0, 1e3, 0.0), "whiten": (0.0, 1e3, 0.0),
    },
}


def build(rule: ScoreRule, arrays: Arrays = MappingProxyType({})) -> Scorer:
    """Prepare a rule with its arrays. Raises ValueError naming the rule and the parameter or array."""
    if rule.kind not in _RULES:
        raise ValueError(f"score rule {rule.kind!r} is unknown; known: {', '.join(_RULES)}")
    try:
        return _RULES[rule.kind](arrays, **rule.params)
    except KeyError as error:
        raise ValueError(f"score rule {rule.kind}: array {error} is missing") from None
    except TypeError as error:
        raise ValueError(f"score rule {rule.kind}: {error}") from None


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"score {name} is {value!r}; expected one of {', '.join(known)}")


def _target(target: int, n_classes: int) -> None:
    if not 0 <= target < n_classes:
        raise ValueError(f"score target is {target}; expected 0 to {n_classes - 1}")


def _mean(e: F32) -> float:
    # By patch and feature first: float32 pairs add up in the order that made the published scores.
    return float(e.mean(axis=(0, 1)).mean(dtype=np.float64))


def _distance(z: F32, center: F32) -> float:
    return float(np.square(z.reshape(len(z), -1) - center).sum(axis=1, dtype=np.float64).mean())


def _divergence(mean: F32, log_variance: F32) -> float:
    m, v = (a.astype(np.float64) for a in (mean, log_variance))
    return float(np.maximum(-0.5 * (1.0 + v - m * m - np.exp(np.minimum(v, 50.0))), 0.0).mean())


def _unit(v: F32, metric: str) -> F32:
    """Rows of length 1 for the cosine; zero stays zero."""
    if metric != "cosine":
        return v
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12), np.float32)
