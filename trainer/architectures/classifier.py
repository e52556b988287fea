"""Healthy or faulty? Deep SVDD's encoder with a small head, learnt from labelled or pseudo-labelled faults (S3).

    patch ─ encoder of `deep_svdd` ─ 128 ─ dense 256 ─ dense 64 ─ logits (0 healthy, 1 anomalous)
    1  the encoder as `deep_svdd` trains it, or handed over     2  the head on a frozen encoder
    3  the last blocks of the encoder too, step by step; kept is what had the best validation F1

Both classes weigh alike: every batch holds as many anomalous patches as healthy ones, drawn with replacement.
Labels are smoothed (`losses.LABEL_SMOOTHING`): log-odds of healthy windows stay apart and can carry a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from edge_agent.signals import F32
from trainer.architectures import deep_svdd

SCORE = {"kind": "log_odds"}
LEARNS = "faults"
CONTEXT = {"over": "frames", "width": 64, "hop": 64}

#: Names of the head's layers, in their order.
HEAD = ("head_1", "head_2", "logits")
#: Unfrozen blocks learn at this share of the head's rate: they know already what a record looks like.
UNFROZEN_RATE = 0.1
#: Fewer anomalous patches than this are all learnt from; of more, `train.validation` of them choose the epoch.
MIN_ANOMALIES_TO_HOLD = 5


def build(
    shape: tuple[int, int], *, base: int = 16, units: int = 256, embedding: int = 128, channels: int = 1
) -> Any:
    """Takes (width, F), returns logits (2,) and the feature maps (h, w, 8 · base) behind them."""
    import keras
    from keras import layers

    encoder = deep_svdd.build(shape, base=base, units=units, embedding=embedding, channels=channels)
    maps = _pooling(encoder).input
    x = layers.Dense(256, activation="relu", name=HEAD[0])(encoder.output)
    x = layers.Dense(64, activation="relu", name=HEAD[1])(x)
    return keras.Model(encoder.input, [layers.Dense(2, name=HEAD[2])(x), maps])


def encoder_of(network: Any) -> Any:
    """The encoder within a classifier: weights set in one are those of the other."""
    import keras

    return keras.Model(network.input, network.get_layer(HEAD[0]).input)


def with_encoder(network: Any, weights: Sequence[F32]) -> list[F32]:
    """Weights of the whole classifier `network` once its encoder has those of a `deep_svdd`."""
    encoder_of(network).set_weights(weights)
    out: list[F32] = network.get_weights()
    return out


def train(
    network: Any,
    course: Any,
    *,
    pretrain: int = 20,
    one_class: int = 20,
    unfreeze_1: int = 20,
    unfreeze_2: int = 30,
) -> None:
    """The encoder as Deep SVDD (pretrain and one_class epochs, 0 for one handed over), the head, the last blocks.

    unfreeze_1, unfreeze_2 : epoch from which the encoder's last stage (two blocks and the dense layers behind them)
                             learns too, and the stage before it; each part ends early after train.patience epochs
                             without a better validation F1
    """
    from edge_agent.errors import RecordingError

    if not 0 < unfreeze_1 <= unfreeze_2:
        raise ValueError(
            f"unfreeze_1 {unfreeze_1}, unfreeze_2 {unfreeze_2}; expected 0 < unfreeze_1 <= unfreeze_2"
        )
    data, how = course.data, course.how
    n = len(_counting(data.x, data.weight)[0])
    if not len(data.anomalies) or not n:
        raise RecordingError(
            f"{course.recipe.origin}: {n} healthy and {len(data.anomalies)} anomalous patches; expected some of "
            "both to tell them apart: set split.anomalies and label recordings, or train deep_svdd, which needs no labels"
        )
    encoder = encoder_of(network)
    deep_svdd.pretrained(encoder, course, pretrain)
    if one_class:
        course.how = replace(how, epochs=one_class)
        deep_svdd.one_class(encoder, course)
        course.how = how
    _Lesson(network, encoder, course).learn(
        [min(how.epochs, unfreeze_1), min(how.epochs, unfreeze_2), how.epochs]
    )
    from edge_agent.causes import Head

    course.arrays |= Head(dense_layers(network)).arrays()


class _EnoughError(Exception):
    """`patience` epochs have passed without a better one."""


class _Lesson:
    """Supervised training in three parts, and the best weights seen so far."""

    def __init__(self, network: Any, encoder: Any, course: Any) -> None:
        import keras

        self.network, self.encoder, self.course = network, encoder, course
        data, rng = course.data, course.rng
        x, weight = _counting(data.x, data.weight)
        n, n_bad = len(x), len(data.anomalies)
        held = (
            round(n_bad * course.how.validation) if len(data.x_held) and n_bad >= MIN_ANOMALIES_TO_HOLD else 0
        )
        self.bad = data.anomalies[: n_bad - held]
        # Where none can be spared, the epoch is chosen on those that are learnt from, which is better than by chance.
        self.bad_held = data.anomalies[n_bad - held :] if held else self.bad
        self.bad_weight = None if data.anomaly_weight is None else data.anomaly_weight[: n_bad - held]
        # `descend` draws anomalies up to the number of healthy patches; here the other way around, where those lack.
        pick = np.concatenate([np.arange(n), rng.integers(n, size=max(0, len(self.bad) - n))])
        self.x, self.weight = x[pick], None if weight is None else weight[pick]
        self.x_held, _ = _counting(data.x_held, data.held_weight) if len(data.x_held) else (x, None)
        z = keras.Input(encoder.output.shape[1:])
        out: Any = z
        for name in HEAD:
            out = network.get_layer(name)(out)
        self.head = keras.Model(z, out)
        self.best, self.epoch, self.best_epoch = (-1.0, -np.inf), 0, 0
        self.best_weights = network.get_weights()

    def learn(self, ends: Sequence[int]) -> None:
        """Head alone until epoch ends[0], with the last stage until ends[1], with the one before until ends[2]."""
        import keras

        from trainer import fit

        def embed(x: F32) -> F32:
            return (
                fit.predict(self.encoder, x)[0]
                if len(x)
                else np.zeros((0, *self.encoder.output.shape[1:]), np.float32)
            )

        # Behind a frozen encoder nothing changes from epoch to epoch: it is run once.
        z = [embed(x) for x in (self.x, self.bad, self.x_held, self.bad_held)]
        self._part("head", self.head, z, ends[0], 1.0)
        whole = keras.Model(self.network.input, self.network.outputs[0])
        patches = [self.x, self.bad, self.x_held, self.bad_held]
        stages = _stages(self.encoder)
        for i, end in enumerate(ends[1:], 1):
            for layer in self.encoder.layers:
                layer.trainable = any(layer in stage for stage in stages[-i:])
            self._part(f"unfrozen {i}", whole, patches, end, UNFROZEN_RATE)
        for layer in self.encoder.layers:
            layer.trainable = True
        self.network.set_weights(self.best_weights)
        self.course.figures |= {
            "epochs": float(self.best_epoch),
            "validation_f1": self.best[0],
            "anomalous_patches": float(len(self.bad)),
        }

    def _part(self, stage: str, model: Any, inputs: Sequence[F32], end: int, rate: float) -> None:
        """Train `model` on inputs (healthy, anomalous, and both held out) up to epoch `end` in all."""
        from trainer import fit, losses

        x, bad, x_held, bad_held = inputs
        course = self.course
        if end <= self.epoch:
            return
        self.network.set_weights(self.best_weights)
        since = began = self.epoch

        def look() -> None:
            nonlocal since
            score = _f1(
                *(fit.predict(model, a)[0] if len(a) else np.zeros((0, 2)) for a in (x_held, bad_held))
            )
            course.history.setdefault("validation_f1", []).append(round(score[0], 7))
            if score > self.best:
                self.best, self.best_epoch, self.best_weights = score, self.epoch, self.network.get_weights()
                since = self.epoch
            elif course.how.patience and self.epoch - since >= course.how.patience:
                raise _EnoughError

        def before() -> None:
            if self.epoch > began:
                look()
            self.epoch += 1

        with suppress(_EnoughError):
            course.descend(
                stage, model, lambda logits, patch, healthy: losses.crossentropy(logits, patch, 1 - healthy),
                x=x, y=np.ones(len(x)), weight=self.weight, beside=bad, beside_weight=self.bad_weight,
                epochs=end - began, learning_rate=rate * course.how.learning_rate, before_epoch=before,
            )  # fmt: skip
            look()
        self.epoch = end


def _counting(x: F32, weight: F32 | None) -> tuple[F32, F32 | None]:
    """The patches that count at all, with their weights."""
    return (x, None) if weight is None else (x[weight > 0.0], weight[weight > 0.0])


def _f1(healthy: Any, anomalous: Any) -> tuple[float, float]:
    """(F1 of the anomalous class at even odds, minus the mean cross-entropy over both classes alike) of logits (n, 2)."""
    margins = [np.asarray(a[:, 1] - a[:, 0], np.float64) for a in (healthy, anomalous)]
    false, hits = int((margins[0] > 0).sum()), int((margins[1] > 0).sum())
    loss = [
        np.logaddexp(0.0, sign * m).mean() for sign, m in zip((1.0, -1.0), margins, strict=True) if len(m)
    ]
    return 2.0 * hits / max(1, hits + false + len(margins[1])), -float(np.mean(loss))


def _pooling(encoder: Any) -> Any:
    from keras import layers

    return next(layer for layer in encoder.layers if isinstance(layer, layers.GlobalAveragePooling2D))


def _stages(encoder: Any) -> list[list[Any]]:
    """Convolutions of the encoder by their number of channels, ascending, the dense layers with the last ones.

    BatchNorm stays as it is: in batches of which half are faults its averages would no longer be those of a plant.
    """
    from keras import layers

    convolutions = [layer for layer in encoder.layers if isinstance(layer, layers.Conv2D)]
    widths = sorted({layer.filters for layer in convolutions})
    stages = [[layer for layer in convolutions if layer.filters == n] for n in widths]
    stages[-1] += [layer for layer in encoder.layers if isinstance(layer, layers.Dense)]
    return stages


def dense_layers(network: Any) -> list[tuple[F32, F32]]:
    """(weights, bias) of everything behind the mean over the maps, ReLU between them.

    BatchNorm is folded into the layer before it, and the embedding, which has no ReLU, into the one behind it.
    """
    from keras import layers

    behind = encoder_of(network).layers
    behind = behind[behind.index(_pooling(encoder_of(network))) :]
    first, embedding = (layer.get_weights()[0] for layer in behind if isinstance(layer, layers.Dense))
    norm = next(layer for layer in behind if isinstance(layer, layers.BatchNormalization))
    gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    (w1, b1), *rest = (network.get_layer(name).get_weights() for name in HEAD)
    pairs: list[Any] = [(first * scale, beta - mean * scale), (embedding @ w1, b1), *rest]
    return [(np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in pairs]
