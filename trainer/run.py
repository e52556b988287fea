"""One training run from recipe to bundle: the library behind `edge-trainer fit`, benchmarks and tests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import alarms, bundle, scoring, thresholds
from edge_agent.alarms import AlarmPolicy
from edge_agent.bundle import Bundle, Manifest, Quantization, Residual
from edge_agent.causes import Arrays
from edge_agent.errors import ConfigError, Problem, RecordingError
from edge_agent.features import FeatureSet, standardisation, value_range
from edge_agent.pipeline import Judge
from edge_agent.scoring import ScoreRule
from edge_agent.signals import F32, F64
from edge_agent.thresholds import Threshold
from trainer import architectures, card, fit, ship, splits
from trainer.data import Table, surrogate
from trainer.data import table as make_table
from trainer.fit import Data, History, Progress, Trained
from trainer.recipe import Recipe
from trainer.ship import Inputs, Shipped
from trainer.splits import Parts
from trainer.words import counted

#: Healthy scores that a limit needs, of each machine where the model knows machines.
MIN_SCORES = dict.fromkeys(thresholds.METHODS, 10) | {"pot": 10 * thresholds.POT_MIN_EXCESSES}
#: Below as many calibration scores a rate far below one in their number is warned of.
FEW_SCORES = 50
_GOLDEN_HISTORIES = 8


@dataclass(frozen=True)
class FitResult:
    """What a run made: the verified bundle, and what plots and tests look at.

    scores : calibration scores in time order; warnings: sentences that stand in the card too
    network : the Keras model behind the bundle's file; None for `indicator`
    float_judge : what judges as the bundle would with its float32 file; the bundle's own for `indicator`
    """

    bundle: Bundle
    manifest: Manifest
    history: History
    scores: F64
    warnings: tuple[str, ...]
    table: Table
    parts: Parts
    float_judge: Judge
    network: Any = None


def run(
    recipe: Recipe,
    out: Path,
    *,
    table: Table | None = None,
    progress: Progress | None = None,
    start: Sequence[F32] | None = None,
    weights: F32 | None = None,
) -> FitResult:
    """Train, export, calibrate, verify and write the bundle `out`.

    table : the recipe's features, where they were computed before (they do not depend on the seed)
    start : weights of the same network to go on from
    weights : (n,) how much each window of the table counts in training, 0 not at all, for networks that learn from faults
    Raises ConfigError for a recipe that its data contradict, RecordingError for data that cannot be used.
    """
    table = make_table(recipe) if table is None else table
    parts = splits.split(
        table,
        recipe.split,
        validation=_validation(recipe),
        seed=recipe.train.seed,
        enough=lambda part: _fewest(recipe, table, part)[1] >= _needed(recipe),
    )
    spec = replace(table.spec, context=recipe.context)
    if recipe.model != "indicator":
        learnt_on = np.concatenate([parts.train, parts.validation])
        constants = value_range if recipe.input == "range" else standardisation
        offset, scale = constants(table.vectors[learnt_on])
        spec = replace(spec, offset=offset, scale=scale)
    try:
        features = FeatureSet(spec)
    except ValueError as error:
        raise ConfigError(recipe.origin, [Problem("context", repr(recipe.context), str(error))]) from error
    vectors = features.standardise(table.vectors)
    classes = _classes(recipe, table, parts)
    rule = _rule(recipe, features.names, len(classes))
    _check_enough(recipe, table, parts)
    if recipe.model != "indicator":
        _check_different(recipe, table, parts)
    calibrate = _inputs(features, vectors, table, parts.calibrate, classes)
    warnings = [parts.note] if parts.note else []
    trained, shipped = Trained(None, {}, {}), None
    quantization = Quantization("none")
    if recipe.model != "indicator":
        trained, shipped = _train(recipe, features, vectors, table, parts, calibrate, rule, classes, start, weights, progress)
        rule, quantization = shipped.rule, shipped.quantization
        if quantization.note:
            warnings.append(quantization.note)
    history, figures = trained.history, trained.figures
    flatbuffer = None if shipped is None else shipped.flatbuffer
    arrays: Arrays = {} if shipped is None else shipped.arrays
    out_of = () if flatbuffer is None else ship.outputs(flatbuffer, calibrate)
    scored = ship.scored(rule, arrays, calibrate, out_of)
    scores = np.array([s.value for s in scored])
    residuals = np.stack([s.residual for s in scored]).astype(np.float64)
    limits = _thresholds(recipe, scores, calibrate.group, classes, warnings)
    threshold = limits[0]
    manifest = Manifest(
        bundle.SCHEMA, recipe.name, _version(flatbuffer, threshold, spec), recipe.model, spec, rule, threshold,
        Residual(tuple(residuals.mean(0).tolist()), tuple(residuals.std(0).tolist())),
        quantization, {}, classes, dict(zip(classes, limits, strict=False)), recipe.unit,
        _provenance(recipe, table, parts, history, figures, warnings, len(scores)),
        table.profile,
    )  # fmt: skip
    windows, golden = _golden(table, features, vectors, calibrate)
    written = bundle.write(
        out,
        manifest,
        model=flatbuffer,
        calibration=scores,
        groups=calibrate.group if classes else None,
        starts=calibrate.start,
        golden_windows=windows,
        golden_features=golden,
        card=card.text(manifest, scores, None if flatbuffer is None else len(flatbuffer), warnings),
        arrays=arrays,
    )
    judge = written.judge
    if shipped is not None:
        scorer = scoring.build(shipped.float_rule, shipped.float_arrays)
        judge = replace(judge, model=ship.model_of(shipped.float32, calibrate), scorer=scorer)
    return FitResult(
        written, written.manifest, history, scores, tuple(warnings), table, parts, judge, trained.network
    )


def _train(
    recipe: Recipe, features: FeatureSet, vectors: F32, table: Table, parts: Parts, calibrate: Inputs,
    rule: ScoreRule, classes: Sequence[str], start: Sequence[F32] | None, weights: F32 | None,
    progress: Progress | None,
) -> tuple[Trained, Shipped]:  # fmt: skip
    """The recipe's network, trained and made ready to ship."""
    dense = _dense(features, recipe.train.overlap)
    train = _inputs(dense, vectors, table, parts.train, classes)
    if not len(train.patches) or not len(calibrate.patches):
        raise RecordingError(
            f"{recipe.origin}: {len(parts.train)} windows to train and {len(parts.calibrate)} to calibrate hold "
            f"no gap-free history of {features.spec.context.width}; expected longer recordings or a smaller "
            "context.width"
        )
    held = _inputs(features, vectors, table, parts.validation, classes)
    bad = _inputs(dense, vectors, table, parts.anomalies, ())
    if architectures.defaults(recipe.model).learns == "faults" and not len(bad.patches):
        raise RecordingError(
            f"{recipe.origin}: {recipe.model} learns from labelled anomalies and found none: set split.anomalies to the "
            "number of anomalous recordings to learn from, and label them (folder `anomaly`, or anomaly in the name)"
        )
    data = Data(train.flat(), train.each(train.group), held.flat(), held.each(held.group), bad.flat())
    if weights is not None:
        each = {"weight": (train, parts.train), "held_weight": (held, parts.validation), "anomaly_weight": (bad, parts.anomalies)}
        data = replace(data, **{name: inputs.each(weights[part]) for name, (inputs, part) in each.items()})
    trained = fit.train(recipe, data, progress, start)
    learnt = train if dense is features else _inputs(features, vectors, table, parts.train, classes)
    shipped = ship.ship(recipe, trained, rule, train, calibrate, learnt, max(1, len(classes)), progress)
    return trained, shipped


