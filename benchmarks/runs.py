"""Run to failure, offline: NASA IMS test 2 (four bearings) and FEMTO / PRONOSTIA 1_1, by the agent's own alarm engine.

    first snapshots train │ the next calibrate │ all are scored in order ─► vote 3 of 5 ─► first event, false events

`make ims` does the same for the LSTM through a broker and the real agent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _cells, ims
from benchmarks.bounds import IMS
from edge_agent import thresholds
from edge_agent.alarms import AlarmPolicy
from edge_agent.features import FeatureSpec
from edge_agent.recordings import Ask, Recording, open_recordings, windows
from edge_agent.signals import F64
from trainer import baselines, data, recipe
from trainer.evaluate import events
from trainer.recipe import Recipe

MODELS = ("indicator", "lstm_ae", "deep_svdd", "svdd_vae")
RATE = 1e-4


@dataclass(frozen=True)
class Life:
    """One bearing's life: which snapshots train and calibrate, and before which one an event is false."""

    name: str
    file: str
    fs_hz: float
    n_samples: int
    channel: int
    train: tuple[int, int]
    calibrate: tuple[int, int]
    false_before: int


#: IMS: nothing of the fault exists before file 534; the neighbours hear it from about 650 on. FEMTO: nobody knows when its
#: fault began; an event in the first half of its life is counted as false.
LIVES = {
    **{
        b: Life(
            f"IMS {b}", "ims_set2.npz", 20000.0, 20480, i, (0, 150), (150, 200),
            IMS["mark"] if i == 0 else IMS["others_before"],
        )
        for i, b in enumerate(ims.BEARINGS)
    },
    "femto": Life("FEMTO 1_1", "femto_bearing1_1.npz", 25600.0, 2560, 0, (0, 300), (300, 500), 1401),
}  # fmt: skip

#: A picture that keeps the level: a growing fault is louder before it is different.
_IMAGE = {
    "features": [{"kind": "scalogram", "size": 64, "z_score": False, "normalise": "none", "log": True}],
    "context": {"over": "frames", "width": 64, "hop": 64},
    "network": {"base": 8},
    "train": {"epochs": 12, "pretrain": 10, "batch": 16, "patience": 0, "validation": 0},
}
PLANS: dict[str, dict[str, Any]] = {
    "indicator": {"features": [{"kind": "time_domain", "names": ["rms"]}], "score": {"kind": "indicator", "feature": "rms"}},
    "lstm_ae": {
        "features": [
            {"kind": "time_domain", "names": ["rms", "kurtosis"], "log": ["rms"]},
            {"kind": "spectral", "mode": "bands", "n_bands": 5},
        ],
        "context": {"over": "windows", "width": 8},
        "train": {"epochs": 100, "batch": 16, "learning_rate": 3e-3, "patience": 0, "validation": 0},
    },
    "deep_svdd": _IMAGE,
    "svdd_vae": _IMAGE,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """first, first_float : number of the snapshot of the first event, by the file as shipped and by the float32 one;
    false : events before the fault could be heard; hours : from the first event to the end"""

    life: str
    model: str
    first: int | None
    false: int
    hours: float | None
    first_float: int | None = None
    quantization: str | None = None
    kb: float | None = None
    ms: float | None = None


def plan(model: str, life: Life, seed: int = 0) -> Recipe:
    """The recipe of one network; on IMS the LSTM's is the committed one."""
    if model == "lstm_ae" and life.file.startswith("ims"):
        committed = recipe.load(recipe.RECIPES / "bearing-lstm-ae.yaml")
        return replace(committed, data=(), train=replace(committed.train, seed=seed))
    raw: dict[str, Any] = {
        "name": f"life-{model.replace('_', '-')}",
        "model": model,
        "data": {"simulate": "demo"},
        "window": {"n_samples": life.n_samples},
        "split": {"by": "time", "train": list(life.train), "calibrate": list(life.calibrate)},
        "threshold": {"method": "gamma", "false_alarm_rate": RATE},
    } | PLANS[model]
    if model == "indicator":
        # Nothing is trained, so all these snapshots calibrate, and peaks over threshold has enough of them.
        raw["split"] = {"by": "time", "train": [0, 1], "calibrate": [1, life.calibrate[1]]}
        raw["threshold"] = {"method": "pot", "false_alarm_rate": 1e-3}
    else:
        raw["train"] = {"seed": seed, **raw["train"]}
    return recipe.parse(raw)


def recording(folder: Path, life: Life) -> Recording:
    """The life as one recording of snapshots."""
    (found,) = open_recordings(folder / life.file, Ask(life.fs_hz, (life.channel,)))
    return found


def cell(folder: Path, key: str, model: str, seed: int = 0) -> Line:
    """One network on one life."""
    life = LIVES[key]
    how = plan(model, life, seed)
    found = recording(folder, life)
    table = data.table(how, [(found, data.Clip(life.name, None, None))])

    def work(out: Path) -> Line:
        made, _ = _cells.fitted(how, table, out)
        every = np.arange(len(table))
        ends = table.start + life.n_samples / life.fs_hz
        shipped, reference = (
            _raised(_cells.scores(judge, table, every) / made.bundle.threshold.value, ends)
            for judge in (made.bundle.judge, made.float_judge)
        )
        return replace(
            _line(life, model, shipped, ends),
            first_float=reference[0] if reference else None,
            quantization=made.manifest.quantization.type,
            kb=_cells.size_kb(made.bundle),
            ms=_cells.ms_a_window(made.bundle.judge, table),
        )

    return _cells.in_folder(work)  # type: ignore[no-any-return]


def plain(folder: Path, key: str) -> list[Line]:
    """The baselines: fitted to the training snapshots, their limit a gamma fit to the calibration ones."""
    life = LIVES[key]
    spec = FeatureSpec(life.fs_hz, life.n_samples, life.n_samples, 1, ())
    cut = list(windows(recording(folder, life), life.n_samples, life.n_samples))
    ends = np.array([w.end for w in cut])
    lines = []
    for name in baselines.NAMES:
        features = baselines.features_of(name, spec)
        vectors = np.concatenate([baselines.describe(features, w.samples[np.newaxis]) for w in cut])
        known = (baselines.Neighbours if name == "mean_spectrum_knn" else baselines.Mahalanobis).fit(
            vectors[slice(*life.train)]
        )
        scores = known.score(vectors)
        limit = thresholds.fit(scores[slice(*life.calibrate)], "gamma", RATE).value
        lines.append(_line(life, name, _raised(scores / limit, ends), ends))
    return lines


def _raised(ratios: F64, ends: Iterable[float]) -> list[int]:
    """Snapshots at which the agent would raise an event; those without a score (a history fills) do not vote."""
    known = np.flatnonzero(np.isfinite(ratios))
    at = np.asarray(list(ends))[known]
    return [int(known[i]) for i in events(ratios[known], at, AlarmPolicy())]


def _line(life: Life, model: str, raised: list[int], ends: F64) -> Line:
    first = raised[0] if raised else None
    hours = None if first is None else float((ends[-1] - ends[first]) / 3600.0)
    return Line(life.name, model, first, sum(i < life.false_before for i in raised), hours)

