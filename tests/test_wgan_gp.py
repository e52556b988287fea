"""WGAN-GP and its encoder: the penalty's physics, the conversions, a whole run to a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_agent import bundle as bundles
from edge_agent import inference
from edge_agent.errors import ConfigError
from edge_agent.features import Family, FeatureSpec
from edge_agent.inference import TFLiteModel
from trainer import architectures, export, fit, recipe
from trainer.architectures import wgan_gp
from trainer.data import Clip, Table
from trainer.evaluate import auc, score_table
from trainer.run import FitResult, run

SIZE = 16


def spots(n: int, rows: tuple[int, int], seed: int) -> np.ndarray:
    """(n, 16, 16) pictures of one bright square of 4 × 4 pixels whose upper edge lies in `rows`."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.0, 0.05, (n, SIZE, SIZE))
    for picture in x:
        top, left = int(rng.integers(*rows)), int(rng.integers(0, SIZE - 3))
        picture[top : top + 4, left : left + 4] += rng.uniform(0.7, 0.9)
    return x.astype(np.float32)


def table(x: np.ndarray, label: str) -> Table:
    """Every picture a recording of one window, a row a frame."""
    spec = FeatureSpec(SIZE * SIZE, SIZE * SIZE, SIZE * SIZE, 1, (Family("raw", {"frame": SIZE}),))
    clips = tuple(Clip(f"{label}_{i:04d}", label, None) for i in range(len(x)))
    spectrum = np.sqrt((np.abs(np.fft.rfft(x.reshape(len(x), -1))) ** 2).mean(0))[np.newaxis]
    names = tuple(f"s{i}" for i in range(SIZE))
    return Table(spec, names, x, np.arange(len(x), dtype=np.float64), np.arange(len(x)), clips, spectrum)


def plan(**train: object) -> recipe.Recipe:
    """A network small enough for a test."""
    return recipe.parse({
        "name": "spots",
        "model": "wgan_gp",
        "data": {"simulate": "demo"},
        "window": {"n_samples": SIZE * SIZE},
        "features": [{"kind": "raw", "frame": SIZE}],
        "context": {"over": "frames", "width": SIZE, "hop": SIZE},
        "network": {"latent": 8, "ngf": 8, "encoder": 8},
        "split": {"by": "recording", "train": [0.0, 0.8], "calibrate": [0.8, 1.0]},
        "threshold": {"method": "gamma", "false_alarm_rate": 0.05},
        "train": {
            "epochs": 3, "batch": 32, "learning_rate": 2e-3, "patience": 0, "validation": 0, "ndf": 4,
            "encoder_epochs": 3, "tune_epochs": 20, "settle_epochs": 2,
        } | train,
    })  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """A bundle that knows squares in the upper half."""
    out: Path = tmp_path_factory.mktemp("wgan") / "spots"
    return run(plan(), out, table=table(spots(400, (0, 5), 1), "normal"))


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 0.0), (3.0, 4.0), (0.0, 1.0)])
def test_a_critic_that_rises_by_one_pays_no_penalty(slope: float, expected: float) -> None:
    """D(x) = slope · <w, x> with ||w|| = 1 has the gradient `slope` everywhere: the penalty is (slope - 1)²."""
    tf = fit.tensorflow()
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 4)).astype(np.float32)
    w /= np.linalg.norm(w)
    real, fake = rng.standard_normal((2, 6, 5, 4)).astype(np.float32)

    def value(x: object) -> object:
        return slope * tf.reduce_sum(x * w, [1, 2])[:, np.newaxis]

    share = tf.constant(rng.random(6, dtype=np.float32))
    got = wgan_gp.gradient_penalty(value, tf.constant(real), tf.constant(fake), share).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_penalty_looks_between_real_and_drawn() -> None:
    """D(x) = ||x||² / 2 has the gradient x: with a share of 0 the penalty is that of the real picture, with 1 of the
    drawn one, half-way that of their mean."""
    tf = fit.tensorflow()
    real, fake = np.full((3, 1, 1), 5.0, np.float32), np.full((3, 1, 1), 2.0, np.float32)
    share = tf.constant(np.array([0.0, 0.5, 1.0], np.float32))
    got = wgan_gp.gradient_penalty(
        lambda x: tf.reduce_sum(x**2, [1, 2])[:, np.newaxis] / 2.0,
        tf.constant(real),
        tf.constant(fake),
        share,
    )
    np.testing.assert_allclose(got.numpy(), [16.0, 6.25, 1.0], rtol=1e-5)


