"""The training loop: patches in, a trained Keras network and its loss history out.

A loop of our own in place of `Model.fit`: several networks are trained in stages, each with its own loss and
batches, and on the small networks of this project `Model.fit` spends five times longer between the steps
than in them. An architecture that needs more than one descent defines `train(network, course, ...)` and works
with the `Course` it is given; all others descend once, on their own loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_agent.errors import ConfigError, Problem, RecordingError
from edge_agent.signals import F32
from trainer import architectures, losses
from trainer.losses import Loss
from trainer.recipe import Recipe

#: (stage, epoch from 1, epochs, losses of this epoch)
Progress = Callable[[str, int, int, Mapping[str, float]], None]
#: name -> one value per epoch
History = dict[str, list[float]]
#: (x of a batch, y of it, generator) -> the same, changed at random
Augment = Callable[[F32, Any, np.random.Generator], tuple[F32, Any]]

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


@dataclass(frozen=True)
class Data:
    """Standardised patches to learn from.

    x         : (m, width, F) healthy ones; y: (m,) class numbers, 0 where there are no classes
    x_held    : (h, width, F) held out for early stopping, may be empty; y_held: (h,)
    anomalies : (k, width, F) of labelled (or pseudo-labelled) faulty recordings, may be empty
    weight, held_weight, anomaly_weight : (m,), (h,) and (k,), how much a patch counts; None: each as much as any other
    """

    x: F32
    y: Any
    x_held: F32
    y_held: Any
    anomalies: F32
    weight: F32 | None = None
    anomaly_weight: F32 | None = None
    held_weight: F32 | None = None

    def shaped(self, shape: tuple[int, ...]) -> Data:
        """The same with every patch in the shape a network takes."""
        to = (-1, *shape)
        return replace(
            self, x=self.x.reshape(to), x_held=self.x_held.reshape(to), anomalies=self.anomalies.reshape(to)
        )


@dataclass(frozen=True)
class Trained:
    """A trained network and what came of it.

    network : patch -> the outputs that its score rule asks for
    figures : numbers for the card; arrays : what the score rule needs beside the network (a centre, a head)
    """

    network: Any
    history: History
    figures: dict[str, float]
    arrays: dict[str, F32] = field(default_factory=dict)


class Course:
    """What an architecture's `train` works with: data in the network's shape, the descent, and where to note results."""

    def __init__(self, recipe: Recipe, data: Data, progress: Progress | None) -> None:
        self.recipe, self.how, self.data, self.progress = recipe, recipe.train, data, progress
        self.tf = tensorflow()
        self.rng = np.random.default_rng([recipe.train.seed, 3])
        self.history: History = {}
        self.figures: dict[str, float] = {}
        self.arrays: dict[str, F32] = {}

    def note(self, stage: str, epoch: int, epochs: int, now: Mapping[str, float]) -> None:
        """Keep the losses of one epoch under their names and show them; RecordingError where one is not finite."""
        for name, value in now.items():
            if not np.isfinite(value):
                raise RecordingError(
                    f"{stage}: the {name.replace('_', ' ')} became {value} in epoch {epoch}; expected a finite number: "
                    "lower train.learning_rate, or look for outliers in the recordings"
                )
            self.history.setdefault(name, []).append(round(float(value), 7))
        if self.progress is not None:
            self.progress(stage, epoch, epochs, now)

    def descend(
        self,
        stage: str,
        model: Any,
        loss: Loss,
        *,
        x: F32 | None = None,
        y: Any = None,
        weight: F32 | None = None,
        held: tuple[F32, Any] | None = None,
        epochs: int | None = None,
        patience: int = 0,
        learning_rate: float | None = None,
        beside: F32 | None = None,
        beside_weight: F32 | None = None,
        augment: Augment | None = None,
        overlap: int = 1,
        before_epoch: Callable[[], None] | None = None,
        name: str = "loss",
    ) -> None:
        """Minimise the mean loss of `model` by Adam (AdamW with train.weight_decay), in batches of train.batch.

        x, y     : what to learn from; the course's own where not given. y may be class numbers or (m, K) targets
        held     : with patience, the weights of the best loss on these are kept
        beside   : anomalous patches (y = 0); every batch gets as many of them as it has normals, drawn with
                   replacement, so that five clips weigh as much as five hundred; beside_weight: of each, 1 where
                   not given
        overlap  : an epoch sees 1/overlap of the patches, drawn at random
        name     : under which the loss is kept in the history; that of `held` stands beside as `validation`
        """
        how = self.how
        epochs = how.epochs if epochs is None else epochs
        x = self.data.x if x is None else x
        y = np.asarray(self.data.y if y is None else y)
        y = y if y.ndim > 1 else y.astype(np.int32)
        weight = np.ones(len(x), np.float32) if weight is None else np.asarray(weight, np.float32)
        fast_step, fast_measure = self._steps(model, loss, learning_rate or how.learning_rate, y)
        best, best_epoch, best_weights = np.inf, 0, model.get_weights()
        watch = held is not None and bool(len(held[0])) and patience > 0
        for epoch in range(1, epochs + 1):
            if before_epoch is not None:
                before_epoch()
            total = 0.0
            order = self.rng.permutation(len(x))[: max(1, round(len(x) / overlap))]
            for i in range(0, len(order), how.batch):
                pick = order[i : i + how.batch]
                xb, yb, wb = x[pick], y[pick], weight[pick]
                if beside is not None:
                    drawn = self.rng.integers(len(beside), size=len(pick))
                    xb = np.concatenate([xb, beside[drawn]])
                    much = np.ones_like(wb) if beside_weight is None else beside_weight[drawn]
                    yb, wb = np.concatenate([yb, np.zeros_like(yb)]), np.concatenate([wb, much])
                if augment is not None:
                    xb, yb = augment(xb, yb, self.rng)
                total += float(fast_step(xb, yb, wb)) * len(pick)
            now = {name: total / len(order)}
            if held is not None and len(held[0]):
                parts = [
                    np.asarray(fast_measure(held[0][i : i + 512], np.asarray(held[1][i : i + 512], y.dtype)))
                    for i in range(0, len(held[0]), 512)
                ]
                now["validation" if name == "loss" else f"{name}_validation"] = float(np.concatenate(parts).mean())
            self.note(stage, epoch, epochs, now)
            if watch:
                value = list(now.values())[-1]
                if value < best:
                    best, best_epoch, best_weights = value, epoch, model.get_weights()
                elif epoch - best_epoch >= patience:
                    break
        if watch:
            model.set_weights(best_weights)

    def _steps(self, model: Any, loss: Loss, learning_rate: float, y: Any) -> tuple[Any, Any]:
        """(one step of the optimizer on a batch, the losses of a batch), as graphs."""
        import keras

        tf, how = self.tf, self.how
        optimizer = (
            keras.optimizers.AdamW(learning_rate, weight_decay=how.weight_decay)
            if how.weight_decay
            else keras.optimizers.Adam(learning_rate)
        )
        optimizer.build(model.trainable_variables)
        kind = tf.int32 if y.ndim == 1 else tf.float32
        batch = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
        wanted = tf.TensorSpec((None, *y.shape[1:]), kind)

        def step(xb: Any, yb: Any, wb: Any) -> Any:
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(wb * loss(model(xb, training=True), xb, yb)) / tf.reduce_sum(wb)
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
            return value

        def measure(xb: Any, yb: Any) -> Any:
            return loss(model(xb, training=False), xb, yb)

        return (
            tf.function(step, input_signature=[batch, wanted, tf.TensorSpec((None,), tf.float32)]),
            tf.function(measure, input_signature=[batch, wanted]),
        )


def train(
    recipe: Recipe, data: Data, progress: Progress | None = None, start: Sequence[F32] | None = None
) -> Trained:
    """Train the recipe's network.

    start : weights to go on from, of the same network; random ones where not given
    """
    tensorflow()
    import keras

    keras.utils.set_random_seed(recipe.train.seed)
    n_classes = int(np.max(data.y)) + 1 if len(data.y) else 1
    shape = (data.x.shape[1], data.x.shape[2])
    network = architectures.build(recipe.model, shape, n_classes, recipe.network)
    if start is not None:
        network.set_weights(start)
    course = Course(recipe, data.shaped(network.input_shape[1:]), progress)
    own = getattr(architectures.module(recipe.model), "train", None)
    if own is None:
        once(network, course, losses.BY_NAME[architectures.defaults(recipe.model).loss])
    else:
        try:
            own(network, course, **recipe.train.options)
        except ValueError as error:
            raise ConfigError(recipe.origin, [Problem("train", repr(dict(recipe.train.options)), str(error))]) from error
    return Trained(network, course.history, course.figures, course.arrays)


def once(network: Any, course: Course, loss: Loss) -> None:
    """One descent on the healthy patches, stopped early where some are held out."""
    data, how = course.data, course.how
    course.history["loss"] = []
    course.descend(
        "train", network, loss, held=(data.x_held, data.y_held), patience=how.patience, overlap=how.overlap
    )
    course.figures["epochs"] = float(len(course.history["loss"]))


def predict(model: Any, x: F32, batch: int = 512) -> tuple[F32, ...]:
    """Every output of the model for x (m, ...), in batches."""
    parts = []
    for i in range(0, len(x), batch):
        out = model(x[i : i + batch], training=False)
        parts.append([np.asarray(o, np.float32) for o in (out if isinstance(out, (list, tuple)) else (out,))])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
