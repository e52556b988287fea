"""MobileNetV2 in small (S0): classifies the machine id; whoever sounds unlike its own id is suspect.

Inverted residual blocks with linear bottlenecks (Sandler et al., CVPR 2018), width α, on a patch of
64 frames × 128 mels. Returns logits: the log-odds are taken in float, an int8 softmax would saturate.
"""

from __future__ import annotations

from typing import Any

SCORE = {"kind": "log_odds"}
SCORES = ("knn",)
LEARNS = "machines"
CONTEXT = {"over": "frames", "width": 64, "hop": 32}

#: expansion, channels at α = 1, repeats, stride of the first: the paper's table without its last rows,
#: which are for 224 × 224 photographs.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 2, 1))


def build(
    shape: tuple[int, int], *, n_classes: int, alpha: float = 0.35, head: int = 256, dropout: float = 0.2
) -> Any:
    """Takes (width, F, 1), returns logits (n_classes,) and the feature maps (h, w, head) behind them.

    The mean over a map is the embedding that k-NN compares. BatchNorm momentum 0.9: with the usual 0.99 the
    moving averages of a small training run never arrive, and it predicts at chance."""
    import keras
    from keras import layers

    def width(channels: int) -> int:
        return max(8, int(channels * alpha + 4) // 8 * 8)

    def norm(x: Any, activate: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.ReLU(max_value=6.0)(x) if activate else x

    def block(x: Any, expansion: int, channels: int, stride: int) -> Any:
        y, n = x, int(x.shape[-1])
        if expansion > 1:
            y = norm(layers.Conv2D(n * expansion, 1, use_bias=False)(y))
        y = norm(layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(y))
        y = norm(layers.Conv2D(channels, 1, use_bias=False)(y), activate=False)
        return layers.Add()([x, y]) if stride == 1 and n == channels else y

    inputs = keras.Input((*shape, 1))
    x = norm(layers.Conv2D(width(32), 3, strides=2, padding="same", use_bias=False)(inputs))
    for expansion, channels, repeats, stride in BLOCKS:
        for i in range(repeats):
            x = block(x, expansion, width(channels), stride if i == 0 else 1)
    maps = norm(layers.Conv2D(head, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(maps)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, [layers.Dense(n_classes, name="logits")(x), maps])


def train(network: Any, course: Any) -> None:
    """Cross-entropy of the machine's id; the last layer goes into the bundle for Grad-CAM."""
    import keras

    from edge_agent.causes import Head
    from trainer import fit, losses

    fit.once(keras.Model(network.input, network.outputs[0]), course, losses.crossentropy)
    course.arrays |= Head([tuple(network.get_layer("logits").get_weights())]).arrays()
