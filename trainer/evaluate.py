"""How good a bundle is, by the TFLite file as shipped and the agent's own alarm engine.

recordings ─► Judge (features, TFLite, score) ─► AUC, pAUC        anomalous windows against normal ones
                │                            └─► episodes    ─►  false alarms per day, detection delay
                └─► baselines without training ─► AUC, pAUC       beside, on the same windows
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import bundle as bundles
from edge_agent import episodes
from edge_agent.alarms import AlarmPolicy
from edge_agent.bundle import Bundle
from edge_agent.errors import RecordingError
from edge_agent.offline import score_recording
from edge_agent.recordings import Recording
from edge_agent.signals import F64, rfc3339
from trainer import baselines
from trainer.baselines import Describer
from trainer.data import Clip, Table
from trainer.labels import Labels, Place, Truth, is_training, places, read_labels, said, truth
from trainer.metrics import PAUC_LIMIT, auc, means, pauc, rounded
from trainer.splits import sequences

__all__ = [
    "PAUC_LIMIT", "Judged", "Scored", "Truth", "auc", "evaluate", "events", "figures", "pauc", "read_labels",
    "score_labelled", "score_recordings", "score_table", "summary",
]  # fmt: skip

#: A recording and what is known of it.
Found = tuple[Recording, Clip]


@dataclass(frozen=True)
class Scored:
    """The scores of one recording in order; `end` in s, `ratio` = score / limit.

    place : the rows of the table that it belongs to; beside : baseline -> its distance of the same windows
    onset : time (s) from which it is anomalous, where it turns
    """

    clip: Clip
    score: F64
    ratio: F64
    end: F64
    place: Place = field(default_factory=dict)
    beside: Mapping[str, F64] = field(default_factory=dict)
    recording: Recording | None = None
    onset: float | None = None

    @property
    def anomalous(self) -> Any:
        """(n,) bool: windows that are anomalous by label or onset."""
        return np.full(len(self.end), not self.clip.healthy) if self.onset is None else self.end > self.onset


@dataclass(frozen=True)
class Judged:
    """Machine -> its recordings, scored; one entry "" for bundles that know no machines.

    left_out : recordings that were given and not judged, because they are there to learn from
    """

    machines: Mapping[str, list[Scored]]
    left_out: int = 0

    @property
    def every(self) -> list[Scored]:
        """All recordings, machine by machine."""
        return [scored for members in self.machines.values() for scored in members]


def score_recordings(bundle: Bundle, found: Iterable[Found]) -> list[Scored]:
    """Every recording through the agent's own pipeline; each begins with an empty history.

    Raises RecordingError for a recording of another sampling rate or number of channels than the bundle's.
    """
    out = []
    for recording, clip in found:
        _check_rate(bundle, recording)
        rows = [m for m in score_recording(bundle, recording) if m.score is not None and m.ratio is not None]
        score, ratio, end = (
            np.array([getattr(m, name) for m in rows], np.float64) for name in ("score", "ratio", "end")
        )
        out.append(Scored(clip, score, ratio, end, recording=recording))
    return out


def _check_rate(bundle: Bundle, recording: Recording) -> None:
    fs_hz = bundle.manifest.features.fs_hz
    if not math.isclose(recording.fs_hz, fs_hz, rel_tol=1e-3):
        raise RecordingError(
            f"{recording.path}: was sampled at {recording.fs_hz:g} Hz; expected {fs_hz:g} Hz, the rate "
            f"{bundle.path} was trained for: resample the recording, or train a bundle for its rate"
        )


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
    path: Path,
    found: Iterable[Found],
    labels: Labels | None = None,
    healthy: Iterable[Found] | None = None,
) -> Judged:
    """Recordings scored by the bundle in `path` and, where healthy ones are given, by the baselines beside.

    A recording is scored by its own machine's rule and limit where the bundle is of that kind, and the baselines then
    know the machine too. Recordings in a folder `train` beside others, and those the baselines learn from, are not
    judged: what was learnt from says nothing about the next.
    """
    bundle = bundles.load(path)
    classes = bundle.manifest.classes
    given = list(found)
    reference = None if healthy is None else _learnable(healthy)
    learnt = {_identity(recording) for recording, _ in reference or ()}
    judged = [pair for pair in given if _identity(pair[0]) not in learnt]
    if any(not is_training(recording.path) for recording, _ in judged):
        judged = [pair for pair in judged if not is_training(pair[0].path)]
    if given and not judged:
        raise RecordingError(
            f"all {len(given)} recordings of the data are among those the baselines learn from; expected others to judge: "
            "keep the healthy recordings for --baselines in a folder of their own"
        )
    truths = [truth(clip, labels) for _, clip in judged]
    if labels and judged and not any(said(clip, labels) for _, clip in judged):
        raise RecordingError(
            f"the labels name {next(iter(labels))!r} and {len(labels) - 1} others, none of which is among the recordings to "
            f"judge; expected in the column `file` names such as {judged[0][1].name!r}"
        )
    where = places([recording.path for recording, _ in judged], truths)
    groups: dict[str, list[int]] = {}
    for i, (_, clip) in enumerate(judged):
        groups.setdefault(_machine(classes, clip, path) if classes else "", []).append(i)
    machines = {}
    for machine, members in sorted(groups.items()):
        own = bundles.load(path, machine, golden=False) if machine else bundle
        pairs = [(judged[i][0], replace(judged[i][1], label=truths[i].label)) for i in members]
        scored = [
            replace(s, place=where[i], onset=truths[i].onset)
            for i, s in zip(members, score_recordings(own, pairs), strict=True)
        ]
        machines[machine] = scored if reference is None else _compared(own, scored, reference, machine)
    return Judged(machines, len(given) - len(judged))


def _identity(recording: Recording) -> tuple[Path, str]:
    return recording.path.absolute(), recording.name


def _learnable(healthy: Iterable[Found]) -> list[Found]:
    """The recordings that nothing calls anomalous; only those to train on where a folder says which these are."""
    good = [(recording, clip) for recording, clip in healthy if clip.healthy]
    return [pair for pair in good if is_training(pair[0].path)] or good


def _compared(bundle: Bundle, scored: list[Scored], healthy: Sequence[Found], machine: str) -> list[Scored]:
    """The same with the baselines' distances of the windows that the bundle scored."""
    own = [recording for recording, clip in healthy if not machine or clip.machine == machine]
    if not own:
        raise RecordingError(
            f"the healthy recordings for the baselines hold none of {machine}; expected some of every machine to judge"
        )
    for recording in own:
        _check_rate(bundle, recording)
    describe = Describer.of(bundle.manifest.features)
    distances = describe.fit(own)
    out = []
    for s in scored:
        assert s.recording is not None  # score_recordings sets it
        described = describe(s.recording)
        # The same windows end at the same time to the bit; a history's first ones have no score.
        use = np.isin(described.end, s.end)
        beside = {name: d.score(described.vectors[name][use]) / d.typical for name, d in distances.items()}
        out.append(replace(s, beside=beside))
    return out


