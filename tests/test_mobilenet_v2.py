"""MobileNetV2: its losses against their formulas, what an angular head leaves as it was, and k-NN on what it sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from sklearn.neighbors import NearestNeighbors
from test_trainer_run import recordings, small

from edge_agent import bundle as bundles
from edge_agent import scoring
from edge_agent.errors import ConfigError, RecordingError
from edge_agent.scoring import ScoreRule
from trainer import architectures, fit, losses, ship
from trainer import data as trainer_data
from trainer.architectures import mobilenet_v2
from trainer.evaluate import score_table
from trainer.run import run
from trainer.ship import Inputs

CONTEXT = {"over": "frames", "width": 16, "hop": 8}


def cosines(seed, n, width):
    """(n, width) numbers as a cosine gives them."""
    return np.random.default_rng(seed).uniform(-0.95, 0.95, (n, width)).astype(np.float32)


def shares(seed, n, classes):
    """(n, classes) mixed classes: two of them, in shares that sum to 1."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(size=(n, 1)).astype(np.float32)
    one, other = (np.eye(classes, dtype=np.float32)[rng.integers(classes, size=n)] for _ in range(2))
    return share * one + (1 - share) * other


@pytest.fixture(scope="module", autouse=True)
def _tensorflow():
    fit.tensorflow()


def test_arcface_without_a_margin_is_the_softmax_of_the_scaled_cosines() -> None:
    """With margin 0 and one sub-centre ArcFace is cross-entropy against scale · cos, mixed classes too."""
    cos, y = cosines(0, 6, 4), shares(1, 6, 4)
    got = losses.arcface(1, 0.0, 16.0)(cos, None, y).numpy()
    assert got == pytest.approx(-(y * log_softmax(16.0 * cos.astype(float), axis=1)).sum(1), rel=1e-3, abs=1e-4)


def test_arcface_asks_for_an_angle_of_the_nearest_sub_centre() -> None:
    """The loss is that of cos(θ + m) for the own class and cos θ for the others, θ to the nearest sub-centre."""
    cos, m, s = cosines(2, 5, 6), 0.4, 8.0
    y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    got = losses.arcface(2, m, s)(cos, None, y).numpy()
    nearest = cos.astype(float).reshape(5, 3, 2).max(2)
    own = y.argmax(1)
    logits = s * nearest
    rows = np.arange(5)
    logits[rows, own] = s * np.cos(np.minimum(np.arccos(nearest[rows, own]) + m, np.pi))
    assert got == pytest.approx(-log_softmax(logits, axis=1)[rows, own], rel=1e-3, abs=1e-4)


def test_a_margin_never_makes_it_easier() -> None:
    """For the same cosines a wider margin is a higher loss."""
    cos, y = cosines(3, 50, 5), np.eye(5, dtype=np.float32)[np.arange(50) % 5]
    values = [losses.arcface(1, m, 16.0)(cos, None, y).numpy() for m in (0.0, 0.2, 0.5)]
    assert np.all(values[1] > values[0])
    assert np.all(values[2] > values[1])


def test_adacos_adds_up_a_class_of_sub_centres() -> None:
    """The probability of a class is the sum of its sub-centres' softmax, at the fixed scale sqrt(2) log(n - 1)."""
    cos, y = cosines(4, 7, 12), shares(5, 7, 4)
    got = losses.adacos(4, 3)(cos, None, y).numpy()
    z = np.sqrt(2.0) * np.log(11.0) * cos.astype(float)
    log_p = logsumexp(log_softmax(z, axis=1).reshape(7, 4, 3), axis=2)
    assert got == pytest.approx(-(y * log_p).sum(1), rel=1e-4)


def test_smoothed_crossentropy_of_whole_classes_is_that_of_their_numbers() -> None:
    """Shares that are one class give what the class number gives."""
    logits, number = 5.0 * cosines(6, 8, 3), np.arange(8) % 3
    soft = losses.soft_crossentropy(logits, None, np.eye(3, dtype=np.float32)[number]).numpy()
    assert soft == pytest.approx(losses.crossentropy(_tensor(logits), None, number).numpy(), rel=1e-5)


def _tensor(x):
    return fit.tensorflow().constant(x)


