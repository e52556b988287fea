"""The classifier of faults: its head on the device, its encoder, its classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_agent import bundle as bundles
from edge_agent.causes import Head
from edge_agent.errors import ConfigError, RecordingError
from tests.test_trainer_run import recordings, small
from trainer import architectures, fit
from trainer import data as trainer_data
from trainer.architectures import classifier, deep_svdd
from trainer.evaluate import auc, score_table
from trainer.fit import Data
from trainer.run import run

NETWORK = {"base": 4, "units": 16, "embedding": 8}
QUICK = {
    "epochs": 70,
    "learning_rate": 1e-2,
    "batch": 8,
    "pretrain": 4,
    "one_class": 3,
    "unfreeze_1": 60,
    "unfreeze_2": 65,
    "patience": 0,
}


def recipe(tmp_path, **changes):
    """A classifier of 16 × 16 log-mel pictures."""
    raw = {
        "model": "classifier",
        "context": {"over": "frames", "width": 16, "hop": 7},
        "network": NETWORK,
        "train": QUICK,
        "split": {"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0], "anomalies": 6},
    }
    return small(tmp_path, **(raw | changes))


def found():
    """Healthy recordings, and faulty ones with a loud tone."""
    return recordings(30) + recordings(12, label="anomaly", burst=1.0, seed=9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One small bundle."""
    root = tmp_path_factory.mktemp("classifier")
    chosen = recipe(root)
    return run(chosen, root / "b", table=trainer_data.table(chosen, found()))


def test_faults_that_were_not_learnt_score_higher(trained):
    """The shipped file ranks the faulty recordings that were held out above the healthy ones that calibrate."""
    table, parts = trained.table, trained.parts
    learnt = set(table.recording[parts.anomalies])
    fresh = np.array([not c.healthy and i not in learnt for i, c in enumerate(table.clips)])[table.recording]
    held = np.zeros(len(table), bool)
    held[parts.calibrate] = True
    scores = score_table(bundles.load(trained.bundle.path), table)
    assert fresh.sum() == 6
    assert auc(scores[fresh | held], fresh[fresh | held]) > 0.95


def test_the_head_in_the_bundle_is_that_of_the_network(trained):
    """The dense layers stored for Grad-CAM give the network's own logits from its feature maps."""
    judge = bundles.load(trained.bundle.path).judge
    x = judge.features.patches(judge.features.standardise(trained.table.vectors[0]))
    logits, maps = (np.asarray(o) for o in trained.network(x))
    h = maps.mean((1, 2))
    pairs = classifier.dense_layers(trained.network)
    for i, (weights, bias) in enumerate(pairs):
        h = h @ weights + bias
        h = np.maximum(h, 0.0) if i < len(pairs) - 1 else h
    assert np.allclose(h, logits, atol=1e-4)


def test_the_heads_gradient_is_that_of_keras(trained):
    """d(logit 1 - logit 0) / d(mean of a map), as the device computes it, equals automatic differentiation."""
    tf = fit.tensorflow()
    import keras

    head = Head(classifier.dense_layers(trained.network))
    _, maps = trained.network.outputs
    behind = keras.Model(maps, trained.network.outputs[0])
    rng = np.random.default_rng(3)
    some = np.abs(rng.standard_normal((2, *maps.shape[1:]))).astype(np.float32)
    given = tf.constant(some)
    with tf.GradientTape() as tape:
        tape.watch(given)
        out = behind(given, training=False)
        value = tf.reduce_sum(out[:, 1] - out[:, 0])
    # A mean over h · w places hands each of them 1 / (h · w) of its slope.
    expected = np.asarray(tape.gradient(value, given)).sum((1, 2))
    slope = np.tile(np.array([-1.0, 1.0], np.float32), (2, 1))
    assert np.allclose(head.gradient(some, slope), expected, rtol=1e-3, atol=1e-5)


def test_a_fault_is_explained_by_its_band(trained):
    """The bundle's map of a faulty window is finite, not negative, and has the picture's shape."""
    judge = bundles.load(trained.bundle.path).judge
    table = trained.table
    faulty = np.flatnonzero(~table.healthy())
    score = judge.score(judge.features.standardise(table.vectors[faulty[0]]))
    excess = score.excess()
    assert excess.shape[1:] == (16, 16)
    assert np.isfinite(excess).all()
    assert excess.min() >= 0.0


