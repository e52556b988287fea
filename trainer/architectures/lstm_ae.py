"""LSTM autoencoder (S2): LSTM(16) → LSTM(4) → repeat → LSTM(4) → LSTM(16) → dense at each step, MAE.

Scored by the error of the newest step of a history (our choice, methods.md).
"""

from __future__ import annotations

import uuid
from typing import Any

SCORE = {"kind": "reconstruction", "error": "mae", "steps": "newest"}
CONTEXT = {"over": "windows", "width": 8}
LOSS = "mae"


def build(shape: tuple[int, int], *, outer: int = 16, inner: int = 4) -> Any:
    """Takes and returns (width, F). Unrolled: histories are short, and a loop costs ten times the time."""
    import keras
    from keras import layers

    def lstm(units: int, sequences: bool = True) -> Any:
        return layers.LSTM(units, return_sequences=sequences, unroll=True)

    inputs = keras.Input(shape)
    x = lstm(outer)(inputs)
    x = lstm(inner, sequences=False)(x)
    x = layers.RepeatVector(shape[0])(x)
    x = lstm(inner)(x)
    x = lstm(outer)(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(shape[1]))(x))


def for_export(model: Any) -> Any:
    """The same network with batch 1 and every LSTM marked so that the converter fuses it.

    The converter takes no dynamic batch here, and swaps a tf.function that carries `api_implements` for
    the builtin UNIDIRECTIONAL_SEQUENCE_LSTM.
    """
    import keras
    import tensorflow as tf
    from keras import layers

    def cell(x: Any, h: Any, c: Any, kernel: Any, recurrent: Any, bias: Any) -> Any:
        # Only traced. Five results, in this order, are what the converter's rule looks for.
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = tf.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            outs.append(h)
        return h, tf.stack(outs, 1), h, c, tf.constant(2.0)

    class Fused(layers.Layer):  # type: ignore[misc]
        def __init__(self, source: Any) -> None:
            super().__init__()
            self.units, self.sequences = source.units, source.return_sequences
            self.parts = [keras.Variable(w) for w in source.get_weights()]

        def call(self, x: Any) -> Any:
            fused = tf.function(
                cell,
                autograph=False,
                experimental_attributes={
                    "api_implements": f"lstm_{uuid.uuid4()}",
                    "api_preferred_device": "CPU",
                    "time_major": False,
                    "go_backwards": False,
                },
            )
            zero = tf.zeros((1, self.units))
            last, outs, *_ = fused(x, zero, zero, *(tf.convert_to_tensor(p) for p in self.parts))
            return outs if self.sequences else last

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], shape[1], self.units) if self.sequences else (shape[0], self.units)

    x = inputs = keras.Input(batch_shape=(1, *model.input_shape[1:]))
    for layer in model.layers[1:]:
        x = Fused(layer)(x) if isinstance(layer, layers.LSTM) else layer(x)
    return keras.Model(inputs, x)
