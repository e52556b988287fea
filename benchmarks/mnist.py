"""MNIST, one digit normal (S1): does a network know what is not a 2, a 5 or an 8?

    3000 pictures of the digit ─► 1600 train, 400 calibrate │ 600 + 5400 of the others are judged

The digits are the hard ones. Settings were chosen on the digits 3 and 9 as the normal class, never on these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _cells
from benchmarks._cells import Row
from edge_agent.features import Family, FeatureSpec
from trainer import recipe
from trainer.data import Clip, Table
from trainer.metrics import precision_recall_f1
from trainer.recipe import Recipe

DIGITS = (2, 5, 8)
SIZE = 28
TRAIN, TEST = 2000, 600


def pictures(path: Path) -> tuple[Any, Any]:
    """(30000, 28, 28) float32 in 0 to 255, (30000,) digits."""
    with np.load(path, allow_pickle=False) as archive:
        return archive["x"].astype(np.float32), archive["y"].astype(int)


def table(x: Any, y: Any, digit: int) -> Table:
    """Each picture a recording of 784 samples, a row a frame; the digit is healthy."""
    spec = FeatureSpec(SIZE * SIZE, SIZE * SIZE, SIZE * SIZE, 1, (Family("raw", {"frame": SIZE}),))
    clips = tuple(
        Clip(f"{i:05d}", "normal" if label == digit else "anomaly", None) for i, label in enumerate(y)
    )
    flat = x.reshape(len(x), -1)
    healthy = flat[y == digit] if (y == digit).any() else flat
    spectrum = np.sqrt((np.abs(np.fft.rfft(healthy)) ** 2).mean(0))[np.newaxis]
    names = tuple(f"s{i}" for i in range(SIZE))
    return Table(spec, names, x, np.arange(len(x), dtype=np.float64), np.arange(len(x)), clips, spectrum)


def sets(x: Any, y: Any, digit: int) -> tuple[Table, Table]:
    """(pictures of the digit to train and calibrate on, pictures of all digits to judge)."""
    own = np.flatnonzero(y == digit)
    train = own[:TRAIN]
    test = np.concatenate([np.flatnonzero(y == d)[-TEST:] for d in range(10)])
    return table(x[train], y[train], digit), table(x[test], y[test], digit)


def plan(model: str, seed: int = 0, epochs: int | None = None) -> Recipe:
    """The recipe of one network."""
    raw: dict[str, Any] = {
        "name": f"mnist-{model.replace('_', '-')}",
        "model": model,
        "data": {"simulate": "demo"},
        "window": {"n_samples": SIZE * SIZE},
        "features": [{"kind": "raw", "frame": SIZE}],
        "context": {"over": "frames", "width": SIZE, "hop": SIZE},
        "split": {"by": "recording", "train": [0.0, 0.8], "calibrate": [0.8, 1.0]},
        "threshold": {"method": "gamma", "false_alarm_rate": 0.05},
    } | SETTINGS[model]
    raw["train"] = {"seed": seed, **raw["train"]} | ({} if epochs is None else {"epochs": epochs})
    return recipe.parse(raw)


#: Chosen on the digits 3 and 9.
SETTINGS: dict[str, dict[str, Any]] = {
    "vae": {
        "input": "range",
        "network": {"encoder": "dense", "latent": 16, "sigmoid": True},
        "score": {"kind": "vae", "error": "mse_per_rms", "beta": 0.0},
        "train": {
            "epochs": 100, "batch": 64, "learning_rate": 1e-3, "patience": 0, "validation": 0,
            "beta": 0.04, "noise": 0.2, "loss": "bce",
        },
    },
    "deep_svdd": {
        "input": "range",
        "network": {"encoder": "plain", "embedding": 32},
        "train": {
            "epochs": 20, "batch": 64, "learning_rate": 1e-3, "weight_decay": 1e-4, "patience": 0, "validation": 0,
            "pretrain": 10,
        },
    },
    "wgan_gp": {
        "network": {"latent": 64},
        "train": {
            "epochs": 20, "batch": 50, "learning_rate": 5e-4, "patience": 0, "validation": 0, "encoder_epochs": 0,
            "tune_epochs": 40, "features": 0.0, "cycle": 0.0, "vary_noise": False,
        },
    },
}  # fmt: skip


def cell(path: Path, digit: int, model: str, seed: int = 0) -> tuple[Row, dict[str, float]]:
    """One digit, one network: its row, and precision, recall and F1 at the limit of the bundle."""
    train, test = sets(*pictures(path), digit)
    how = plan(model, seed)

    def work(out: Path) -> tuple[Row, dict[str, float]]:
        made, seconds = _cells.fitted(how, train, out)
        row = _cells.judged(f"MNIST {digit}", how, made, test, seconds)
        s = _cells.scores(made.bundle.judge, test, np.arange(len(test)))
        return row, decision(s, ~test.healthy(), made.bundle.threshold.value)

    return _cells.in_folder(work)  # type: ignore[no-any-return]


def decision(scores: Any, anomalous: Any, limit: float) -> dict[str, float]:
    """S1's protocol: precision, recall and F1, the anomaly being the positive class, at a limit.

    `best_f1` is what the best limit on these very pictures would give: how published figures are often made.
    """
    precision, recall, f = precision_recall_f1(scores > limit, anomalous)
    order = np.argsort(-scores)
    caught = np.cumsum(anomalous[order])
    every_f1 = 2 * caught / (np.arange(1, len(order) + 1) + anomalous.sum())
    return {
        "precision": precision,
        "recall": recall,
        "f1": f,
        "best_f1": float(every_f1.max()),
    }