def _needed(recipe: Recipe) -> int:
    return MIN_SCORES[recipe.threshold.method]


def _fewest(recipe: Recipe, table: Table, part: Any) -> tuple[str | None, int]:
    """(machine, number of scores) of the limit that these windows carry worst; a classifier has one a machine."""
    if recipe.context.over == "windows":
        part = splits.sequences(table, part, recipe.context)[:, -1]
    if architectures.defaults(recipe.model).learns != "machines":
        return None, len(part)
    counts = {c.machine: 0 for c in table.clips if c.healthy}
    for clip in table.of(part):
        counts[clip.machine] += 1
    machine = min(counts, key=lambda m: (counts[m], m or ""))
    return machine, counts[machine]


def _check_enough(recipe: Recipe, table: Table, parts: Parts) -> None:
    """Refuse data that cannot carry the limit, before minutes of training rather than after."""
    machine, n = _fewest(recipe, table, parts.calibrate)
    needed = _needed(recipe)
    if n >= needed:
        return
    mine = table.healthy()
    if machine is not None:
        mine &= np.array([c.machine == machine for c in table.clips])[table.recording]
    windows = int(mine.sum())
    recordings = len(np.unique(table.recording[mine]))
    spec, history = table.spec, recipe.context.width - 1 if recipe.context.over == "windows" else 0
    length = spec.n_samples / spec.fs_hz
    what = counted(recordings, "healthy recording") + (f" of {machine}" if machine else "")
    has = f"{counted(windows, 'window')} of {length:.4g} s"
    if recipe.split.train is not None:
        mend = f"change split.calibrate ({recipe.split.calibrate}), which is a part of them, or record more"
    else:
        # Calibration takes at most two thirds; overlapping windows at the cut are lost to both parts.
        wanted = math.ceil(1.5 * (needed + history)) + math.ceil(spec.n_samples / spec.hop_samples) - 1
        if recordings == windows and windows > 1:
            mend = f"give at least {wanted} such recordings"
        else:
            mend = f"give about {length + (wanted - 1) * spec.hop_samples / spec.fs_hz:.3g} s ({wanted} windows) in all"
    method = recipe.threshold.method
    raise RecordingError(
        f"{recipe.origin}: {what} ({has}) leave{'s' if recordings == 1 else ''} {counted(n, 'healthy window')} for "
        f"calibration; at least {needed} are needed for a {method} limit, beside those that train: {mend}; or choose a "
        "shorter window" + (", or another threshold method" if method == "pot" else "")
    )


