"""Scores against their definitions, and explanations that add up."""

import math

import numpy as np
import pytest

from edge_agent import scoring
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
    causes = scoring.explain(
        ("rms", "bpfo_envelope", "kurtosis", "skewness"), np.array([1.5, 5.5, 0.2, 1.0]), mean, std
    )
    assert causes == (("bpfo_envelope", 0.9, 9.0), ("rms", 0.1, 1.0))
    assert scoring.explain(("rms",), np.array([0.5]), mean[:1], std[:1]) == ()


def test_many_bands_are_told_as_few():
    """128 mel bands are told as 16: a fault over ten neighbouring bands is one or two lines, not ten."""
    names = ("rms", *(f"mel_{50 * i}_{50 * i + 100}hz" for i in range(128)), "energy")
    mean, std = np.full(130, 1.0), np.full(130, 0.25)
    residual = np.ones(130)
    residual[1 + 40 : 1 + 48] = 3.0
    residual[0] = 2.0
    assert scoring.explain(names, residual, mean, std) == (
        ("mel_2000_2450hz", 0.941, 8.0),
        ("rms", 0.059, 4.0),
    )
    few = tuple(f"band_{i}_{i + 1}hz" for i in range(8))
    assert [c.feature for c in scoring.explain(few, np.full(8, 2.0), mean[:8], std[:8])] == list(few[:3])


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