@given(st.floats(0.1, 2.0), st.integers(2, 12), st.integers(0, 1000))
def test_mixup_mixes_a_patch_and_its_class_alike(alpha, n, seed) -> None:
    """The classes' shares sum to 1, and x is mixed in just these shares: x of a constant class stays that class."""
    y = np.eye(n, dtype=np.float32)
    x = np.broadcast_to(y[:, None, :, None], (n, 3, n, 1)).copy()
    mixed_x, mixed_y = mobilenet_v2._mixed(alpha)(x, y, np.random.default_rng(seed))
    assert mixed_y.sum(1) == pytest.approx(np.ones(n), abs=1e-5)
    assert np.allclose(mixed_x[:, 0, :, 0], mixed_y, atol=1e-6)
    assert mixed_x.dtype == mixed_y.dtype == np.float32


def test_without_its_level_a_patch_may_be_as_loud_as_it_likes() -> None:
    """level: remove: a constant added to a patch changes no output; with keep it does."""
    import keras

    x = np.random.default_rng(0).standard_normal((2, 16, 16, 1)).astype(np.float32)
    for level, same in (("remove", True), ("keep", False)):
        keras.utils.set_random_seed(0)
        network = architectures.build("mobilenet_v2", (16, 16), 3, {"head": 16, "level": level})
        a, b = (fit.predict(network, v)[0] for v in (x, x + 3.0))
        assert bool(np.abs(a - b).max() < 1e-3 * np.abs(a).max()) is same
    with pytest.raises(ValueError, match=r"network.level is 'none'; expected one of keep, remove"):
        architectures.build("mobilenet_v2", (16, 16), 3, {"level": "none"})


def machines():
    """Two machines, their faults: a tone that neither has."""
    out = []
    for name, tone, seed in (("id_00", 200.0, 0), ("id_01", 900.0, 5)):
        out += recordings(24, machine=name, tone=tone, seed=seed)
        out += recordings(8, machine=name, tone=tone, seed=seed + 50, label="anomaly", burst=0.4)
    return out


