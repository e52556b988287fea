"""Scores against their definitions, and explanations that add up."""

import itertools
import math

import numpy as np
import pytest

from edge_agent import causes, scoring
from edge_agent.scoring import ScoreRule

rng = np.random.default_rng(0)
X = rng.normal(size=(3, 4, 5)).astype(np.float32)
Y = rng.normal(size=(3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"error": "mse"}, np.mean((X - Y) ** 2)),
        ({"error": "mae"}, np.mean(np.abs(X - Y))),
        ({"error": "sse"}, np.mean(np.sum((X - Y) ** 2, axis=(1, 2)))),
        ({"error": "mae", "steps": "newest"}, np.mean(np.abs(X - Y)[:, -1])),
        ({"error": "mse", "patches": "max"}, np.max(np.mean((X - Y) ** 2, axis=(1, 2)))),
    ],
)
def test_reconstruction_scores_are_their_definitions(params, expected):
    """Each error equals its formula written out; a flat model output is read in the shape of x."""
    score = scoring.build(ScoreRule("reconstruction", params))(X, [Y.reshape(3, 20)])
    assert score.value == pytest.approx(float(expected), rel=1e-5)
    assert score.residual.shape == (5,)


def test_log_odds_is_the_mean_over_the_clip():
    """Three windows with p = 0.9, 0.5, 0.1 of the own class: mean log((1-p)/p), shifted to start at 0."""
    p = np.array([0.9, 0.5, 0.1])
    logits = np.stack([np.log(p), np.log1p(-p)], axis=1).astype(np.float32) + 3.0
    value = scoring.build(ScoreRule("log_odds", {"target": 0, "n_classes": 2}))(X, [logits]).value
    assert value == pytest.approx(np.log((1 - p) / p).mean() + math.log(1e6 - 1), rel=1e-5)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_log_odds_stays_finite_and_not_negative(logit):
    """A saturated network gives the ends of [0, 27.6], never an infinity."""
    logits = np.array([[logit, 0.0]] * 3, np.float32)
    value = scoring.build(ScoreRule("log_odds", {"target": 0, "n_classes": 2}))(X, [logits]).value
    assert value == pytest.approx(0.0 if logit > 0 else 2 * math.log(1e6 - 1), abs=1e-3)


def test_indicator_is_the_feature_itself():
    """Feature 2 of the newest vector, unchanged."""
    positive = np.abs(X)
    assert scoring.build(ScoreRule("indicator", {"index": 2}))(positive, []).value == float(
        positive[-1, -1, 2]
    )


def test_why_names_the_feature_that_left_normal():
    """Shares are of the excess over normal and sum to 1; z counts normal's standard deviations."""
    mean, std = np.full(4, 1.0), np.full(4, 0.5)
    told = causes.explain(
        ("rms", "bpfo_envelope", "kurtosis", "skewness"), np.array([1.5, 5.5, 0.2, 1.0]), mean, std
    )
    assert told == (("bpfo_envelope", 0.9, 9.0), ("rms", 0.1, 1.0))
    assert causes.explain(("rms",), np.array([0.5]), mean[:1], std[:1]) == ()


def test_many_bands_are_told_as_few():
    """128 mel bands are told as 16: a fault over ten neighbouring bands is one or two lines, not ten."""
    names = ("rms", *(f"mel_{50 * i}_{50 * i + 100}hz" for i in range(128)), "energy")
    mean, std = np.full(130, 1.0), np.full(130, 0.25)
    residual = np.ones(130)
    residual[1 + 40 : 1 + 48] = 3.0
    residual[0] = 2.0
    assert causes.explain(names, residual, mean, std) == (
        ("mel_2000_2450hz", 0.941, 8.0),
        ("rms", 0.059, 4.0),
    )
    few = tuple(f"band_{i}_{i + 1}hz" for i in range(8))
    assert [c.feature for c in causes.explain(few, np.full(8, 2.0), mean[:8], std[:8])] == list(few[:3])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (ScoreRule("recon"), "'recon' is unknown; known: reconstruction"),
        (ScoreRule("reconstruction", {"error": "rmse"}), "expected one of mse"),
        (ScoreRule("reconstruction", {"errror": "mse"}), "errror"),
        (ScoreRule("log_odds", {"target": 4, "n_classes": 4}), "expected 0 to 3"),
        (ScoreRule("indicator", {"index": -1}), "expected 0 or more"),
    ],
)
def test_an_unknown_rule_or_parameter_is_named(rule, says):
    """A bundle with a wrong score rule is refused with the word that is wrong."""
    with pytest.raises(ValueError, match=says):
        scoring.build(rule)


CENTER = rng.normal(size=7).astype(np.float32)
Z = rng.normal(size=(3, 7)).astype(np.float32)
MEAN, LOG_VARIANCE = (rng.normal(size=(3, 6)).astype(np.float32) for _ in range(2))


def divergence():
    """KL to the standard normal, term by term."""
    return np.mean(0.5 * (MEAN**2 + np.exp(LOG_VARIANCE) - LOG_VARIANCE - 1))


def test_distance_is_the_squared_distance_to_the_centre():
    """Mean over patches of ||z - c||²."""
    value = scoring.build(ScoreRule("distance"), {"center": CENTER})(X, [Z]).value
    assert value == pytest.approx(np.mean([np.linalg.norm(z - CENTER) ** 2 for z in Z]), rel=1e-5)