def _check_different(recipe: Recipe, table: Table, parts: Parts) -> None:
    """Refuse training windows that are all the same before a network is trained on them."""
    learnt = table.vectors[parts.train]
    if len(learnt) > 1 and not np.ptp(learnt, axis=0).any():
        raise RecordingError(
            f"{recipe.origin}: all {len(learnt)} windows to train on are the same; expected recordings that differ: "
            "silence, or one recording copied, cannot be learnt from"
        )


def _validation(recipe: Recipe) -> float:
    return recipe.train.validation if recipe.model != "indicator" else 0.0


def _classes(recipe: Recipe, table: Table, parts: Parts) -> tuple[str, ...]:
    """Machine ids in the order of the logits; empty for models that know no machine."""
    if architectures.defaults(recipe.model).learns != "machines":
        return ()
    found = {c.machine for c in table.of(parts.train)}
    if None in found or len(found) < 2:
        named = sorted(m for m in found if m is not None)
        raise RecordingError(
            f"{recipe.origin}: {recipe.model} tells machines apart and found the ids {named}; expected at least two, "
            "as id_00 or section_00 in the file names, or one sub-folder a machine"
        )
    missing = found - {c.machine for c in table.of(parts.calibrate)}
    if missing:
        raise RecordingError(
            f"{recipe.origin}: no recording of {sorted(map(str, missing))} is left to calibrate on"
        )
    return tuple(sorted(m for m in found if m is not None))


def _rule(recipe: Recipe, names: Sequence[str], n_classes: int) -> ScoreRule:
    if recipe.score.kind == "log_odds" and not n_classes:
        # A classifier of faults: class 0 is healthy, class 1 is not.
        return ScoreRule("log_odds", {"target": 0, "n_classes": 2})
    if n_classes:
        return ScoreRule(recipe.score.kind, {**recipe.score.params, "target": 0, "n_classes": n_classes})
    if recipe.score.kind == "indicator":
        feature = recipe.score.params["feature"]
        if feature not in names:
            problem = Problem("score.feature", repr(feature), f"one of {', '.join(names)}")
            raise ConfigError(recipe.origin, [problem])
        return ScoreRule("indicator", {"index": names.index(feature)})
    return recipe.score


