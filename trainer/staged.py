"""Three-stage learning (S3): a classifier of faults from recordings of which nobody knows which are faulty.

    1  Deep SVDD or VAE on all records          ──► a bundle of its own, and a score of every record by a
                                                    network that has not seen it
    2  two limits on these scores               ──► pseudo-normal | uncertain | pseudo-anomalous
    3  the classifier on both sure groups       ──► a bundle like every other, calibrated on held-out records
       pseudo-labels weigh 0.5, real ones 1         that are not pseudo-anomalous

The uncertain records teach nothing, but they help to set the last limit: most of them are healthy ones of the less usual
kind, and a limit that only the most usual records have shaped would give alarm on them all day.

Labels are never read: those of file and folder names are dropped before anything is computed, and recordings are put
in the order of their times and contents, so that names decide nothing at all. Real labels come in by a CSV only.

A network draws in what it was trained on, faulty records too, and would call them healthy afterwards. So the records
are dealt into folds, stretch by stretch, and each is scored by a network that learnt from the other folds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import scoring, thresholds
from edge_agent.errors import ConfigError, Problem, RecordingError
from edge_agent.features import FeatureSet, standardisation, value_range
from edge_agent.scoring import ScoreRule
from edge_agent.signals import F32, F64
from trainer import architectures, data, fit, recipe, run
from trainer.data import Clip, Table
from trainer.evaluate import Truth, score_table
from trainer.fit import Data, Progress
from trainer.recipe import Recipe
from trainer.run import FitResult
from trainer.spans import Span
from trainer.words import counted

METHODS = ("mad", "percentile", "pot")
STAGE_1 = ("deep_svdd", "vae")
#: Groups of records, and how much a label of either origin counts (S3).
NORMAL, ANOMALOUS, UNCERTAIN = 0, 1, -1
PSEUDO_WEIGHT, REAL_WEIGHT = 0.5, 1.0
#: Shares of the percentile method, and the rate of POT.
PERCENTILES, POT_RATE = (5.0, 99.0), 1e-3
#: Multiples of 1.4826 · MAD below and above the median.
MAD_BELOW, MAD_ABOVE = 2.0, 4.0
#: 1 / (normal quantile of 3/4): makes the MAD of Gaussian scores their standard deviation.
MAD_SCALE = 1.4826
#: Where the MAD's lower limit leaves a smaller share of the windows, the median is taken (our choice): distances are
#: skewed, and their median less two deviations lies below every one of them.
MIN_NORMAL_SHARE = 0.25
#: Epochs of stage 3: S3 unfreezes at 20 and at 30.
EPOCHS = 40
#: Stretches of records a fold is made of: short against a drift, long against what neighbours share.
STRETCHES = 6
#: AdamW's weight decay where the recipe has none.
WEIGHT_DECAY = 1e-4
#: What the classifier takes over from the network of stage 1.
_ENCODER = ("base", "units", "embedding", "channels")


@dataclass(frozen=True)
class Limits:
    """Scores below `low` are pseudo-normal, above `high` pseudo-anomalous, between them uncertain."""

    low: float
    high: float
    method: str
    note: str = ""


@dataclass(frozen=True)
class Staged:
    """What the three stages made.

    first, last : stage 1's bundle and the classifier's; scores (n,) of every window in the order of `table`
    groups      : (n,) NORMAL, ANOMALOUS or UNCERTAIN; real: (n,) whether a person's label said so
    """

    first: FitResult
    last: FitResult
    table: Table
    scores: F64
    limits: Limits
    groups: Any
    real: Any

    def count(self, group: int) -> int:
        """Windows of a group."""
        return int((self.groups == group).sum())


# ------------------------------------------------------------------------------------------ the command


def default_recipe(name: str, path: Path, fs_hz: float | None, stage1: str = "deep_svdd") -> Recipe:
    """The recipe of `staged --data PATH --fs HZ`.

    vibration : records of 8192 points as 64 × 64 scalograms; sound: as `fit` has it, in 64 × 64 log-mel pictures
    """
    mapping = recipe.default_mapping(name, stage1, path, fs_hz)
    if recipe.is_sound(stage1, path):
        mapping["features"] = [{**mapping["features"][0], "n_mels": 64}]
    else:
        mapping["features"] = [{"kind": "scalogram", "size": 64}]
    mapping["context"] = {"over": "frames", "width": 64, "hop": 64}
    mapping["train"] = {"epochs": 40, "pretrain": 20} if stage1 == "deep_svdd" else {"epochs": 40}
    return recipe.parse(mapping)


def staged(
    how: Recipe,
    out: Path,
    *,
    table: Table | None = None,
    method: str = "mad",
    folds: int = 2,
    epochs: int = EPOCHS,
    truths: Mapping[str, Truth] | Sequence[Span] | None = None,
    progress: Progress | None = None,
) -> Staged:
    """All three stages: writes the bundles `out` and, beside it, `out`-stage1.

    how    : a recipe of stage 1, `deep_svdd` or `vae`; its training settings hold for the classifier too, but for
             the number of `epochs`
    table  : its features, where they were computed before; their labels are dropped
    folds  : 2 or more: every record is scored by a network that has not seen it; 1: by the one that has
    truths : what a person knows of few recordings, by file name, or of few times
    Raises RecordingError where a group remains empty; the bundle of stage 1 is kept then.
    """
    _check(how, method, folds)
    table = unlabelled(how) if table is None else anonymous(table)
    if len(table) < 2 or not np.ptp(table.vectors, axis=0).any():
        raise RecordingError(
            f"{how.origin}: all {counted(len(table), 'window')} of {counted(len(table.clips), 'recording')} are equal; "
            "expected recordings that differ: check that the sensor is not stuck"
        )
    alone = replace(how, name=f"{how.name}-stage1", split=replace(how.split, anomalies=0))
    first = run.run(alone, out.with_name(f"{out.name}-stage1"), table=table, progress=progress)
    scores = held_out_scores(alone, table, folds, progress) if folds > 1 else score_table(first.bundle, table)
    try:
        limit = limits(scores, method)
        groups, real = deal(scores, limit, known(table, truths or {}))
        enough(groups, scores, limit)
    except ValueError as error:
        raise RecordingError(f"{how.origin}: {error}; stage 1 is kept in {first.bundle.path}") from error
    chosen = classifier_recipe(how, epochs)
    relabelled, weights = labelled(table, groups, real)
    chosen = replace(
        chosen, split=replace(chosen.split, anomalies=sum(not c.healthy for c in relabelled.clips))
    )
    begin = None
    if how.model == "deep_svdd":
        begin = start(chosen, first)
    last = run.run(chosen, out, table=relabelled, progress=progress, start=begin, weights=weights)
    return Staged(first, last, table, scores, limit, groups, real)


def _check(how: Recipe, method: str, folds: int) -> None:
    problems = []
    if how.model not in STAGE_1:
        problems.append(Problem("model", repr(how.model), f"one of {', '.join(STAGE_1)}, for stage 1"))
    if how.network.get("encoder", "residual") != "residual":
        problems.append(
            Problem("network.encoder", repr(how.network["encoder"]), "residual, as the classifier has")
        )
    if how.context.over != "frames":
        problems.append(
            Problem("context.over", repr(how.context.over), "frames: a record is labelled by itself")
        )
    if method not in METHODS:
        problems.append(Problem("--method", repr(method), f"one of {', '.join(METHODS)}"))
    if not 1 <= folds <= 10:
        problems.append(Problem("--folds", repr(folds), "1 to 10"))
    if problems:
        raise ConfigError(how.origin, problems)


# ---------------------------------------------------------------------------------- records without labels


def unlabelled(how: Recipe) -> Table:
    """The recipe's features, no name of which says anything: neither as a label, nor as a machine, nor by its order."""
    found = [pair for source in how.data for pair in data.recordings(replace(source, labels=False))]
    found.sort(key=lambda pair: _place(pair[0]))
    return data.table(how, [(recording, Clip(clip.name, None, None)) for recording, clip in found])


