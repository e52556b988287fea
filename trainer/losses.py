"""What the networks minimise; each takes (output, target, y) of a batch and gives one tensor per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Of the true class; keeps logits bounded, so that log-odds of healthy clips do not all saturate at the clip.
LABEL_SMOOTHING = 0.1

Loss = Callable[[Any, Any, Any], Any]


def _over_sample(values: Any, sum_up: bool = False) -> Any:
    import tensorflow as tf

    axes = list(range(1, len(values.shape)))
    return tf.reduce_sum(values, axes) if sum_up else tf.reduce_mean(values, axes)


def mse(output: Any, x: Any, y: Any) -> Any:
    """Mean squared error of each patch."""
    return _over_sample((x - output) ** 2)


def sse(output: Any, x: Any, y: Any) -> Any:
    """S(x) = ||x - f(x)||² of each patch (S4)."""
    return _over_sample((x - output) ** 2, sum_up=True)


def mae(output: Any, x: Any, y: Any) -> Any:
    """Mean absolute error of each patch."""
    import tensorflow as tf

    return _over_sample(tf.abs(x - output))


def crossentropy(logits: Any, x: Any, y: Any) -> Any:
    """Cross-entropy of the machine's number y (batch,) against logits (batch, n_classes), smoothed."""
    import tensorflow as tf

    n = logits.shape[-1]
    wanted = tf.one_hot(y, n) * (1.0 - LABEL_SMOOTHING) + LABEL_SMOOTHING / n
    return -tf.reduce_sum(wanted * tf.nn.log_softmax(logits), -1)


def hinge(a: float) -> Loss:
    """The second stage of S4: y·S(x) + (1 - y)·max(0, a - S(x)), y = 1 normal, 0 anomalous.

    Normals keep being reconstructed; an anomaly is pushed until its error reaches the limit a, no further.
    """
    import tensorflow as tf

    def loss(output: Any, x: Any, y: Any) -> Any:
        s, normal = sse(output, x, y), tf.cast(y, tf.float32)
        return normal * s + (1.0 - normal) * tf.maximum(0.0, a - s)

    return loss


BY_NAME: dict[str, Loss] = {"mse": mse, "sse": sse, "mae": mae, "crossentropy": crossentropy}