def test_vae_score_is_l1_and_a_tenth_of_the_divergence():
    """Mean L1 error + 0.1 KL; the map is the absolute error."""
    score = scoring.build(ScoreRule("vae"))(X, [Y, MEAN, LOG_VARIANCE])
    assert score.value == pytest.approx(np.mean(np.abs(X - Y)) + 0.1 * divergence(), rel=1e-5)
    np.testing.assert_allclose(score.residual, np.abs(X - Y).mean((0, 1)), rtol=1e-5)


def test_ensemble_is_the_weighted_z_scores_up_to_its_floor():
    """0.6 z-scored distance + 0.4 z-scored VAE score, less the least that it can be."""
    constants = {"distance_mean": 5.0, "distance_std": 2.0, "vae_mean": 1.0, "vae_std": 0.25}
    far = np.mean([np.linalg.norm(z - CENTER) ** 2 for z in Z])
    near = np.mean(np.abs(X - Y)) + 0.1 * divergence()
    expected = 0.6 * (far - 5) / 2 + 0.4 * (near - 1) / 0.25
    floor = 0.6 * (0 - 5) / 2 + 0.4 * (0 - 1) / 0.25
    rule = scoring.build(ScoreRule("ensemble", constants), {"center": CENTER})
    assert rule(X, [Z, Y, MEAN, LOG_VARIANCE]).value == pytest.approx(expected - floor, rel=1e-5)
    perfect = rule(X, [np.tile(CENTER, (3, 1)), X, MEAN * 0, MEAN * 0]).value
    assert perfect == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gan_score_is_the_anomaly_degree_plus_a_constant(lam):
    """λ·RMS error + (1 - λ)·(2 - ||z|| / sqrt(N_z)), patch by patch."""
    near = [np.sqrt(np.mean((x - y) ** 2)) for x, y in zip(X, Y, strict=True)]
    length = [np.linalg.norm(z) / np.sqrt(7) for z in Z]
    expected = lam * np.mean(near) + (1 - lam) * (2 - np.mean(length))
    score = scoring.build(ScoreRule("gan", {"lam": lam}))(X, [Y, Z])
    assert score.value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(score.excess(), np.abs(X - Y))


def test_gan_score_leaves_the_length_of_the_latent_vector_out_by_default():
    """λ = 1: the RMS error alone, whatever ẑ is."""
    rule = scoring.build(ScoreRule("gan"))
    assert rule(X, [Y, Z]).value == rule(X, [Y, 5.0 * Z]).value
    assert rule(X, [X, Z]).value == 0.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_is_the_oracles(metric):
    """Mean distance to the k nearest references of the own class, as scikit-learn finds them."""
    from sklearn.neighbors import NearestNeighbors

    references = rng.normal(size=(20, 8)).astype(np.float32)
    group = np.arange(20) % 2
    maps = rng.normal(size=(3, 2, 4, 8)).astype(np.float32)
    own = maps.reshape(-1, 8).mean(0, keepdims=True)
    for target in (0, 1):
        params = {"k": 3, "metric": metric, "target": target, "n_classes": 2}
        rule = scoring.build(ScoreRule("knn", params), {"references": references, "group": group.astype(np.float32)})
        oracle = NearestNeighbors(n_neighbors=3, metric=metric).fit(references[group == target])
        assert rule(X, [Z, maps]).value == pytest.approx(oracle.kneighbors(own)[0].mean(), rel=1e-4)


def test_grad_cam_is_the_gradient_of_the_log_odds():
    """The head's gradient equals a numerical one, through ReLU layers; the map points at the lit place."""
    sizes = (6, 5, 4, 2)
    layers = [
        (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    ]
    head = causes.Head(layers)
    assert [a.shape for a in causes.Head.of(head.arrays()).layers[0]] == [(6, 5), (5,)]
    maps = np.abs(rng.normal(size=(1, 2, 3, 6))).astype(np.float32)

    def logit_difference(mean):
        for i, (weights, bias) in enumerate(layers):
            mean = mean @ weights.astype(np.float64) + bias
            mean = np.maximum(mean, 0) if i < len(layers) - 1 else mean
        return mean[1] - mean[0]

    mean = maps[0].mean((0, 1)).astype(np.float64)
    numeric = [(logit_difference(mean + d) - logit_difference(mean - d)) / 2e-5 for d in np.eye(6) * 1e-5]
    slope = np.array([[-1.0, 1.0]], np.float32)
    np.testing.assert_allclose(head.gradient(maps, slope)[0], numeric, rtol=1e-3, atol=1e-4)
    lit = np.zeros((1, 2, 3, 6), np.float32)
    lit[0, 1, 2] = np.maximum(numeric, 0)
    seen = causes.grad_cam(lit, np.array(numeric, np.float32), (8, 12))
    assert seen.shape == (1, 8, 12)
    assert np.array_equal(seen[0] > 0, np.outer(np.arange(8) >= 4, np.arange(12) >= 8))


def test_a_rule_without_its_arrays_is_refused():
    """A bundle whose score.npz lost an array says which."""
    with pytest.raises(ValueError, match="distance: array 'center' is missing"):
        scoring.build(ScoreRule("distance"))