def anonymous(table: Table) -> Table:
    """The same without labels and machine ids."""
    return replace(table, clips=tuple(Clip(c.name, None, None) for c in table.clips))


def _place(recording: Any) -> tuple[float, str]:
    """Where a recording stands among others: its time, then what is in it."""
    digest, begin = hashlib.sha256(), None
    for chunk in recording.chunks():
        begin = chunk.t if begin is None else begin
        digest.update(np.ascontiguousarray(chunk.samples).tobytes())
    return begin or 0.0, digest.hexdigest()


def known(table: Table, truths: Mapping[str, Truth] | Sequence[Span]) -> Any:
    """(n,) NORMAL or ANOMALOUS where a person has labelled the recording, or the time of the whole window, else UNCERTAIN.

    Raises ValueError where a label belongs to no recording.
    """
    out = np.full(len(table), UNCERTAIN, np.int8)
    if not isinstance(truths, Mapping):
        return _known_times(table, truths, out)
    names = [Path(c.name).name for c in table.clips]
    if missing := sorted(set(truths) - set(names)):
        raise ValueError(
            f"label of {missing[0]!r}, which is not among the recordings; found {', '.join(names[:5])}"
        )
    end = table.start + table.spec.n_samples / table.spec.fs_hz
    for i, name in enumerate(names):
        truth, own = truths.get(name), table.recording == i
        if truth is not None and truth.onset is not None:
            out[own] = np.where(end[own] > truth.onset, ANOMALOUS, NORMAL)
        elif truth is not None and truth.label is not None:
            out[own] = ANOMALOUS if truth.label == "anomaly" else NORMAL
    return out


