"""Variational autoencoder (Kingma & Welling, 2014; S3): score = mean L1 error of the reconstruction + 0.1 KL.

    patch ─ ResNet-18 layout, base width 16 ─ dense 256 + BN + ReLU ─┬─ mean ───────────► decoder ─► patch
                                                                    └─ log variance
The shipped network decodes the mean: a score must not depend on chance.
"""

from __future__ import annotations

from typing import Any

from trainer.architectures import _blocks

SCORE = {"kind": "vae"}
CONTEXT = {"over": "frames", "width": 64, "hop": 64}


def build(
    shape: tuple[int, int],
    *,
    encoder: str = "residual",
    base: int = 16,
    units: int = 256,
    latent: int = 32,
    channels: int = 1,
    sigmoid: bool = False,
) -> Any:
    """Takes (width, F), returns (reconstruction (width, F), mean (latent,), log variance (latent,)).

    encoder : "residual", or "dense": 2 · units → units → latent and back, for small pictures
    sigmoid : reconstructions in [0, 1], to go with `input: range`
    """
    import keras
    from keras import layers

    def dense(x: Any, n: int) -> Any:
        x = layers.Dense(n, use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    if encoder not in ("residual", "dense"):
        raise ValueError(f"network encoder is {encoder!r}; expected residual or dense")
    inputs = keras.Input(shape)
    if encoder == "dense":
        x = dense(layers.Flatten()(inputs), 2 * units)
    else:
        x = layers.Flatten()(_blocks.residual_maps(_blocks.picture(inputs, shape, channels), base))
    x = dense(x, units)
    mean = layers.Dense(latent, name="mean")(x)
    log_variance = layers.Dense(latent, name="log_variance")(x)
    last = "sigmoid" if sigmoid else None
    if encoder == "dense":
        y = dense(dense(mean, units), 2 * units)
        y = layers.Reshape(shape)(layers.Dense(shape[0] * shape[1], activation=last)(y))
    else:
        y = _blocks.decoder(mean, shape, channels, base, last)
    return keras.Model(inputs, [y, mean, log_variance])


def train(network: Any, course: Any, *, beta: float = 0.1, noise: float = 0.0, loss: str = "l1") -> None:
    """Mean error + beta · KL, decoding a draw around the mean.

    noise : standard deviation of what is added to the inputs (not to the targets) in training
    loss  : "l1", or "bce", the cross-entropy of pixels in [0, 1], for `sigmoid` networks
    """
    variational(network, course, beta, noise=noise, loss=loss)


def variational(
    network: Any, course: Any, beta: float, *, noise: float = 0.0, loss: str = "l1", name: str = "loss"
) -> None:
    """Train a network with the outputs (reconstruction, mean, log variance) in place."""
    import keras
    from keras import layers

    tf, how, data = course.tf, course.how, course.data
    if loss not in ("l1", "bce"):
        raise ValueError(f"loss is {loss!r}; expected l1 or bce")

    class Draw(layers.Layer):  # type: ignore[misc]
        """mean + exp(log variance / 2) · noise while training."""

        def __init__(self) -> None:
            super().__init__()
            self.seed = keras.random.SeedGenerator(how.seed)

        def call(self, mean: Any, log_variance: Any, training: bool = False) -> Any:
            if not training:
                return mean
            return mean + tf.exp(0.5 * log_variance) * keras.random.normal(tf.shape(mean), seed=self.seed)

    inputs = keras.Input(network.input_shape[1:])
    seen = layers.GaussianNoise(noise, seed=how.seed)(inputs) if noise else inputs
    encode = keras.Model(network.input, network.outputs[1:])
    decode = keras.Model(network.outputs[1], network.outputs[0])
    mean, log_variance = encode(seen)
    noisy = keras.Model(inputs, [decode(Draw()(mean, log_variance)), mean, log_variance])

    def objective(outputs: Any, x: Any, y: Any) -> Any:
        error = _error(outputs[0], x, loss)
        return tf.reduce_mean(error, list(range(1, len(x.shape)))) + beta * _blocks.divergence(*outputs[1:])

    course.descend(
        "train", noisy, objective, held=(data.x_held, data.y_held), patience=how.patience, overlap=how.overlap, name=name
    )


def _error(y: Any, x: Any, kind: str) -> Any:
    import tensorflow as tf

    if kind == "l1":
        return tf.abs(x - y)
    y = tf.clip_by_value(y, 1e-6, 1.0 - 1e-6)
    return -(x * tf.math.log(y) + (1.0 - x) * tf.math.log(1.0 - y))