def events(ratios: Iterable[float], ends: Iterable[float], policy: AlarmPolicy) -> list[int]:
    """Numbers of the windows at which the agent would raise a new alarm."""
    return episodes.onsets(list(ratios), list(ends), policy)


def evaluate(
    path: Path,
    found: Iterable[Found],
    *,
    labels: Labels | None = None,
    policy: AlarmPolicy = AlarmPolicy(),
    healthy: Iterable[Found] | None = None,
) -> dict[str, Any]:
    """The figures of a bundle on labelled recordings, as one JSON object.

    healthy : recordings that the baselines learn from; without them there are no baselines
    """
    return summary(path, score_labelled(path, found, labels, healthy), labels, policy)


def summary(
    path: Path, judged: Judged, labels: Labels | None = None, policy: AlarmPolicy = AlarmPolicy()
) -> dict[str, Any]:
    """The JSON object of recordings that are scored already.

    Where the bundle tells machines apart there is a row per machine; where folders or labels say machine type, section
    and domain, or the conditions, a row per group and the means over the groups; where labels say when a fault
    began, an entry per run.
    """
    manifest = bundles.read_manifest(path)
    every = judged.every
    hop_s = manifest.features.hop_samples / manifest.features.fs_hz
    result: dict[str, Any] = {
        "bundle": manifest.name,
        "version": manifest.version,
        "model": manifest.model,
        "quantization": manifest.quantization.type,
        "recordings": len(every),
        "unlabelled": sum(not truth(s.clip, labels).known for s in every),
        "left_out": judged.left_out,
    }
    result |= figures(every, hop_s, labels, policy)
    rows = [
        {"machine": machine, **figures(members, hop_s, labels, policy)}
        for machine, members in judged.machines.items()
        if machine
    ]
    if rows:
        result["machines"] = rows
        for key in ("auc", "pauc"):
            result[f"mean_{key}"] = means(row[key] for row in rows)["arithmetic"]
    if groups := _grouped(every):
        result["groups"] = [
            {**place, "recordings": len(members), **figures(members, hop_s, labels, policy)}
            for place, members in groups
        ]
        result["means"] = _means(result["groups"])
    if runs := [
        _run(s, known.onset, policy) for s in every if (known := truth(s.clip, labels)).onset is not None
    ]:
        result["runs"] = runs
    return result