def test_pictures_of_28_get_the_layers_of_the_thesis() -> None:
    """Dense 4·4·4·ngf, transposed convolutions 4 → 8 → 12 → 30 with an edge cut off; critic 28 → 14 → 7 → 4."""
    fit.tensorflow()
    import keras

    network = architectures.build("wgan_gp", (28, 28), 1, {"ngf": 64})
    inner = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    assert [layer.output.shape[1:3] for layer in inner] == [(8, 8), (12, 12), (30, 30)]
    assert [layer.kernel_size[0] for layer in inner] == [5, 5, 8]
    assert [layer.strides[0] for layer in inner] == [1, 1, 2]
    assert [o.shape[1:] for o in network.outputs] == [(28, 28), (128,)]
    start = keras.Model(network.outputs[1], network.outputs[0]).layers[1]
    assert start.units == 4 * 4 * 4 * 64
    expert = wgan_gp.critic((28, 28), 64)
    halves = [layer for layer in expert.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.output.shape[1] for layer in halves] == [14, 7, 4]
    assert expert.output_shape[0] == (None, 1)


@pytest.mark.parametrize(
    ("shape", "channels", "kind", "off"),
    [
        ((28, 28), 1, "float32", 1e-5),
        ((28, 28), 1, "float16", 5e-3),
        ((28, 28), 1, "int8", 0.05),
        ((21, 10), 1, "int8", 0.05),
        ((16, 48), 3, "int8", 0.05),
    ],
)
def test_every_size_ships_as_keras_has_it(
    shape: tuple[int, int], channels: int, kind: str, off: float
) -> None:
    """Float, half and int8 files of every kind of picture hold built-in operators, take several pictures at once, and
    give Keras' outputs to the rounding of their type."""
    fit.tensorflow()
    params = {"latent": 8, "ngf": 4, "encoder": 4, "channels": channels}
    network = architectures.build("wgan_gp", shape, 1, params)
    x = np.random.default_rng(0).random((12, *shape), np.float32)
    drawn, z = fit.predict(network, x)
    assert drawn.min() > 0.0
    assert drawn.max() < 1.0
    flat = export.tflite("wgan_gp", shape, 1, params, network.get_weights(), kind, x)
    got = TFLiteModel(flat, len(x), shape)(x)
    np.testing.assert_allclose(got[0].reshape(drawn.shape), drawn, atol=off)
    np.testing.assert_allclose(got[1], z, atol=off * max(1.0, float(np.ptp(z))))
    if shape == (28, 28):
        assert inference.operators(flat).count("TRANSPOSE_CONV") == 3


def test_what_was_never_seen_is_not_drawn(trained: FitResult) -> None:
    """Squares in the lower half, of which no picture was shown, score higher than held-out ones of the upper half, by
    the file as shipped; and the mask is brighter on the square than elsewhere."""
    assert trained.manifest.quantization.type == "int8"
    bundle = bundles.load(trained.bundle.path)
    held, low = spots(100, (0, 5), 2), spots(100, (9, 13), 3)
    healthy, faulty = (
        score_table(bundle, table(x, label)) for x, label in ((held, "normal"), (low, "anomaly"))
    )
    assert auc(np.concatenate([healthy, faulty]), np.arange(200) >= 100) > 0.9
    judge = bundle.judge
    for x in low[:10]:
        excess = judge.score(judge.features.standardise(x)).excess()[0]
        assert excess[x > 0.5].mean() > 2.0 * excess[x < 0.1].mean()


def test_every_stage_is_in_the_history(trained: FitResult) -> None:
    """Critic's distance, encoder's and fine-tuning's loss have as many values as epochs; the last two fall."""
    history = json.loads((trained.bundle.path / "bundle.json").read_text())["training"]["history"]
    assert [len(history[k]) for k in ("critic_distance", "encoder_loss", "tune_loss")] == [3, 3, 22]
    assert history["tune_loss"][-1] < 0.5 * history["encoder_loss"][-1]


def test_the_same_seed_gives_the_same_network() -> None:
    """Two trainings of one recipe end in the same weights."""
    how, x = plan(epochs=1, encoder_epochs=1, tune_epochs=1), spots(60, (0, 5), 4)
    nobody = np.zeros(60, np.int32)
    one, two = (fit.train(how, fit.Data(x, nobody, x[:0], nobody[:0], x[:0])).network for _ in range(2))
    assert all(map(np.array_equal, one.get_weights(), two.get_weights()))


def test_a_critic_needs_at_least_one_step(tmp_path: Path) -> None:
    """n_critic 0 is refused with its name, before anything is trained."""
    with pytest.raises(ConfigError, match="n_critic is 0; expected 1 or more"):
        run(plan(n_critic=0), tmp_path / "none", table=table(spots(60, (0, 5), 4), "normal"))
