"""Deep SVDD and VAE side by side (S3): 0.6 of the z-scored distance and 0.4 of the z-scored VAE score.

Two networks in one graph, each trained as in its own file. The z-scoring constants come from the training windows,
scored by the file as shipped, and stand in bundle.json.
"""

from __future__ import annotations

from typing import Any

from trainer.architectures import deep_svdd, vae

SCORE = {"kind": "ensemble"}
CONTEXT = {"over": "frames", "width": 64, "hop": 64}


def build(
    shape: tuple[int, int],
    *,
    base: int = 16,
    units: int = 256,
    embedding: int = 128,
    latent: int = 32,
    channels: int = 1,
) -> Any:
    """Takes (width, F), returns (z, reconstruction, mean, log variance)."""
    import keras

    inputs = keras.Input(shape)
    far = deep_svdd.build(shape, base=base, units=units, embedding=embedding, channels=channels)
    near = vae.build(shape, base=base, units=units, latent=latent, channels=channels)
    return keras.Model(inputs, [far(inputs), *near(inputs)])


def train(network: Any, course: Any, *, pretrain: int = 20, beta: float = 0.1) -> None:
    """Both, one after the other, train.epochs each."""
    import keras

    far, near = (layer for layer in network.layers if isinstance(layer, keras.Model))
    deep_svdd.pretrained(far, course, pretrain)
    course.arrays["center"] = deep_svdd.one_class(far, course)
    vae.variational(near, course, beta, name="vae_loss")
