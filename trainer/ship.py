"""A trained network made into what is shipped: a TFLite file that passes its gates, and the score that fits it.

    network ─► float32 ─ parity with Keras
            ─► int8 ──── residual ≥ 2 steps, rank correlation ≥ 0.99 ──► shipped
            └► float16 where int8 misses a gate, and the card says why
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from edge_agent import scoring
from edge_agent.bundle import Quantization
from edge_agent.causes import Arrays
from edge_agent.errors import RecordingError
from edge_agent.inference import TFLiteModel
from edge_agent.pipeline import Model
from edge_agent.scoring import ScoreRule
from edge_agent.signals import F32, F64
from trainer import export, fit
from trainer.evaluate import auc
from trainer.export import ExportError
from trainer.fit import Progress, Trained
from trainer.recipe import Recipe

#: The gates of an int8 model: the residual must span this many steps of the output, and scores keep their order.
MIN_STEPS, MIN_SPEARMAN, MAX_AUC_LOSS = 2.0, 0.99, 0.01
#: Patches from which the converter learns the int8 ranges.
REPRESENTATIVE = 256
#: Which output of the network reconstructs its input, by score rule.
RECONSTRUCTS = {"reconstruction": 0, "vae": 0, "ensemble": 1, "gan": 0}


@dataclass(frozen=True)
class Inputs:
    """Model inputs of some windows: patches (s, n_patches, width, F), the class of each window, and its start in s."""

    patches: F32
    group: Any
    start: Any = None

    def flat(self) -> F32:
        """(s · n_patches, width, F)"""
        return self.patches.reshape(-1, *self.patches.shape[2:])

    def each(self, values: Any) -> Any:
        """One value a window -> one a patch."""
        return np.repeat(values, self.patches.shape[1])


#: Every output of a model for some windows, each (s, n_patches, ...).
Outputs = tuple[F32, ...]


@dataclass(frozen=True)
class Shipped:
    """What goes into the bundle, and the float32 file beside which it is judged."""

    flatbuffer: bytes
    quantization: Quantization
    rule: ScoreRule
    arrays: Arrays
    float32: bytes
    float_rule: ScoreRule
    float_arrays: Arrays


def ship(
    recipe: Recipe, trained: Trained, rule: ScoreRule, train: Inputs, held: Inputs, learnt: Inputs, n_classes: int,
    progress: Progress | None = None,
) -> Shipped:  # fmt: skip
    """The flatbuffer to ship with its figures: as asked for, or float16 where int8 misses a gate.

    train : patches as in training, from which int8 ranges are drawn
    held  : healthy windows that were not trained on, on which the gates are measured
    learnt : training windows as the device cuts them, to which the score's constants are fitted
    """
    patches = train.flat()
    shape = (patches.shape[1], patches.shape[2])
    weights = trained.network.get_weights()

    def convert(quantize: str) -> bytes:
        if progress is not None:
            progress(f"export {quantize}", 1, 1, {})
        return export.tflite(
            recipe.model, shape, n_classes, recipe.network, weights, quantize, representative(patches)
        )

    def fitted(flatbuffer: bytes) -> tuple[ScoreRule, Arrays]:
        return fit_score(rule, trained.arrays, outputs(flatbuffer, learnt), learnt)

    flat_shape = (-1, *trained.network.input_shape[1:])
    flat = fit.predict(trained.network, held.flat().reshape(flat_shape))
    expected = tuple(o.reshape(*held.patches.shape[:2], *o.shape[1:]) for o in flat)
    plain = convert("float32")
    float_rule, float_arrays = fitted(plain)
    got = outputs(plain, held)
    parity = {"keras_float32_max_abs": _worst(recipe.model, expected, got)}
    float_scores = scores(float_rule, float_arrays, held, got)
    note = ""
    if recipe.quantize == "int8":
        try:
            small = convert("int8")
            small_rule, small_arrays = fitted(small)
            figures, note = _gates(small_rule, small_arrays, held, got, float_scores, small)
        except ExportError as error:
            figures, note = {}, str(error)
        parity |= figures
        if not note:
            return Shipped(
                small, Quantization("int8", parity), small_rule, small_arrays, plain, float_rule, float_arrays
            )
        note = f"float16 in place of int8: {note}"
    if recipe.quantize == "float32":
        return Shipped(
            plain, Quantization("float32", parity), float_rule, float_arrays, plain, float_rule, float_arrays
        )
    half = convert("float16")
    half_rule, half_arrays = fitted(half)
    parity["float16_spearman"] = spearman(float_scores, scores(half_rule, half_arrays, held, outputs(half, held)))
    return Shipped(
        half, Quantization("float16", parity, note), half_rule, half_arrays, plain, float_rule, float_arrays
    )


def fit_score(rule: ScoreRule, arrays: Arrays, out: Outputs, of: Inputs) -> tuple[ScoreRule, Arrays]:
    """The rule with what training windows teach it, from the outputs of the file it will go with.

    knn      : the embeddings of these windows are the references, whitened where the rule says so
    ensemble : mean and deviation of either score over these windows (S3)
    Raises RecordingError where all of them score alike.
    """
    if rule.kind == "knn":
        beside = float(rule.params.get("spectrum", 0.0))
        references = np.stack([scoring.embedding_of(x, o, beside) for x, o in zip(of.patches, out[1], strict=True)])
        arrays = {**arrays, "group": np.asarray(of.group, np.float32)}
        if ridge := float(rule.params.get("whiten", 0.0)):
            arrays["projection"] = whitening(references, of.group, ridge)
            references = references @ arrays["projection"]
        return rule, {**arrays, "references": references}
    if rule.kind == "ensemble":
        beta = float(rule.params.get("beta", 0.1))
        parts = {
            "distance": scores(ScoreRule("distance"), arrays, of, out[:1]),
            "vae": scores(ScoreRule("vae", {"beta": beta}), arrays, of, out[1:]),
        }
        constants: dict[str, float] = {}
        for name, values in parts.items():
            constants |= {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std())}
            if not constants[f"{name}_std"] > 0.0:
                raise RecordingError(
                    f"all {len(values)} training windows have the same {name} score; expected recordings that differ: "
                    "silence, or one recording copied, cannot be learnt from"
                )
        return replace(rule, params={**rule.params, **constants}), arrays
    return rule, arrays


def whitening(x: F32, group: Any, ridge: float) -> F32:
    """(d, d) matrix that makes the scatter within the groups round: directions in which healthy windows of one
    machine differ anyway count less (within-class covariance normalisation, Hatch et al., Interspeech 2006).

    x     : (m, d), group: (m,)
    ridge : this share of the mean variance is added in every direction, without which the directions that few
            windows happen not to show would count without bound; above 0
    RecordingError where the windows of every group are alike.
    """
    within = np.concatenate([x[group == g] - x[group == g].mean(0) for g in np.unique(group)]).astype(np.float64)
    covariance = within.T @ within / len(within)
    mean = float(np.trace(covariance)) / len(covariance)
    if not mean > 0.0:
        raise RecordingError(
            f"the {len(x)} training windows of each machine have the same embedding; expected recordings that differ: "
            "silence, or one recording copied, cannot be learnt from"
        )
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 0.0) + ridge * mean), np.float32)


def representative(patches: F32) -> F32:
    """At most REPRESENTATIVE patches spread over all."""
    spread = np.linspace(0, len(patches) - 1, min(REPRESENTATIVE, len(patches))).astype(int)
    chosen: F32 = patches[spread]
    return chosen


def own(rule: ScoreRule, group: int) -> ScoreRule:
    """The rule for a window of class `group`, where the rule knows classes."""
    return replace(rule, params={**rule.params, "target": group}) if "target" in rule.params else rule


def outputs(flatbuffer: bytes, of: Inputs) -> Outputs:
    """What the file gives for every window, as the device runs it."""
    return outputs_of(model_of(flatbuffer, of), of)


def outputs_of(model: Model, of: Inputs) -> Outputs:
    """What a model gives for every window, each (s, n_patches, ...)."""
    columns = zip(*([o.copy() for o in model(x)] for x in of.patches), strict=True)
    return tuple(np.stack(column) for column in columns)


def model_of(flatbuffer: bytes, of: Inputs) -> TFLiteModel:
    """The file ready to run on such inputs."""
    return TFLiteModel(flatbuffer, of.patches.shape[1], of.patches.shape[2:])


def scores(rule: ScoreRule, arrays: Arrays, of: Inputs, out: Outputs) -> F64:
    """The score of every window under its own class."""
    return np.array([s.value for s in scored(rule, arrays, of, out)], np.float64)


def scored(rule: ScoreRule, arrays: Arrays, of: Inputs, out: Outputs) -> list[scoring.Score]:
    """As `scores`, with where each comes from."""
    rules = {int(g): scoring.build(own(rule, int(g)), arrays) for g in np.unique(of.group)}
    each: Sequence[Any] = list(zip(*out, strict=True)) if out else [()] * len(of.patches)
    return [rules[int(g)](x, o) for g, x, o in zip(of.group, of.patches, each, strict=True)]


def _worst(model: str, expected: Outputs, got: Outputs) -> float:
    """Largest difference between Keras and the float file; ExportError where it is more than rounding."""
    worst = 0.0
    for wanted, out in zip(expected, got, strict=True):
        error = float(np.abs(out.reshape(wanted.shape) - wanted).max())
        worst = max(worst, error)
        if error > 1e-3 * max(1.0, float(np.abs(wanted).max())):
            raise ExportError(
                f"{model}: the float TFLite model differs from Keras by {error:.3g}; expected rounding only: the "
                "converter is broken for this network"
            )
    return worst


def _gates(
    rule: ScoreRule, arrays: Arrays, held: Inputs, expected: Outputs, float_scores: F64, flatbuffer: bytes
) -> tuple[dict[str, float], str]:
    """Parity figures of an int8 model and, where it misses a gate, why."""
    got = outputs(flatbuffer, held)
    values = scores(rule, arrays, held, got)
    figures = {
        "spearman": spearman(float_scores, values),
        "score_shift": float(np.mean(values) / max(float(np.mean(float_scores)), 1e-12) - 1.0),
    }
    reasons = []
    if not figures["spearman"] >= MIN_SPEARMAN:
        reasons.append(
            f"rank correlation of float and int8 scores is {figures['spearman']:.4f} < {MIN_SPEARMAN}"
        )
    if rule.kind == "log_odds" and rule.params["n_classes"] > 1:
        figures["auc_difference"] = abs(_id_auc(rule, arrays, held, got) - _id_auc(rule, arrays, held, expected))
        if figures["auc_difference"] > MAX_AUC_LOSS:
            reasons.append(f"the ids' AUC differs by {figures['auc_difference']:.3f} > {MAX_AUC_LOSS}")
    if rule.kind in RECONSTRUCTS:
        which = RECONSTRUCTS[rule.kind]
        figures["step"] = float(model_of(flatbuffer, held).output_steps[which])
        difference = held.patches - expected[which].reshape(held.patches.shape)
        if rule.params.get("steps") == "newest":
            difference = difference[:, :, -1:]
        figures["residual_rmse"] = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
        if figures["residual_rmse"] < MIN_STEPS * figures["step"]:
            reasons.append(
                f"the residual's RMS {figures['residual_rmse']:.3g} is below {MIN_STEPS:g} int8 steps of "
                f"{figures['step']:.3g}"
            )
    return figures, "; ".join(reasons)


def _id_auc(rule: ScoreRule, arrays: Arrays, held: Inputs, out: Outputs) -> float:
    """How well the scores tell a clip under its own id from the same clip under a wrong one."""
    mine = scores(rule, arrays, held, out)
    n = int(rule.params["n_classes"])
    wrong = [scores(rule, arrays, replace(held, group=(held.group + k) % n), out) for k in range(1, n)]
    values = np.concatenate([mine, *wrong])
    return auc(values, np.arange(len(values)) >= len(mine))


def spearman(a: F64, b: F64) -> float:
    """Rank correlation; 0 where there is none to speak of."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)