def _known_times(table: Table, spans: Sequence[Span], out: Any) -> Any:
    if len(sensors := sorted({span.sensor for span in spans})) > 1:
        raise ValueError(f"labels of {', '.join(sensors)}; expected those of one sensor: edge-agent export --labels --sensor ID")
    end = table.start + table.spec.n_samples / table.spec.fs_hz
    for span in spans:
        # Times in the export are rounded to milliseconds.
        out[(table.start >= span.start - 1e-3) & (end <= span.end + 1e-3)] = ANOMALOUS if span.label == "anomaly" else NORMAL
    if len(spans) and not (out != UNCERTAIN).any():
        raise ValueError(f"none of the {len(spans)} labelled times holds a window; expected recordings of {sensors[0]} at these times")
    return out


# ------------------------------------------------------------------------------------- stage 1: scores


def held_out_scores(how: Recipe, table: Table, folds: int, progress: Progress | None = None) -> F64:
    """(n,) score of every window by a network trained on the other folds, as multiples of its fold's median.

    Networks of two folds put their scores on scales of their own; with the median at 1 they can be laid together.
    Windows at the limit of two stretches may share samples where the hop is shorter than a window.
    """
    fold = folds_of(len(table), folds)
    declared = architectures.defaults(how.model)
    scores = np.zeros(len(table))
    for k in range(folds):
        theirs, own = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        constants = value_range if declared.input == "range" else standardisation
        offset, scale = constants(table.vectors[theirs])
        features = FeatureSet(replace(table.spec, context=how.context, offset=offset, scale=scale))
        vectors = features.standardise(table.vectors)
        x = np.concatenate([features.patches(vectors[i]) for i in theirs])
        nothing = np.zeros(0, np.int32)
        # No patience: a network for pseudo-labels stops where the recipe says, whatever a few faults among the held-out
        # patches would make of its validation loss.
        trained = fit.train(
            replace(how, train=replace(how.train, seed=how.train.seed + 1 + k, overlap=1)),
            Data(x, np.zeros(len(x), np.int32), x[:0], nothing, x[:0]),
            progress,
        )
        s = _scores(how, features, vectors[own], trained.network, trained.arrays)
        median = float(np.median(s))
        if not (np.isfinite(s).all() and median > 0.0):
            raise RecordingError(
                f"{how.origin}: stage 1 scores {len(s)} windows with a median of {median:g}; expected finite scores above 0: "
                "the recordings do not differ, or train.learning_rate is too high"
            )
        scores[own] = s / median
    return scores


def folds_of(n: int, folds: int) -> Any:
    """(n,) fold of each window: `STRETCHES` stretches a fold, dealt in turn."""
    return np.arange(n) * (folds * STRETCHES) // max(n, 1) % folds


def _scores(how: Recipe, features: FeatureSet, vectors: F32, network: Any, arrays: Mapping[str, F32]) -> F64:
    """Score of each window by a Keras network, (n,)."""
    rule = scoring.build(how.score, arrays)
    x = np.stack([features.patches(v) for v in vectors])
    flat = fit.predict(network, x.reshape(-1, *network.input_shape[1:]))
    out = [o.reshape(len(x), features.n_patches, *o.shape[1:]) for o in flat]
    return np.array([rule(x[i], [o[i] for o in out]).value for i in range(len(x))], np.float64)


# ------------------------------------------------------------------------------ stage 2: pseudo-labels


