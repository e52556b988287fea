"""The training loop: patches in, a trained Keras model and its loss history out.

A loop of our own in place of `Model.fit`: the second stage of `weak_ae` needs its own loss and batches, and
on the small networks of this project `Model.fit` spends five times longer between the steps than in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edge_agent import thresholds
from edge_agent.errors import RecordingError
from edge_agent.signals import F32, F64
from trainer import architectures, losses
from trainer.losses import Loss
from trainer.recipe import Recipe, Training

#: (stage, epoch from 1, epochs, losses of this epoch)
Progress = Callable[[str, int, int, Mapping[str, float]], None]
#: name -> one value per epoch
History = dict[str, list[float]]

#: TensorFlow's threads, where OMP_NUM_THREADS does not say how many.
_THREADS = 2
_prepared = False


def tensorflow() -> Any:
    """TensorFlow, set up once: quiet, on the CPU, few threads, the same result for the same seed."""
    global _prepared
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    if not _prepared:
        _prepared = True
        try:
            threads = int(os.environ.get("OMP_NUM_THREADS", "") or _THREADS)
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
            tf.config.experimental.enable_op_determinism()
        except RuntimeError:
            # A program that has used TensorFlow already keeps its own threads; results stay right.
            tf.get_logger().info("TensorFlow is in use already; its threads stay as they are")
    return tf


def train(
    recipe: Recipe,
    x: F32,
    y: Any,
    validation: tuple[F32, Any],
    anomalies: F32,
    progress: Progress | None,
    start: Sequence[F32] | None = None,
) -> tuple[Any, History, dict[str, float]]:
    """Train the recipe's network.

    x          : (m, width, F) standardised healthy patches; y: (m,) class numbers (0 for autoencoders)
    validation : the same, held out for early stopping; may be empty
    anomalies  : (k, width, F) patches of labelled faulty recordings, for the second stage of weak_ae
    start      : weights to go on from, of the same network; random ones where not given
    Returns the model, the losses by epoch, and figures for the card.
    """
    tf = tensorflow()
    import keras

    how = recipe.train
    keras.utils.set_random_seed(how.seed)
    n_classes = int(np.max(y)) + 1 if len(y) else 1
    model = architectures.build(recipe.model, (x.shape[1], x.shape[2]), n_classes, recipe.network)
    if start is not None:
        model.set_weights(start)
    shape = (-1, *model.input_shape[1:])
    flat, held = x.reshape(shape), validation[0].reshape(shape)
    rng = np.random.default_rng([how.seed, 3])
    loss = losses.BY_NAME[architectures.defaults(recipe.model).loss]
    history = _descend(
        tf, model, loss, flat, y, held, validation[1], how, how.epochs, how.patience, rng, "train", progress
    )
    figures = {"epochs": float(len(history["loss"]))}
    if how.stage2:
        if not len(anomalies):
            raise RecordingError(
                f"{recipe.origin}: train.stage2 is {how.stage2}, but no labelled anomalous recording is there "
                "to learn from: set split.anomalies and label some (folder `anomaly`), or set train.stage2 to 0"
            )
        a = _hinge_limit(model, flat, how.stage2_rate)
        figures |= {"hinge_limit": a, "stage2_epochs": float(how.stage2)}
        second = _descend(
            tf, model, losses.hinge(a), flat, np.ones(len(flat)), held[:0], np.zeros(0), how, how.stage2, 0, rng,
            "stage 2", progress, anomalies.reshape(shape),
        )  # fmt: skip
        history["stage2_loss"] = second["loss"]
    return model, history, figures


def _hinge_limit(model: Any, x: F32, rate: float) -> float:
    """Quantile `rate` of the gamma distribution fitted to S(x) of the training patches (m, ...): S4's a.

    From held-out patches, whose error is about twice as large where clips are few, the hinge pushes anomalies
    further than the network can tell them from fresh healthy clips: on simulated fans AUC fell by 0.09 with twice
    this limit (docs/decisions/0007).
    """
    s: F64 = np.square(x - predict(model, x)).sum(tuple(range(1, x.ndim)), dtype=np.float64)
    return thresholds.fit(s, "gamma", 1.0 - rate).value


def predict(model: Any, x: F32, batch: int = 512) -> F32:
    """The model's output for x (m, ...), in batches."""
    parts = [np.asarray(model(x[i : i + batch], training=False), np.float32) for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def _descend(
    tf: Any, model: Any, loss: Loss, x: F32, y: Any, x_held: F32, y_held: Any, how: Training, epochs: int,
    patience: int, rng: np.random.Generator, stage: str, progress: Progress | None, beside: F32 | None = None,
) -> History:  # fmt: skip
    """Minimise the mean loss by Adam; keep the weights of the best validation loss where there is one.

    beside : anomalous patches (y = 0); every batch gets as many of them as it has normals, drawn with
             replacement, so that five clips weigh as much as five hundred
    """
    import keras

    optimizer = (
        keras.optimizers.AdamW(how.learning_rate, weight_decay=how.weight_decay)
        if how.weight_decay
        else keras.optimizers.Adam(how.learning_rate)
    )
    optimizer.build(model.trainable_variables)
    y = np.asarray(y, np.int32)
    y_held = np.asarray(y_held, np.int32)
    signature = [tf.TensorSpec((None, *x.shape[1:]), tf.float32), tf.TensorSpec((None,), tf.int32)]

    def step(xb: Any, yb: Any) -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(model(xb, training=True), xb, yb))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        return value

    def measure(xb: Any, yb: Any) -> Any:
        return loss(model(xb, training=False), xb, yb)

    fast_step, fast_measure = (tf.function(f, input_signature=signature) for f in (step, measure))

    history: History = {"loss": []}
    best, best_epoch, best_weights = np.inf, 0, model.get_weights()
    watch = bool(len(x_held)) and patience > 0
    for epoch in range(1, epochs + 1):
        total = 0.0
        order = rng.permutation(len(x))[: max(1, round(len(x) / how.overlap))]
        for i in range(0, len(order), how.batch):
            pick = order[i : i + how.batch]
            xb, yb = x[pick], y[pick]
            if beside is not None:
                drawn = rng.integers(len(beside), size=len(pick))
                xb, yb = (
                    np.concatenate([xb, beside[drawn]]),
                    np.concatenate([yb, np.zeros(len(pick), np.int32)]),
                )
            total += float(fast_step(xb, yb)) * len(pick)
        now = {"loss": total / len(order)}
        if not np.isfinite(now["loss"]):
            raise RecordingError(
                f"{stage}: the loss became {now['loss']} in epoch {epoch}; expected a finite number: lower "
                "train.learning_rate, or look for outliers in the recordings"
            )
        if len(x_held):
            held = [
                np.asarray(fast_measure(x_held[i : i + 512], y_held[i : i + 512]))
                for i in range(0, len(x_held), 512)
            ]
            now["validation"] = float(np.concatenate(held).mean())
        for name, value in now.items():
            history.setdefault(name, []).append(round(value, 7))
        if progress is not None:
            progress(stage, epoch, epochs, now)
        if watch:
            if now["validation"] < best:
                best, best_epoch, best_weights = now["validation"], epoch, model.get_weights()
            elif epoch - best_epoch >= patience:
                break
    if watch:
        model.set_weights(best_weights)
    return history
