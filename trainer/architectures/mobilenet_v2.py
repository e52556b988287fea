"""MobileNetV2 in small (S0): classifies the machine id; whoever sounds unlike its own id is suspect.

Inverted residual blocks with linear bottlenecks (Sandler et al., CVPR 2018), width α, on a patch of
64 frames × 128 mels. Returns logits: the log-odds are taken in float, an int8 softmax would saturate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.signals import F32

if TYPE_CHECKING:
    from trainer.fit import Augment

SCORE = {"kind": "log_odds"}
SCORES = ("knn",)
LEARNS = "machines"
CONTEXT = {"over": "frames", "width": 64, "hop": 32}

#: expansion, channels at α = 1, repeats, stride of the first: the paper's table without its last rows,
#: which are for 224 × 224 photographs.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 2, 1))
#: How the embedding is shaped in training.
HEAD_LOSSES = ("crossentropy", "arcface", "adacos")
LEVELS = ("keep", "remove")


def build(
    shape: tuple[int, int],
    *,
    n_classes: int,
    alpha: float = 0.35,
    head: int = 256,
    dropout: float = 0.2,
    level: str = "keep",
) -> Any:
    """Takes (width, F, 1), returns logits (n_classes,) and the feature maps (h, w, head) behind them.

    The mean over a map is the embedding that k-NN compares. BatchNorm momentum 0.9: with the usual 0.99 the
    moving averages of a small training run never arrive, and it predicts at chance.

    level : "remove" takes the mean of a patch away first: on a logarithmic scale that is its loudness, which says
            how far the microphone is and how loud the hall is, more than how the machine is
    """
    import keras
    from keras import layers

    if level not in LEVELS:
        raise ValueError(f"network.level is {level!r}; expected one of {', '.join(LEVELS)}")

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
    x = inputs
    if level == "remove":
        x = layers.Subtract()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])
    x = norm(layers.Conv2D(width(32), 3, strides=2, padding="same", use_bias=False)(x))
    for expansion, channels, repeats, stride in BLOCKS:
        for i in range(repeats):
            x = block(x, expansion, width(channels), stride if i == 0 else 1)
    maps = norm(layers.Conv2D(head, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D(name="embedding")(maps)
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, [layers.Dense(n_classes, name="logits")(x), maps])


def train(
    network: Any,
    course: Any,
    *,
    head_loss: str = "crossentropy",
    sub_centres: int = 4,
    margin: float = 0.3,
    scale: float = 16.0,
    mixup: float = 0.0,
) -> None:
    """Which machine is it? The last layer goes into the bundle for Grad-CAM.

    head_loss   : "crossentropy" of the logits; "arcface" (Deng et al., CVPR 2019) and "adacos" (sub-cluster AdaCos,
                  Wilkinghoff, IJCNN 2021) shape the angles between embeddings, which k-NN compares
    sub_centres : directions that one class may have ("arcface", "adacos")
    margin, scale : of "arcface", in rad and as a factor; "adacos" takes its scale from the number of directions
    mixup       : parameter of the beta distribution by which two patches and their classes are mixed; 0: never

    Beside an angular loss the logits learn by cross-entropy from the embedding as it is, without changing it: what
    ships is the same network for every loss, and log-odds and Grad-CAM hold (docs/decisions/0008).
    """
    import keras
    from keras import constraints, layers

    from edge_agent.causes import Head
    from trainer import losses

    if head_loss not in HEAD_LOSSES:
        raise ValueError(f"head_loss is {head_loss!r}; expected one of {', '.join(HEAD_LOSSES)}")
    if sub_centres < 1 or not scale > 0.0 or not 0.0 <= margin < np.pi / 2:
        raise ValueError(
            f"sub_centres is {sub_centres}, scale {scale}, margin {margin}; expected 1 or more, above 0, and 0 to 1.57 rad"
        )
    loss: losses.Loss = losses.soft_crossentropy
    last, data, how = network.get_layer("logits"), course.data, course.how
    logits, n = network.outputs[0], int(last.units)
    if head_loss == "crossentropy":
        model = keras.Model(network.input, logits)
    else:
        embedding = network.get_layer("embedding").output
        angles = layers.Dense(n * sub_centres, use_bias=False, kernel_constraint=constraints.UnitNorm())
        cosines = angles(layers.UnitNormalization()(embedding))
        angles.kernel.assign(angles.kernel_constraint(angles.kernel))
        model = keras.Model(network.input, [cosines, last(keras.ops.stop_gradient(embedding))])
        angular = (
            losses.arcface(sub_centres, margin, scale)
            if head_loss == "arcface"
            else losses.adacos(n, sub_centres)
        )
        loss = losses.beside_logits(angular)
    course.history["loss"] = []
    course.descend(
        "train", model, loss, y=_one_hot(data.y, n), held=(data.x_held, _one_hot(data.y_held, n)),
        patience=how.patience, overlap=how.overlap, augment=_mixed(mixup) if mixup else None,
    )  # fmt: skip
    course.figures["epochs"] = float(len(course.history["loss"]))
    course.arrays |= Head([tuple(last.get_weights())]).arrays()


def _one_hot(y: Any, n: int) -> F32:
    return np.eye(n, dtype=np.float32)[np.asarray(y, np.int64)]


def _mixed(alpha: float) -> Augment:
    """Each patch of a batch with another of the batch, x and y in the same shares (Zhang et al., ICLR 2018)."""

    def augment(x: F32, y: Any, rng: np.random.Generator) -> tuple[F32, Any]:
        other = rng.permutation(len(x))
        share = rng.beta(alpha, alpha, len(x)).astype(np.float32)
        wide = share.reshape(-1, *[1] * (x.ndim - 1))
        return wide * x + (1.0 - wide) * x[other], share[:, None] * y + (1.0 - share)[:, None] * y[other]

    return augment
