"""Dense autoencoder (S0, S4): 4 × dense(128) → 8 → 4 × dense(128) → linear, MSE."""

from __future__ import annotations

from typing import Any

SCORE = {"kind": "reconstruction", "error": "mse"}
CONTEXT = {"over": "frames", "width": 1, "hop": 1}
LOSS = "mse"


def build(shape: tuple[int, int], *, units: int = 128, depth: int = 4, latent: int = 8) -> Any:
    """Takes and returns a patch laid out flat, (width * F,), so that no reshape is left in the graph."""
    import keras
    from keras import layers

    n = shape[0] * shape[1]
    x = inputs = keras.Input((n,))
    for _ in range(depth):
        x = layers.Dense(units, activation="relu")(x)
    x = layers.Dense(latent, activation="relu")(x)
    for _ in range(depth):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(n)(x))