def recipe_of(tmp_path, **train):
    score = train.pop("score", {"kind": "log_odds"})
    return small(
        tmp_path,
        model="mobilenet_v2",
        context=CONTEXT,
        network={"head": 32, "level": "remove"},
        train={"epochs": 30, "batch": 8, "learning_rate": 3e-3, "patience": 0, **train},
        score=score,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Features of the two machines."""
    return trainer_data.table(recipe_of(tmp_path_factory.mktemp("table")), machines())


@pytest.fixture(scope="module", params=["arcface", "adacos"])
def angular(request, tmp_path_factory, table):
    """A bundle for each angular head, scored by whitened k-NN with the mean spectrum beside the embedding."""
    root = tmp_path_factory.mktemp(request.param)
    score = {"kind": "knn", "metric": "cosine", "spectrum": 4, "whiten": 0.1}
    how = recipe_of(root, head_loss=request.param, sub_centres=2, mixup=0.3, score=score)
    return run(how, root / "b", table=table)


def test_the_log_odds_hold_beside_an_angular_head(angular, table) -> None:
    """The logits that ship tell held-out healthy clips of the two machines apart, whatever shaped the embedding."""
    features = angular.bundle.judge.features
    vectors = features.standardise(table.vectors)
    right = []
    for i in angular.parts.calibrate:
        logits = angular.bundle.judge.model(features.patches(vectors[i]))[0]
        own = angular.manifest.classes.index(table.of([i])[0].machine)
        right.append(int(logits.mean(0).argmax()) == own)
    assert np.mean(right) > 0.9


def test_the_head_in_the_bundle_is_that_of_the_logits(angular) -> None:
    """Means of the float network's maps through the stored head give its logits: Grad-CAM sees what scores."""
    features = angular.bundle.judge.features
    x = features.patches(features.standardise(angular.table.vectors[:1])[0])[..., None]
    logits, maps = fit.predict(angular.network, x)
    with np.load(angular.bundle.path / "score.npz") as arrays:
        assert maps.mean((1, 2)) @ arrays["head_w0"] + arrays["head_b0"] == pytest.approx(logits, abs=1e-3)


def test_the_bundles_score_is_the_nearest_neighbour_of_its_embedding(angular, table) -> None:
    """Scores of the shipped file equal scikit-learn's nearest neighbour by the cosine, on whitened embeddings."""
    judge = angular.bundle.judge
    features = judge.features
    vectors = features.standardise(table.vectors)

    def embedded(i):
        x = features.patches(vectors[i])
        return np.concatenate([judge.model(x)[1].mean((0, 1, 2)), 4.0 * x.mean((0, 1))])

    with np.load(angular.bundle.path / "score.npz") as arrays:
        projection = arrays["projection"]
    for number, name in enumerate(angular.manifest.classes):
        own = [i for i in angular.parts.train if table.of([i])[0].machine == name]
        search = NearestNeighbors(n_neighbors=1, metric="cosine").fit([embedded(i) @ projection for i in own])
        wanted = search.kneighbors([embedded(i) @ projection for i in range(len(table))])[0][:, 0]
        got = score_table(bundles.load(angular.bundle.path, name, golden=False), table)
        assert got == pytest.approx(wanted, abs=1e-4), number


def test_a_raised_band_is_where_it_points(angular, table) -> None:
    """The map of a clip with a fault at 1.5 kHz is finite, at least 0, and says more there than it does for healthy ones."""
    judge = angular.bundle.judge
    vectors = judge.features.standardise(table.vectors)
    bad = [i for i in range(len(table)) if not table.of([i])[0].healthy and table.of([i])[0].machine == "id_00"]
    fresh = [i for i in angular.parts.calibrate if table.of([i])[0].machine == "id_00"]
    assert angular.manifest.classes[0] == "id_00"
    low, high = (np.mean([judge.score(vectors[i]).residual for i in part], axis=0) for part in (fresh, bad))
    assert np.isfinite([low, high]).all()
    assert min(low.min(), high.min()) >= 0.0
    gain = high - low
    lowest, highest = (float(x) for x in judge.features.names[int(gain.argmax())].rstrip("hz").split("_")[-2:])
    assert lowest <= 1500.0 <= highest


def test_an_unknown_head_is_refused(tmp_path, table) -> None:
    """The error names the option, its value and the choices."""
    with pytest.raises(ConfigError, match=r"head_loss is 'cosface'; expected one of crossentropy, arcface, adacos"):
        run(recipe_of(tmp_path, head_loss="cosface"), tmp_path / "b", table=table)


@given(st.integers(0, 1000), st.integers(1, 4))
def test_whitened_embeddings_scatter_alike_in_every_direction(seed, groups) -> None:
    """With a ridge that vanishes beside the scatter in every direction, that within the groups becomes the identity."""
    rng = np.random.default_rng(seed)
    d, n = 4, 60
    group = np.arange(n) % groups
    turned = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = rng.standard_normal((n, d)) * rng.uniform(0.3, 3.0, d) @ turned + 10.0 * group[:, None]
    z = x @ ship.whitening(x.astype(np.float32), group, 1e-9).astype(float)
    within = np.concatenate([z[group == g] - z[group == g].mean(0) for g in range(groups)])
    assert within.T @ within / n == pytest.approx(np.eye(d), abs=0.05)


def test_equal_embeddings_cannot_be_whitened() -> None:
    """The error says what is wrong with the recordings."""
    with pytest.raises(RecordingError, match="the 6 training windows of each machine have the same embedding"):
        ship.whitening(np.ones((6, 3), np.float32), np.zeros(6), 0.1)


def test_a_whitened_rule_needs_its_projection() -> None:
    """A bundle without the matrix is refused by name."""
    arrays = {"references": np.ones((2, 3), np.float32), "group": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match="array 'projection' is missing"):
        scoring.build(ScoreRule("knn", {"whiten": 0.1}), arrays)


def test_the_spectrum_beside_the_embedding_is_the_inputs_mean() -> None:
    """References of equal embeddings differ by the weighted mean spectrum alone: 3 · |(1, 0) - (0, 1)| = 3 sqrt(2)."""
    x = np.zeros((2, 2, 4, 2), np.float32)
    x[0, :, :, 0], x[1, :, :, 1] = 1.0, 1.0
    out = np.ones((2, 2, 1, 1, 5), np.float32)
    rule = ScoreRule("knn", {"metric": "euclidean", "spectrum": 3.0})
    of = Inputs(x[:1], np.zeros(1, np.int64))
    rule, arrays = ship.fit_score(rule, {}, (out[:1, :, 0, 0], out[:1]), of)
    score = scoring.build(rule, arrays)
    assert score(x[0], (None, out[0])).value == pytest.approx(0.0, abs=1e-6)
    far = score(x[1], (None, out[1]))
    assert far.value == pytest.approx(3.0 * np.sqrt(2.0), rel=1e-6)
    assert far.residual[1] > 0.0
    assert far.residual[0] == 0.0
