"""Parts that several networks share: a residual encoder, a decoder of resizes and convolutions, loss terms.

Patches are pictures (width, F): time along the first axis, features (bands) along the second. With `channels`
n the F features are n pictures side by side and become n channels.
"""

from __future__ import annotations

from typing import Any

#: Stage widths of ResNet-18 in units of its base width, and blocks a stage (He et al., CVPR 2016).
STAGES, BLOCKS = (1, 2, 4, 8), 2


def picture(inputs: Any, shape: tuple[int, int], channels: int) -> Any:
    """(width, F) -> (width, F / channels, channels)."""
    from keras import layers

    if channels < 1 or shape[1] % channels:
        raise ValueError(f"channels is {channels}; expected a divisor of the {shape[1]} features")
    if channels == 1:
        return layers.Reshape((*shape, 1))(inputs)
    x = layers.Reshape((shape[0], channels, shape[1] // channels))(inputs)
    return layers.Permute((1, 3, 2))(x)


def residual_maps(x: Any, base: int) -> Any:
    """ResNet-18's layout at base width `base`: feature maps with 8 · base channels.

    The stem keeps pictures up to 32 wide at their size and halves larger ones twice, so that the last maps are a
    few pixels wide and not one. BatchNorm momentum 0.9: on small data the usual 0.99 never arrives.
    """
    from keras import layers

    def norm(x: Any, activate: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.ReLU()(x) if activate else x

    def conv(x: Any, n: int, size: int, stride: int) -> Any:
        return layers.Conv2D(n, size, strides=stride, padding="same", use_bias=False)(x)

    def block(x: Any, n: int, stride: int) -> Any:
        y = norm(conv(x, n, 3, stride))
        y = norm(conv(y, n, 3, 1), activate=False)
        if stride != 1 or int(x.shape[-1]) != n:
            x = norm(conv(x, n, 1, stride), activate=False)
        return layers.ReLU()(layers.Add()([x, y]))

    large = max(int(x.shape[1]), int(x.shape[2])) > 32
    x = norm(conv(x, base, 5 if large else 3, 2 if large else 1))
    if large:
        x = layers.MaxPooling2D(3, 2, "same")(x)
    for i, width in enumerate(STAGES):
        for k in range(BLOCKS):
            x = block(x, base * width, 2 if k == 0 and i > 0 else 1)
    return x


def plain_maps(x: Any, base: int) -> Any:
    """Three 5 × 5 convolutions at base, 2 · base and 4 · base channels, each halving the picture; no bias anywhere,
    and no scale that could shrink instead of what it scales."""
    from keras import layers

    for k in (1, 2, 4):
        x = layers.Conv2D(k * base, 5, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)
        x = layers.MaxPooling2D(2)(layers.LeakyReLU(0.1)(x))
    return x


def decoder(z: Any, shape: tuple[int, int], channels: int, base: int, activation: str | None = None) -> Any:
    """(d,) -> (width, F): a dense start, then resizes by two and convolutions.

    No transposed convolution: it leaves a checkerboard, and some runtimes take 150 times as long for it.
    """
    from keras import layers

    height, width = shape[0], shape[1] // channels
    steps = 0
    while steps < 4 and min(height, width) >> (steps + 1) >= 4:
        steps += 1
    rows, columns = -(-height // (1 << steps)), -(-width // (1 << steps))
    n = base << max(0, steps - 1)
    x = layers.Dense(rows * columns * n, activation="relu")(z)
    x = layers.Reshape((rows, columns, n))(x)
    for k in range(steps):
        # Not UpSampling2D: with a free batch its repeat becomes operators that no converter knows.
        x = layers.Resizing(int(x.shape[1]) * 2, int(x.shape[2]) * 2, interpolation="nearest")(x)
        n = max(base, n // 2) if k else n
        x = layers.Conv2D(n, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(channels, 3, padding="same", activation=activation)(x)
    over = (rows << steps) - height, (columns << steps) - width
    if any(over):
        x = layers.Cropping2D(((0, over[0]), (0, over[1])))(x)
    if channels > 1:
        x = layers.Permute((1, 3, 2))(x)
    return layers.Reshape(shape)(x)


def divergence(mean: Any, log_variance: Any) -> Any:
    """KL of N(mean, exp(log_variance)) to the standard normal, mean over the latent dimensions; one a sample."""
    import tensorflow as tf

    return -0.5 * tf.reduce_mean(1.0 + log_variance - mean**2 - tf.exp(log_variance), -1)