def _dense(features: FeatureSet, overlap: int) -> FeatureSet:
    """The same features with patches cut `overlap` times as densely, for training."""
    context = features.spec.context
    if context.over == "windows" or overlap == 1:
        return features
    return FeatureSet(replace(features.spec, context=replace(context, hop=max(1, context.hop // overlap))))


def _inputs(features: FeatureSet, vectors: F32, table: Table, part: Any, classes: Sequence[str]) -> Inputs:
    context = features.spec.context
    if context.over == "windows":
        histories = splits.sequences(table, part, context)
        patches = vectors[histories][:, np.newaxis, :, 0, :]
        newest = histories[:, -1] if len(histories) else np.zeros(0, np.int64)
    else:
        shape = (0, features.n_patches, context.width, len(features.names))
        patches = (
            np.stack([features.patches(v) for v in vectors[part]])
            if len(part)
            else np.zeros(shape, np.float32)
        )
        newest = part
    number = {name: i for i, name in enumerate(classes)}
    group = np.array([number.get(c.machine or "", 0) for c in table.of(newest)], np.int16)
    return Inputs(patches, group, table.start[newest])


def _thresholds(
    recipe: Recipe, scores: F64, group: Any, classes: Sequence[str], warnings: list[str]
) -> list[Threshold]:
    """One limit a class, in their order; one limit where the model knows no classes."""
    fitted = []
    for number, name in enumerate(classes or ("",)):
        try:
            limit = thresholds.fit(
                scores[group == number], recipe.threshold.method, recipe.threshold.false_alarm_rate
            )
        except ValueError as error:
            where = f"{recipe.origin}: calibration" + (f" of {name}" if name else "")
            raise RecordingError(f"{where}: {error}") from error
        for said in (limit.warning, _extrapolated(limit), _holds(scores[group == number], limit)):
            if said:
                warnings.append(f"{name}: {said}" if name else said)
        fitted.append(limit)
    return fitted


def _extrapolated(limit: Threshold) -> str | None:
    """A sentence where few scores are asked for a rate far below one in their number."""
    rate, n = limit.false_alarm_rate, limit.n
    if limit.method == "percentile" or rate is None or n >= FEW_SCORES or rate * n >= 0.1:
        return None
    near = next(p for p in (1e-4, 1e-3, 1e-2, 0.1) if p * n >= 0.1)
    return (
        f"{n} scores cannot show a rate of {rate:g}; the limit is extrapolated; --false-alarm-rate {near:g} is nearer "
        "to what they carry"
    )


def _holds(scores: F64, limit: Threshold) -> str | None:
    """A sentence where healthy scores lie so near to the limit that an alarm would never return."""
    found = alarms.stays((scores / limit.value).tolist(), AlarmPolicy())
    if found is None:
        return None
    share, deadband = found
    return (
        f"{100.0 * share:.0f} % of the healthy scores lie at or above {alarms.return_ratio(AlarmPolicy()):g} of the limit, where an alarm "
        "does not return by itself; " + (f"set the sensor's alarm.deadband to {deadband:g}" if deadband else "ask for fewer false alarms")
    )


# ---------------------------------------------------------------------------------------- provenance


def _golden(table: Table, features: FeatureSet, vectors: F32, calibrate: Inputs) -> tuple[F32, F32]:
    """(golden windows (k, C, n), golden features (m, v, F)); the windows are surrogates."""
    rng = np.random.default_rng(0)
    windows = np.stack([surrogate(table, rng) for _ in range(2)])
    if features.spec.context.over == "frames":
        return windows, features(windows)
    spread = np.linspace(0, len(calibrate.patches) - 1, _GOLDEN_HISTORIES).astype(int)
    return windows, calibrate.patches[spread, 0]


def _version(flatbuffer: bytes | None, threshold: Threshold, spec: Any) -> str:
    """The same training gives the same version: it is drawn from what was trained."""
    content = (flatbuffer or b"") + repr((threshold, spec)).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def _provenance(
    recipe: Recipe,
    table: Table,
    parts: Parts,
    history: History,
    figures: dict[str, float],
    warnings: list[str],
    n: int,
) -> dict[str, Any]:
    recorded, simulated = (
        ("fs_hz", "channels", "machine"),
        ("simulate", "seconds", "ids", "clips", "anomalies", "seed"),
    )
    data = []
    for source in recipe.data:
        # The name says which data; the path of somebody's workstation would not.
        told: dict[str, Any] = {} if source.path is None else {"path": source.path.name}
        told |= {} if source.verdicts is None else {"verdicts": source.verdicts.name}
        wanted = simulated if source.path is None else recorded
        data.append(told | {k: v for k, v in asdict(source).items() if k in wanted and v is not None})
    packages = (
        ("numpy", "scipy")
        if recipe.model == "indicator"
        else ("numpy", "scipy", "tensorflow-cpu", "tensorflow", "keras")
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "recipe": Path(recipe.origin).name,
        "about": recipe.about,
        "data": data,
        "seed": recipe.train.seed,
        "training": asdict(recipe.train),
        "network": dict(recipe.network),
        "split": {
            "by": parts.by,
            "train": len(parts.train),
            "validation": len(parts.validation),
            "calibrate": len(parts.calibrate),
            "anomalies": len(parts.anomalies),
            "calibration_scores": n,
        },
        "recordings": len(table.clips),
        "figures": {k: round(v, 6) for k, v in figures.items() if math.isfinite(v)},
        "history": history,
        "versions": versions,
        "warnings": list(warnings),
    }