def test_an_encoder_can_be_handed_over(tmp_path):
    """The classifier's encoder with the weights of a Deep SVDD network gives that network's embeddings."""
    fit.tensorflow()
    far = deep_svdd.build((16, 16), **NETWORK)
    network = architectures.build("classifier", (16, 16), 1, NETWORK)
    network.set_weights(classifier.with_encoder(network, far.get_weights()))
    x = np.random.default_rng(0).standard_normal((3, 16, 16)).astype(np.float32)
    assert np.allclose(classifier.encoder_of(network)(x), far(x), atol=1e-6)


def test_a_frozen_encoder_stays_as_it_is():
    """With all epochs before unfreeze_1 the encoder keeps its weights to the last bit, and the head learns."""
    data, chosen = patches(), 5
    network, before = course_of(data, epochs=chosen, unfreeze_1=5, unfreeze_2=6)
    after = classifier.encoder_of(network).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before["encoder"], after, strict=True))
    assert not np.array_equal(before["head"], network.get_layer("head_1").get_weights()[0])


def test_stages_are_unfrozen_from_the_last_on():
    """Of the unfrozen blocks the last stage learns first; BatchNorm and the stem keep what they were."""
    fit.tensorflow()
    encoder = deep_svdd.build((16, 16), **NETWORK)
    stages = classifier._stages(encoder)
    assert [sorted({getattr(la, "filters", None) for la in s} - {None}) for s in stages] == [
        [4],
        [8],
        [16],
        [32],
    ]
    assert not any("BatchNormalization" in type(la).__name__ for s in stages for la in s)


def patches(n=24, n_bad=3):
    """Noise, and noise with a bright row."""
    rng = np.random.default_rng(5)
    x, bad = (rng.standard_normal((k, 16, 16)).astype(np.float32) for k in (n, n_bad))
    bad[:, :, 4] += 3.0
    held = rng.standard_normal((6, 16, 16)).astype(np.float32)
    return Data(x, np.zeros(n, np.int32), held, np.zeros(6, np.int32), bad)


def course_of(data, **options):
    """(a classifier trained on `data`, its encoder's and head's weights before)."""
    import keras

    fit.tensorflow()
    keras.utils.set_random_seed(1)
    network = architectures.build("classifier", (16, 16), 1, NETWORK)
    before = {
        "encoder": classifier.encoder_of(network).get_weights(),
        "head": network.get_layer("head_1").get_weights()[0],
    }
    epochs = options.pop("epochs")
    course = fit.Course(_bare(epochs), data, None)
    classifier.train(network, course, pretrain=0, one_class=0, **options)
    return network, before


def _bare(epochs):
    from pathlib import Path
    from tempfile import mkdtemp

    chosen = recipe(Path(mkdtemp()))
    return replace(chosen, train=replace(chosen.train, epochs=epochs, options={}))


@pytest.mark.parametrize(("n", "n_bad"), [(24, 1), (4, 20)])
def test_few_of_either_class_are_drawn_with_replacement(n, n_bad):
    """A single anomaly, or fewer healthy patches than anomalies, train a network that gives finite logits."""
    network, _ = course_of(patches(n, n_bad), epochs=3, unfreeze_1=2, unfreeze_2=3)
    assert np.isfinite(np.asarray(network(patches().x)[0])).all()


def test_an_empty_class_is_refused(tmp_path):
    """Without any labelled anomaly nothing is trained: the error says how to get some."""
    chosen = recipe(tmp_path)
    with pytest.raises(RecordingError, match="learns from labelled anomalies and found none"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, recordings(30)))
    with pytest.raises(RecordingError, match="0 anomalous patches"):
        course_of(patches(24, 0), epochs=2, unfreeze_1=1, unfreeze_2=2)


def test_blocks_cannot_be_unfrozen_backwards(tmp_path):
    """unfreeze_2 before unfreeze_1 is a mistake of the recipe."""
    chosen = recipe(tmp_path, train=QUICK | {"unfreeze_1": 5, "unfreeze_2": 4})
    with pytest.raises(ConfigError, match="unfreeze_1 5, unfreeze_2 4"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, found()))


def test_a_patch_without_weight_teaches_nothing():
    """Whatever patches of weight 0 look like, the classifier comes out the same to the last bit."""
    data = patches(24, 6)
    weight = np.repeat(np.array([1.0, 0.0], np.float32), 12)
    results = []
    for other in (data.x, 100.0 + data.x):
        x = np.concatenate([data.x[:12], other[12:]])
        network, _ = course_of(replace(data, x=x, weight=weight), epochs=2, unfreeze_1=1, unfreeze_2=2)
        results.append(network.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