def limits(scores: F64, method: str = "mad") -> Limits:
    """The two limits of S3 on scores (n,); ValueError where they cannot be told apart.

    percentile : 5 % and 99 %;  mad : median - 2 · 1.4826 · MAD and median + 4 · 1.4826 · MAD
    pot        : the median, as S3 names none, and the level that one in 1000 exceeds, by a generalised Pareto above
                 the 90th percentile
    [0, 1, 2, 3, 4] by mad gives 2 + 5.93 = 7.93, and the median 2, as no score lies below 2 - 2.97.
    """
    if len(scores) < 2 or not np.isfinite(scores).all() or np.ptp(scores) <= 1e-9 * np.abs(scores).max():
        raise ValueError(
            f"all {len(scores)} scores of stage 1 are equal, or one is not finite; no limit can be set"
        )
    note = ""
    low, high = (float(q) for q in np.percentile(scores, PERCENTILES))
    if method == "mad":
        median = float(np.median(scores))
        sigma = MAD_SCALE * float(np.median(np.abs(scores - median)))
        if not sigma > 0.0:
            raise ValueError(
                f"half of the {len(scores)} scores equal {median:g}: their MAD is 0; use method percentile"
            )
        low, high = median - MAD_BELOW * sigma, median + MAD_ABOVE * sigma
        if (share := float((scores < low).mean())) < MIN_NORMAL_SHARE:
            note = f"{share:.1%} of the windows lie below the MAD's lower limit {low:.4g}: the median {median:.4g} is taken"
            low = median
    elif method == "pot":
        low, high = float(np.median(scores)), thresholds.fit(scores, "pot", POT_RATE).value
    elif method != "percentile":
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    return Limits(low, high, method, note)


def deal(scores: F64, limit: Limits, truth: Any) -> tuple[Any, Any]:
    """((n,) group of each window, (n,) whether `truth` decided it)."""
    groups = np.full(len(scores), UNCERTAIN, np.int8)
    groups[scores < limit.low] = NORMAL
    groups[scores > limit.high] = ANOMALOUS
    real = truth != UNCERTAIN
    groups[real] = truth[real]
    return groups, real


def enough(groups: Any, scores: F64, limit: Limits) -> None:
    """ValueError, with the figures, where there is no anomalous or no normal window."""
    n = len(groups)
    if not (groups == ANOMALOUS).any():
        raise ValueError(
            f"no pseudo-anomaly among {n} windows: the highest score {scores.max():.4g} is below the {limit.method} limit "
            f"{limit.high:.4g}; nothing to learn a classifier from: use the bundle of stage 1, another method, or label some"
        )
    if not (groups == NORMAL).any():
        raise ValueError(
            f"no pseudo-normal window among {n}: the lowest score {scores.min():.4g} is above the {limit.method} limit "
            f"{limit.low:.4g}; use another method, or label some"
        )


# ------------------------------------------------------------------------------- stage 3: the classifier


def classifier_recipe(how: Recipe, epochs: int = EPOCHS) -> Recipe:
    """Stage 3's recipe, from that of stage 1.

    The encoder of `deep_svdd` is taken over; a VAE's ends otherwise, so the classifier trains one of its own on the
    pseudo-normal records.
    """
    options = {"pretrain": 0, "one_class": 0} if how.model == "deep_svdd" else {}
    network = {key: value for key, value in how.network.items() if key in _ENCODER}
    training = replace(
        how.train, epochs=epochs, weight_decay=how.train.weight_decay or WEIGHT_DECAY, options=options
    )
    return replace(how, model="classifier", network=network, train=training, score=ScoreRule("log_odds"))


def labelled(table: Table, groups: Any, real: Any) -> tuple[Table, F32]:
    """The table with the groups as labels, and (n,) what each window counts: uncertain ones nothing.

    A recording with windows of both groups becomes two, one of each; they stay in the order of time.
    """
    numbers, own = np.unique(2 * table.recording + (groups == ANOMALOUS), return_inverse=True)
    clips = tuple(
        Clip(table.clips[number // 2].name, "anomaly" if number % 2 else "normal", None) for number in numbers
    )
    weights = np.where(groups == UNCERTAIN, 0.0, np.where(real, REAL_WEIGHT, PSEUDO_WEIGHT))
    return replace(table, recording=own, clips=clips), weights.astype(np.float32)


def start(chosen: Recipe, first: FitResult) -> list[F32]:
    """The classifier's weights with the encoder of stage 1, the head still at random."""
    import keras

    from trainer.architectures import classifier

    keras.utils.set_random_seed(chosen.train.seed)
    shape = first.network.input_shape[1:]
    network = architectures.build("classifier", (shape[0], shape[1]), 1, chosen.network)
    return classifier.with_encoder(network, first.network.get_weights())
