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
    shape: tuple[int, int], *, base: int = 16, units: int = 256, latent: int = 32, channels: int = 1
) -> Any:
    """Takes (width, F), returns (reconstruction (width, F), mean (latent,), log variance (latent,))."""
    import keras
    from keras import layers

    inputs = keras.Input(shape)
    x = _blocks.residual_maps(_blocks.picture(inputs, shape, channels), base)
    x = layers.Flatten()(x)
    x = layers.Dense(units, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    mean = layers.Dense(latent, name="mean")(x)
    log_variance = layers.Dense(latent, name="log_variance")(x)
    return keras.Model(inputs, [_blocks.decoder(mean, shape, channels, base), mean, log_variance])


def train(network: Any, course: Any, *, beta: float = 0.1) -> None:
    """Mean L1 error + beta · KL, decoding a draw around the mean."""
    variational(network, course, beta)


def variational(network: Any, course: Any, beta: float, name: str = "loss") -> None:
    """Train a network with the outputs (reconstruction, mean, log variance) in place."""
    import keras
    from keras import layers

    tf, how, data = course.tf, course.how, course.data

    class Draw(layers.Layer):  # type: ignore[misc]
        """mean + exp(log variance / 2) · noise while training."""

        def __init__(self) -> None:
            super().__init__()
            self.seed = keras.random.SeedGenerator(how.seed)

        def call(self, mean: Any, log_variance: Any, training: bool = False) -> Any:
            if not training:
                return mean
            return mean + tf.exp(0.5 * log_variance) * keras.random.normal(tf.shape(mean), seed=self.seed)

    _, mean, log_variance = network.outputs
    decode = keras.Model(mean, network.outputs[0])
    noisy = keras.Model(network.input, [decode(Draw()(mean, log_variance)), mean, log_variance])

    def loss(outputs: Any, x: Any, y: Any) -> Any:
        error = tf.reduce_mean(tf.abs(x - outputs[0]), list(range(1, len(x.shape))))
        return error + beta * _blocks.divergence(outputs[1], outputs[2])

    course.descend(
        "train", noisy, loss, held=(data.x_held, data.y_held), patience=how.patience, overlap=how.overlap, name=name
    )
