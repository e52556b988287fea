"""What the networks minimise; each takes (output, target, y) of a batch and gives one tensor per sample."""

from __future__ import annotations

import math
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

    return soft_crossentropy(logits, x, tf.one_hot(y, logits.shape[-1]))


def soft_crossentropy(logits: Any, x: Any, y: Any) -> Any:
    """As `crossentropy`, of shares y (batch, n_classes) that sum to 1."""
    import tensorflow as tf

    n = logits.shape[-1]
    wanted = y * (1.0 - LABEL_SMOOTHING) + LABEL_SMOOTHING / n
    return -tf.reduce_sum(wanted * tf.nn.log_softmax(logits), -1)


def arcface(sub_centres: int, margin: float, scale: float) -> Loss:
    """Additive angular margin (Deng et al., CVPR 2019), the nearest of a class' sub-centres counts (ECCV 2020).

    output : (batch, n_classes · sub_centres) cosines; y: (batch, n_classes) shares of the classes. For each class
    -log of the softmax of scale · cos, with cos(θ + margin) for the class itself; margin in rad.
    """
    import tensorflow as tf

    def loss(output: Any, x: Any, y: Any) -> Any:
        n = y.shape[-1]
        cos = tf.reduce_max(tf.reshape(output, (-1, n, sub_centres)), -1)
        cos = tf.clip_by_value(cos, -1.0 + 1e-6, 1.0 - 1e-6)
        own = scale * tf.cos(tf.minimum(tf.acos(cos) + margin, math.pi))
        # Row c: what stands against class c.
        others = scale * cos[:, tf.newaxis, :] - 1e9 * tf.eye(n)
        against = tf.reduce_logsumexp(others, -1)
        return tf.reduce_sum(y * tf.nn.softplus(against - own), -1)

    return loss


def adacos(n_classes: int, sub_centres: int) -> Loss:
    """Sub-cluster AdaCos (Wilkinghoff, IJCNN 2021): softmax over all sub-centres, the shares of a class' own add up.

    The scale is that of fixed AdaCos (Zhang et al., CVPR 2019) over all of them: sqrt(2) · log(n - 1).
    output, y : as for `arcface`
    """
    import tensorflow as tf

    scale = math.sqrt(2.0) * math.log(max(n_classes * sub_centres - 1, 2))

    def loss(output: Any, x: Any, y: Any) -> Any:
        log_p = tf.reshape(tf.nn.log_softmax(scale * output), (-1, n_classes, sub_centres))
        return -tf.reduce_sum(y * tf.reduce_logsumexp(log_p, -1), -1)

    return loss


def beside_logits(angular: Loss) -> Loss:
    """An angular loss of the first output and the cross-entropy of the second, logits, both against the shares y."""

    def loss(output: Any, x: Any, y: Any) -> Any:
        return angular(output[0], x, y) + soft_crossentropy(output[1], x, y)

    return loss


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
