"""How good a bundle is, by the TFLite file as shipped and the agent's own alarm engine.

recordings ─► Judge (features, TFLite, score) ─► AUC, pAUC        anomalous windows against normal ones
                                             └─► alarms.step ─►  false alarms per day, detection delay
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from edge_agent import alarms
from edge_agent import bundle as bundles
from edge_agent.alarms import Alarm, AlarmPolicy
from edge_agent.bundle import Bundle
from edge_agent.errors import RecordingError
from edge_agent.offline import score_recording
from edge_agent.recordings import Recording
from edge_agent.signals import F64, parse_time, rfc3339
from trainer.data import Clip, Table
from trainer.splits import sequences

#: Upper end of the false-positive rates that pAUC looks at (DCASE).
PAUC_LIMIT = 0.1


def auc(scores: F64, anomalous: Any) -> float:
    """Probability that an anomalous score exceeds a normal one, ties counting one half; NaN without both.

    The Mann-Whitney statistic: [1, 2, 3] with the 3 anomalous gives 1.0.
    """
    anomalous = np.asarray(anomalous, bool)
    n1, n0 = int(anomalous.sum()), int((~anomalous).sum())
    if not n1 or not n0:
        return float("nan")
    return float((rankdata(scores)[anomalous].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def pauc(scores: F64, anomalous: Any, limit: float = PAUC_LIMIT) -> float:
    """Area under the ROC curve over false-positive rates [0, limit], divided by `limit` (DCASE).

    0.05 for a score that knows nothing at limit 0.1 (not 0.5: this is not McClish's standardisation), 1 for
    a perfect one; NaN without both kinds. The curve is linear between its points, as in `auc`.
    """
    anomalous = np.asarray(anomalous, bool)
    n1, n0 = int(anomalous.sum()), int((~anomalous).sum())
    if not n1 or not n0:
        return float("nan")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ordered, hits = np.asarray(scores, np.float64)[order], anomalous[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    tpr = np.append(0.0, np.cumsum(hits)[last] / n1)
    fpr = np.append(0.0, np.cumsum(~hits)[last] / n0)
    # The lower end of a vertical step that stands exactly on the limit.
    i = int(np.searchsorted(fpr, limit))
    slope = (tpr[i] - tpr[i - 1]) / (fpr[i] - fpr[i - 1])
    x = np.append(fpr[:i], limit)
    y = np.append(tpr[:i], tpr[i - 1] + slope * (limit - fpr[i - 1]))
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / limit)


@dataclass(frozen=True)
class Truth:
    """What is known of one recording: its label, and the time (s) from which it is anomalous, if it turns."""

    label: str | None
    onset: float | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of one recording in order; `end` in s, `ratio` = score / limit."""

    clip: Clip
    score: F64
    ratio: F64
    end: F64


def read_labels(path: Path) -> dict[str, Truth]:
    """A CSV with the columns `file` and `label` (normal, anomaly) and, optionally, `onset`.

    `onset` is the time from which the recording is anomalous: RFC 3339, or seconds. `file` is the recording's
    name, with or without folders. Raises RecordingError with the line.
    """
    truths = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            where = f"{path}:{number}"
            name, label = (row.get("file") or "").strip(), (row.get("label") or "").strip() or None
            if not name or label not in (None, "normal", "anomaly"):
                raise RecordingError(
                    f"{where}: file {name!r}, label {label!r}; expected columns file,label[,onset] with label "
                    "normal or anomaly"
                )
            onset = (row.get("onset") or "").strip()
            try:
                seconds = None if not onset else float(onset) if _is_number(onset) else parse_time(onset)
            except ValueError as error:
                raise RecordingError(f"{where}: onset: {error}") from error
            truths[Path(name).name] = Truth(label, seconds)
    return truths


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def score_recordings(bundle: Bundle, found: Iterable[tuple[Recording, Clip]]) -> list[Scored]:
    """Every recording through the agent's own pipeline; each begins with an empty history.

    Raises RecordingError for a recording of another sampling rate or number of channels than the bundle's.
    """
    out = []
    fs_hz = bundle.manifest.features.fs_hz
    for recording, clip in found:
        if not math.isclose(recording.fs_hz, fs_hz, rel_tol=1e-3):
            raise RecordingError(
                f"{recording.path}: was sampled at {recording.fs_hz:g} Hz; expected {fs_hz:g} Hz, the rate "
                f"{bundle.path} was trained for: resample the recording, or train a bundle for its rate"
            )
        rows = [m for m in score_recording(bundle, recording) if m.score is not None and m.ratio is not None]
        out.append(
            Scored(
                clip,
                np.array([m.score for m in rows], np.float64),
                np.array([m.ratio for m in rows], np.float64),
                np.array([m.end for m in rows], np.float64),
            )
        )
    return out


def score_table(bundle: Bundle, table: Table) -> F64:
    """(n,) score of every window of a feature table, NaN while a history fills: for cross-validation, where
    the features of a recording are used many times."""
    judge = bundle.judge
    vectors = judge.features.standardise(table.vectors)
    context = judge.features.spec.context
    scores = np.full(len(table), np.nan)
    if context.over == "frames":
        for i, v in enumerate(vectors):
            scores[i] = judge.score(v).value
        return scores
    for history in sequences(table, np.arange(len(table)), context):
        scores[history[-1]] = judge.score(vectors[history, 0]).value
    return scores


def score_labelled(
    path: Path, found: Iterable[tuple[Recording, Clip]], labels: Mapping[str, Truth] | None = None
) -> dict[str, list[Scored]]:
    """Machine -> its recordings, scored; one entry "" for bundles that know no machines.

    A recording is scored by its own machine's log-odds and limit where the bundle is of that kind.
    """
    bundle = bundles.load(path)
    classes = bundle.manifest.classes
    groups: dict[str, list[tuple[Recording, Clip]]] = {}
    for recording, clip in found:
        machine = _machine(classes, clip, path) if classes else ""
        groups.setdefault(machine, []).append((recording, _labelled(clip, labels)))
    return {
        machine: score_recordings(bundles.load(path, machine, golden=False) if machine else bundle, members)
        for machine, members in sorted(groups.items())
    }


def events(ratios: Iterable[float], ends: Iterable[float], policy: AlarmPolicy) -> list[int]:
    """Numbers of the windows at which the agent would raise a new alarm."""
    alarm, raised = Alarm(), []
    for i, (ratio, t) in enumerate(zip(ratios, ends, strict=True)):
        alarm, transition = alarms.step(alarm, policy, float(ratio), float(t), "evaluate")
        if transition is not None and transition.type == "new":
            raised.append(i)
    return raised


def evaluate(
    path: Path,
    found: Iterable[tuple[Recording, Clip]],
    *,
    labels: Mapping[str, Truth] | None = None,
    policy: AlarmPolicy = AlarmPolicy(),
) -> dict[str, Any]:
    """The figures of a bundle on labelled recordings, as one JSON object.

    For a log_odds bundle each recording is judged as its own machine, and there is a row per machine.
    """
    manifest = bundles.read_manifest(path)
    groups = score_labelled(path, found, labels)
    every = [scored for members in groups.values() for scored in members]
    hop_s = manifest.features.hop_samples / manifest.features.fs_hz
    rows = [
        {"machine": machine, **figures(members, hop_s, labels, policy)}
        for machine, members in groups.items()
        if machine
    ]
    result: dict[str, Any] = {
        "bundle": manifest.name,
        "version": manifest.version,
        "model": manifest.model,
        "quantization": manifest.quantization.type,
        "recordings": len(every),
        "unlabelled": sum(not _known(_truth(s, labels)) for s in every),
    }
    result |= figures(every, hop_s, labels, policy)
    if rows:
        result["machines"] = rows
        for key in ("auc", "pauc"):
            known = [row[key] for row in rows if row[key] is not None]
            result[f"mean_{key}"] = round(float(np.mean(known)), 4) if known else None
    return result


def figures(
    scored: list[Scored],
    hop_s: float,
    labels: Mapping[str, Truth] | None,
    policy: AlarmPolicy,
) -> dict[str, Any]:
    """AUC, pAUC and alarm figures of some recordings; None where the labels do not allow a figure.

    Recordings without an onset are one sequence in their order, normal ones first; where one turns (onset),
    it is a sequence of its own. Recordings of which nothing is known count as windows and nowhere else.
    """
    n_windows = sum(len(s.end) for s in scored)
    scored = [s for s in scored if _known(_truth(s, labels))]
    truths = [_truth(s, labels) for s in scored]
    flags = [
        np.full(len(s.end), t.label == "anomaly") if t.onset is None else s.end > t.onset
        for s, t in zip(scored, truths, strict=True)
    ]
    scores = np.concatenate([s.ratio for s in scored] or [np.zeros(0)])
    anomalous = np.concatenate(flags or [np.zeros(0, bool)])
    normal = [s.ratio[~f] for s, f in zip(scored, flags, strict=True)]
    n_normal = sum(len(r) for r in normal)
    every_s = [_every_s(s, hop_s) for s in scored]
    days = sum(len(r) * e for r, e in zip(normal, every_s, strict=True)) / 86400.0
    crossings = sum(int((r >= policy.warning_ratio).sum()) for r in normal)
    false_events = 0
    delays: list[dict[str, Any]] = []
    together = [
        (s, f, e) for s, f, e, t in zip(scored, flags, every_s, truths, strict=True) if t.onset is None
    ]
    runs: list[tuple[Any, Any, Any, float | None]] = [
        (s.ratio, s.end, f, t.onset)
        for s, f, t in zip(scored, flags, truths, strict=True)
        if t.onset is not None
    ]
    if together:
        together.sort(key=lambda pair: bool(pair[1].any()))
        ratio = np.concatenate([s.ratio for s, _, _ in together])
        flag = np.concatenate([f for _, f, _ in together])
        # Separate files have no common clock: windows follow each other at their own pace.
        ends = np.cumsum(np.concatenate([np.full(len(s.end), e) for s, _, e in together]))
        runs.append((ratio, ends, flag, None))
    for ratio, ends, flag, onset in runs:
        raised = events(ratio, ends, policy)
        false_events += sum(not flag[i] for i in raised)
        if flag.any():
            hit = next((i for i in raised if flag[i]), None)
            begin = onset if onset is not None else float(ends[int(np.argmax(flag))]) - hop_s
            delays.append({"found": hit is not None, "onset": None if onset is None else rfc3339(onset), "delay_s": None if hit is None else round(float(ends[hit]) - begin, 3),
                           "event": None if hit is None else rfc3339(float(ends[hit]))})  # fmt: skip
    return {
        "windows": n_windows,
        "normal_windows": n_normal,
        "anomalous_windows": int(sum(f.sum() for f in flags)),
        "auc": _rounded(auc(scores, anomalous)),
        "pauc": _rounded(pauc(scores, anomalous)),
        "crossings": crossings,
        "crossings_per_day": round(crossings / days, 2) if days else None,
        "false_alarms": false_events,
        "false_alarms_per_day": round(false_events / days, 2) if days else None,
        "detections": delays,
    }


def _every_s(scored: Scored, hop_s: float) -> float:
    """Time from window to window: the median of the recording's own, so that a snapshot every ten minutes
    stands for ten minutes; the hop where the recording has one window."""
    return float(np.median(np.diff(scored.end))) if len(scored.end) > 1 else hop_s


def _labelled(clip: Clip, labels: Mapping[str, Truth] | None) -> Clip:
    truth = (labels or {}).get(Path(clip.name).name)
    return clip if truth is None else Clip(clip.name, truth.label or clip.label, clip.machine)


def _truth(scored: Scored, labels: Mapping[str, Truth] | None) -> Truth:
    return (labels or {}).get(Path(scored.clip.name).name, Truth(scored.clip.label))


def _known(truth: Truth) -> bool:
    return truth.label is not None or truth.onset is not None


def _machine(classes: tuple[str, ...], clip: Clip, path: Path) -> str:
    if clip.machine not in classes:
        raise RecordingError(
            f"{clip.name}: machine {clip.machine!r} is not among the classes of {path}: {', '.join(classes)}; expected "
            "the id in the file's name or folder, or name it with --machine"
        )
    return clip.machine


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)
