"""Deep SVDD (Ruff et al., ICML 2018; S3): healthy patches drawn into a small sphere, the distance from its centre is the score.

    patch ─ ResNet-18 layout, base width 16 ─ mean over the map ─ dense 256 + BN + ReLU ─ 128     z
    1  as the encoder of an autoencoder     2  centre = mean z     3  ||z - centre||² made small

The last layer has no bias, and no component of the centre may be near 0: a network that could answer with the
centre whatever it sees would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from trainer.architectures import _blocks

SCORE = {"kind": "distance"}
CONTEXT = {"over": "frames", "width": 64, "hop": 64}

#: Components of the centre closer to 0 are pushed to this, keeping their sign.
CENTER_EPS = 0.1


def build(
    shape: tuple[int, int],
    *,
    encoder: str = "residual",
    base: int = 16,
    units: int = 256,
    embedding: int = 128,
    channels: int = 1,
) -> Any:
    """Takes (width, F), returns z (embedding,).

    encoder : "residual", or "plain": three convolutions, as Ruff et al. had for small pictures, without `units`
    """
    import keras
    from keras import layers

    if encoder not in ("residual", "plain"):
        raise ValueError(f"network encoder is {encoder!r}; expected residual or plain")
    inputs = keras.Input(shape)
    x = _blocks.picture(inputs, shape, channels)
    if encoder == "plain":
        x = layers.Flatten()(_blocks.plain_maps(x, base))
        return keras.Model(inputs, layers.Dense(embedding, use_bias=False)(x))
    x = _blocks.residual_maps(x, base)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(units, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.Dense(embedding, use_bias=False)(x))


def train(
    network: Any, course: Any, *, pretrain: int = 20, soft_boundary: bool = False, nu: float = 0.05
) -> None:
    """Pre-training as an autoencoder for `pretrain` epochs, then the one-class loss for train.epochs.

    soft_boundary : R² + (1/ν)·mean(max(0, ||z - c||² - R²)) in place of mean ||z - c||²; R² is set to the 1 - ν
                    quantile of the distances before every epoch, as in the paper
    """
    pretrained(network, course, pretrain)
    course.arrays["center"] = one_class(network, course, soft_boundary=soft_boundary, nu=nu)


def pretrained(network: Any, course: Any, epochs: int) -> None:
    """The network's weights as the encoder of an autoencoder: the decoder is thrown away afterwards."""
    import keras

    from trainer import losses

    if not epochs:
        return
    shape = network.input_shape[1:]
    channels = int(course.recipe.network.get("channels", 1))
    base = int(course.recipe.network.get("base", 16))
    both = keras.Model(network.input, _blocks.decoder(network.output, shape, channels, base))
    course.descend(
        "pre-train", both, losses.mse, epochs=epochs, overlap=course.how.overlap, name="pretrain_loss"
    )


def center(network: Any, x: Any) -> Any:
    """(d,) mean embedding, no component closer to 0 than CENTER_EPS."""
    from trainer import fit

    c = fit.predict(network, x)[0].mean(0, dtype=np.float64)
    c = np.where(np.abs(c) < CENTER_EPS, np.where(c < 0.0, -CENTER_EPS, CENTER_EPS), c)
    return c.astype(np.float32)


def one_class(network: Any, course: Any, *, soft_boundary: bool = False, nu: float = 0.05) -> Any:
    """Train the network on its distances to the centre, which stays fixed; returns the centre (d,)."""
    from trainer import fit

    if not 0.0 < nu < 1.0:
        raise ValueError(f"nu is {nu}; expected a share of windows above 0 and below 1")
    data, how, tf = course.data, course.how, course.tf
    c = center(network, data.x)
    radius2 = tf.Variable(0.0)

    def squared(z: Any) -> Any:
        return tf.reduce_sum((z - c) ** 2, -1)

    def loss(z: Any, x: Any, y: Any) -> Any:
        d = squared(z)
        return radius2 + tf.maximum(0.0, d - radius2) / nu if soft_boundary else d

    def spread() -> None:
        d = np.square(fit.predict(network, data.x)[0] - c).sum(-1)
        radius2.assign(float(np.quantile(d, 1.0 - nu)))

    with _frozen_norms(network):
        course.descend(
            "one class", network, loss, held=(data.x_held, data.y_held), patience=how.patience,
            overlap=how.overlap, before_epoch=spread if soft_boundary else None,
        )  # fmt: skip
    if soft_boundary:
        course.figures["radius"] = float(np.sqrt(radius2.numpy()))
    return c


@contextmanager
def _frozen_norms(network: Any) -> Iterator[None]:
    """BatchNorm with a scale of its own as it came out of pre-training, held fixed meanwhile.

    Fresh batch statistics would blow up again whatever the loss shrinks, and the only way left to make distances small
    is to forget what windows differ in: with them the digit 3 of MNIST, as the healthy one, had an AUC of 0.63.
    Those of the plain encoder have no scale that could shrink, and stay as they are: the same digit, 0.92.
    """
    from keras import layers

    norms = [
        layer
        for layer in network.layers
        if isinstance(layer, layers.BatchNormalization) and (layer.scale or layer.center)
    ]
    for layer in norms:
        layer.trainable = False
    try:
        yield
    finally:
        for layer in norms:
            layer.trainable = True
