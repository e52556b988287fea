"""Sound, a machine by itself: autoencoders and a GAN on MIMII fan id_00 and on simulated fans.

    half of the healthy clips train │ the other half and every faulty clip are judged; weak_ae learns from five of these

The networks that tell machines apart stand in `benchmarks.sound`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _cells
from benchmarks._cells import Row
from edge_agent.features import Context
from trainer import baselines, data, recipe
from trainer.data import Table
from trainer.evaluate import auc, pauc
from trainer.recipe import Recipe

MODELS = ("dense_ae", "weak_ae", "wgan_gp")
FAN = "fan id_00"
#: Healthy clips of a simulated fan; as many faulty ones stand beside them.
CLIPS, LABELLED = 40, 5

#: The sources' features: DCASE's 1024/512/128 for the dense AE, S4's 2048/512/128 for the weakly supervised one.
PLANS: dict[str, dict[str, Any]] = {
    "dense_ae": {
        "features": [{"kind": "log_mel", "n_fft": 1024, "hop": 512, "n_mels": 128}],
        "context": {"over": "frames", "width": 5, "hop": 5},
        "train": {"epochs": 40, "batch": 128, "patience": 0, "validation": 0},
    },
    "weak_ae": {
        "features": [{"kind": "log_mel", "n_fft": 2048, "hop": 512, "n_mels": 128}],
        "context": {"over": "frames", "width": 32, "hop": 16},
        "train": {"epochs": 20, "batch": 64, "patience": 0, "validation": 0, "overlap": 2, "stage2": 40},
    },
    "wgan_gp": {
        "features": [{"kind": "log_mel", "n_fft": 2048, "hop": 1024, "n_mels": 64}],
        "context": {"over": "frames", "width": 64, "hop": 32},
        "network": {"latent": 32, "ngf": 8, "encoder": 8},
        "train": {
            "epochs": 100, "batch": 32, "learning_rate": 1e-3, "patience": 0, "validation": 0, "overlap": 8, "ndf": 8,
            "encoder_epochs": 5, "tune_epochs": 30,
        },
    },
}  # fmt: skip


def machine(number: int) -> str:
    """Name of a simulated fan."""
    return f"simulated {number}"


def plan(model: str, name: str, folder: Path, seed: int = 0) -> Recipe:
    """The recipe of one network on one machine."""
    source: dict[str, Any] = (
        {"path": str(folder / "sound" / "fan"), "fs_hz": 16000}
        if name == FAN
        else {"simulate": "fan", "ids": [int(name.split()[-1])], "clips": CLIPS, "anomalies": CLIPS, "seed": 7}
    )
    raw: dict[str, Any] = {
        "name": f"sound-{model.replace('_', '-')}",
        "model": model,
        "data": {**source, "machine": "fan"},
        "window": {"duration_s": 10},
        "split": {"by": "recording", "train": [0.0, 0.5], "calibrate": [0.5, 1.0]},
        "threshold": {"method": "gamma", "false_alarm_rate": 1e-2},
    } | PLANS[model]
    if model == "weak_ae":
        raw["split"]["anomalies"] = LABELLED
    raw["train"] = {"seed": seed, **raw["train"]}
    return recipe.parse(raw)


def cell(folder: Path, name: str, model: str, seed: int = 0) -> list[Row]:
    """One network on one machine; beside the dense AE the baselines, on the same clips."""
    how = plan(model, name, folder, seed)
    table = data.table(how)

    def work(out: Path) -> list[Row]:
        made, seconds = _cells.fitted(how, table, out)
        learnt = np.union1d(made.parts.train, made.parts.anomalies)
        judged = np.setdiff1d(np.arange(len(table)), learnt)
        note = f"{LABELLED} labelled anomalies" if model == "weak_ae" else ""
        rows = [_cells.judged(name, how, made, _cells.windows_of(table, judged), seconds, note)]
        if model == "dense_ae":
            rows += _plain(name, how, table, made.parts.train, judged)
        return rows

    return _cells.in_folder(work)  # type: ignore[no-any-return]


def _plain(name: str, how: Recipe, table: Table, train: Any, judged: Any) -> list[Row]:
    """Mean spectrum and statistics of the same clips."""
    rows = []
    anomalous = ~table.healthy()[judged]
    for baseline in baselines.NAMES:
        own = baselines.features_of(baseline, table.spec)
        again = data.table(replace(how, features=own.spec.families, context=Context()))
        vectors = again.vectors.mean(1, dtype=np.float64)
        kind = baselines.Neighbours if baseline == "mean_spectrum_knn" else baselines.Mahalanobis
        scores = kind.fit(vectors[train]).score(vectors[judged])
        rows.append(Row(name, baseline, auc(scores, anomalous), pauc(scores, anomalous)))
    return rows