def _grouped(every: Sequence[Scored]) -> list[tuple[Place, list[Scored]]]:
    """(place, its recordings) in order; none where all recordings are of one and the same unnamed place."""
    groups: dict[tuple[tuple[str, str], ...], list[Scored]] = {}
    for scored in every:
        groups.setdefault(tuple(scored.place.items()), []).append(scored)
    if not any(groups):
        return []
    return [(dict(key) or {"condition": "other"}, members) for key, members in sorted(groups.items())]


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arithmetic and harmonic means over the rows that hold both kinds of windows: of all, and of each machine type."""
    out: dict[str, Any] = {"rows": sum(row["auc"] is not None for row in rows)}
    for key in ("auc", "pauc"):
        out[key] = means(row[key] for row in rows)
    if any("baselines" in row for row in rows):
        out["baselines"] = {
            name: {key: means(row["baselines"][name][key] for row in rows) for key in ("auc", "pauc")}
            for name in baselines.NAMES
        }
    types = sorted({row["machine_type"] for row in rows if "machine_type" in row})
    if len(types) > 1:
        out["machine_types"] = {t: _means([r for r in rows if r.get("machine_type") == t]) for t in types}
    return out


def _run(scored: Scored, onset: float | None, policy: AlarmPolicy) -> dict[str, Any]:
    """A run to failure: where its first event lies, and how many came before the fault."""
    raised = events(scored.ratio, scored.end, policy)
    first = raised[0] if raised else None
    event = None if first is None else float(scored.end[first])
    return {
        "recording": scored.clip.name,
        "windows": len(scored.end),
        "onset": None if onset is None else rfc3339(onset),
        "first_event": None if event is None else rfc3339(event),
        "first_event_window": first,
        "before_end_s": None if event is None else round(float(scored.end[-1]) - event, 3),
        "false_events": sum(onset is not None and bool(scored.end[i] <= onset) for i in raised),
    }


def figures(
    scored: list[Scored],
    hop_s: float,
    labels: Labels | None,
    policy: AlarmPolicy,
) -> dict[str, Any]:
    """AUC, pAUC and alarm figures of some recordings; None where the labels do not allow a figure.

    Recordings without an onset are one sequence in their order, normal ones first; where one turns (onset),
    it is a sequence of its own. Recordings of which nothing is known count as windows and nowhere else.
    `baselines` are there where the recordings were compared with healthy ones.
    """
    n_windows = sum(len(s.end) for s in scored)
    scored = [s for s in scored if truth(s.clip, labels).known]
    truths = [truth(s.clip, labels) for s in scored]
    flags = [
        np.full(len(s.end), t.label == "anomaly") if t.onset is None else s.end > t.onset
        for s, t in zip(scored, truths, strict=True)
    ]
    anomalous = np.concatenate(flags or [np.zeros(0, bool)])
    every_s = [_every_s(s, hop_s) for s in scored]
    normal = [s.ratio[~f] for s, f in zip(scored, flags, strict=True)]
    days = sum(len(r) * e for r, e in zip(normal, every_s, strict=True)) / 86400.0
    crossings = sum(int((r >= policy.warning_ratio).sum()) for r in normal)
    sequence_of = _sequences(scored, flags, every_s, truths)
    false_events = 0
    delays: list[dict[str, Any]] = []
    for ratio, ends, flag, onset in sequence_of:
        raised = events(ratio, ends, policy)
        false_events += sum(not flag[i] for i in raised)
        if flag.any():
            hit = next((i for i in raised if flag[i]), None)
            begin = onset if onset is not None else float(ends[int(np.argmax(flag))]) - hop_s
            delays.append(_detection(onset, begin, None if hit is None else float(ends[hit])))
    out: dict[str, Any] = {
        "windows": n_windows,
        "normal_windows": sum(len(r) for r in normal),
        "anomalous_windows": int(sum(f.sum() for f in flags)),
        **_areas([s.ratio for s in scored], anomalous),
        "crossings": crossings,
        "crossings_per_day": round(crossings / days, 2) if days else None,
        "false_alarms": false_events,
        "false_alarms_per_day": round(false_events / days, 2) if days else None,
        "detections": delays,
    }
    if any(s.beside for s in scored):
        out["baselines"] = {
            name: _areas([s.beside[name] for s in scored], anomalous) for name in baselines.NAMES
        }
    return out


def _areas(scores: Sequence[F64], anomalous: Any) -> dict[str, float | None]:
    joined = np.concatenate([*scores, np.zeros(0)])
    return {"auc": rounded(auc(joined, anomalous)), "pauc": rounded(pauc(joined, anomalous))}


def _sequences(
    scored: Sequence[Scored], flags: Sequence[Any], every_s: Sequence[float], truths: Sequence[Truth]
) -> list[tuple[Any, Any, Any, float | None]]:
    """(ratios, ends, flags, onset) of what the alarm engine sees as one stream each."""
    every = list(zip(scored, flags, every_s, truths, strict=True))
    runs: list[tuple[Any, Any, Any, float | None]] = [
        (s.ratio, s.end, f, t.onset) for s, f, _, t in every if t.onset is not None
    ]
    together = [(s, f, e) for s, f, e, t in every if t.onset is None]
    if together:
        together.sort(key=lambda pair: bool(pair[1].any()))
        ratio = np.concatenate([s.ratio for s, _, _ in together])
        flag = np.concatenate([f for _, f, _ in together])
        # Separate files have no common clock: windows follow each other at their own pace.
        ends = np.cumsum(np.concatenate([np.full(len(s.end), e) for s, _, e in together]))
        runs.append((ratio, ends, flag, None))
    return runs


def _detection(onset: float | None, begin: float, event: float | None) -> dict[str, Any]:
    return {
        "found": event is not None,
        "onset": None if onset is None else rfc3339(onset),
        "delay_s": None if event is None else round(event - begin, 3),
        "event": None if event is None else rfc3339(event),
    }


def _every_s(scored: Scored, hop_s: float) -> float:
    """Time from window to window: the median of the recording's own, so that a snapshot every ten minutes
    stands for ten minutes; the hop where the recording has one window."""
    return float(np.median(np.diff(scored.end))) if len(scored.end) > 1 else hop_s


def _machine(classes: tuple[str, ...], clip: Clip, path: Path) -> str:
    if clip.machine not in classes:
        raise RecordingError(
            f"{clip.name}: machine {clip.machine!r} is not among the classes of {path}: {', '.join(classes)}; expected "
            "the id in the file's name or folder, or name it with --machine"
        )
    return clip.machine
