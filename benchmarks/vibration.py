"""Vibration sets: HIT-SM (other speed), CWRU (smoke test), a rotating machine with three axes.

    healthy recording(s) ─► train │ calibrate          another speed, a later stretch of time or other recordings ─► judged

Every network sees windows as its bundle would on a device; a row of a table is a window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _cells
from benchmarks._cells import Row
from edge_agent.features import FeatureSet, FeatureSpec
from edge_agent.signals import F32
from trainer import baselines, recipe
from trainer.data import Clip, Table
from trainer.evaluate import auc, pauc
from trainer.recipe import Recipe

#: All but the last learn from healthy vibration alone; `classifier` from labelled faults too, which are then not judged.
MODELS = ("indicator", "dense_ae", "lstm_ae", "deep_svdd", "vae", "svdd_vae", "wgan_gp", "classifier")


@dataclass(frozen=True)
class Windows:
    """Raw windows of some recordings: x (n, C, N) in the sensor's unit, start (n,) s, recording (n,) -> clips."""

    fs_hz: float
    hop: int
    x: F32
    start: Any
    recording: Any
    clips: tuple[Clip, ...]

    def table(self, how: Recipe) -> Table:
        """The features that a recipe asks for."""
        n_channels, n_samples = self.x.shape[1:]
        spec = FeatureSpec(self.fs_hz, n_samples, self.hop, n_channels, how.features, how.context)
        features = FeatureSet(spec)
        healthy = np.array([c.healthy for c in self.clips])[self.recording]
        power = np.abs(np.fft.rfft(self.x[healthy if healthy.any() else slice(None)][:64])) ** 2
        return Table(
            spec, features.names, features.raw(self.x), self.start, self.recording, self.clips, np.sqrt(power.mean(0))
        )

    def only(self, keep: Any) -> Windows:
        """Those windows."""
        return replace(self, x=self.x[keep], start=self.start[keep], recording=self.recording[keep])


@dataclass(frozen=True)
class Set:
    """One training set and what is judged with it: name -> windows.

    labelled : whether a recording, by its name, is one of the faults that `classifier` learns from
    """

    train: Windows
    judged: dict[str, Windows]
    split: dict[str, Any]
    labelled: Callable[[str], bool]


def cut(found: Sequence[tuple[Clip, F32]], fs_hz: float, n: int, hop: int) -> Windows:
    """Windows of recordings (C, samples), each cut from its own beginning."""
    x, start, owner = [], [], []
    for k, (_, samples) in enumerate(found):
        for i in range(0, samples.shape[1] - n + 1, hop):
            x.append(samples[:, i : i + n])
            start.append(1e6 * k + i / fs_hz)
            owner.append(k)
    return Windows(fs_hz, hop, np.stack(x), np.array(start), np.array(owner), tuple(c for c, _ in found))


def hit_sm(path: Path, speed: int) -> Set:
    """Trained on one speed, normal only; judged at the other speed, and on a later stretch of the same one."""
    other = 1500 - speed
    with np.load(path, allow_pickle=False) as archive:
        fs_hz = float(archive["fs"])
        named = {name.removeprefix("mfs/"): archive[name] for name in archive.files if name != "fs"}

    def windows(rpm: int, *, faults: bool = True) -> Windows:
        found = [
            (Clip(name, "normal" if name.startswith("Normal") else "anomaly", None), x[np.newaxis].astype(np.float32))
            for name, x in sorted(named.items())
            if name.endswith(f"_{rpm}") and (faults or name.startswith("Normal"))
        ]
        return cut(found, fs_hz, 8192, 4096)

    own, same = windows(speed, faults=False), windows(speed)
    later = same.start % 1e6 >= 0.75 * 262144 / fs_hz
    faulty = np.array([not c.healthy for c in same.clips])[same.recording]
    judged = {
        f"HIT-SM {speed} → {other} rpm": windows(other),
        f"HIT-SM {speed} rpm, later": same.only(later | faulty),
    }
    early = own.only(own.start + 8192 / fs_hz <= 0.75 * 262144 / fs_hz)
    split = {"by": "time", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]}
    return Set(early, judged, split, lambda name: name.endswith(f"_{speed}") and not name.startswith("Normal"))


def cwru(path: Path) -> Set:
    """48 kHz, drive end, load 0: the normal recording's last quarter against every fault."""
    with np.load(path, allow_pickle=False) as archive:
        normal = archive["normal48k/normal_0/DE"]
        faults = {name: archive[name] for name in archive.files if name.startswith("DE48k/")}
    n_train = 3 * len(normal) // 4
    train = cut([(Clip("normal", "normal", None), normal[np.newaxis, :n_train])], 48000.0, 8192, 4096)
    found = [(Clip("normal later", "normal", None), normal[np.newaxis, n_train:])]
    found += [(Clip(name, "anomaly", None), x[np.newaxis]) for name, x in sorted(faults.items())]
    judged = {"CWRU 48 kHz": cut(found, 48000.0, 8192, 8192)}
    split = {"by": "time", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]}
    return Set(train, judged, split, lambda name: "007_" in name)


def motor3ax(path: Path) -> Set:
    """Recordings H1 to H45 train and calibrate; H46 to H60 and every F are judged. A window is a recording."""
    with np.load(path, allow_pickle=False) as archive:
        found = [
            (Clip(name, "normal" if name[0] == "H" else "anomaly", None), archive[name].T.astype(np.float32))
            for name in sorted(archive.files, key=lambda s: (s[0], int(re.sub(r"\D", "", s))))
        ]

    def learns(name: str) -> bool:
        return name[0] == "H" and int(name[1:]) <= 45

    train = cut([pair for pair in found if learns(pair[0].name)], 1000.0, 5000, 5000)
    judged = cut([pair for pair in found if not learns(pair[0].name)], 1000.0, 5000, 5000)
    split = {"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]}
    return Set(train, {"motor, 3 axes": judged}, split, lambda name: name[0] == "F" and int(name[1:]) <= 20)


SETS: dict[str, tuple[str, Callable[[Path], Set]]] = {
    "hit600": ("hit_sm.npz", lambda path: hit_sm(path, 600)),
    "hit900": ("hit_sm.npz", lambda path: hit_sm(path, 900)),
    "cwru": ("cwru.npz", cwru),
    "motor": ("motor3ax.npz", motor3ax),
}

_STATISTICS = {"kind": "time_domain", "log": True}
_IMAGE = {
    "features": [{"kind": "scalogram", "size": 64}],
    "context": {"over": "frames", "width": 64, "hop": 64},
}
#: What every set gets, the same everywhere; nothing here was chosen on the judged windows.
PLANS: dict[str, dict[str, Any]] = {
    "indicator": {"features": [{"kind": "time_domain", "names": ["rms"]}], "score": {"kind": "indicator", "feature": "rms"}},
    "dense_ae": {
        "features": [_STATISTICS, {"kind": "spectral", "mode": "bands", "n_bands": 32, "log": True}],
        "train": {"epochs": 100, "batch": 16, "patience": 0, "validation": 0},
    },
    "lstm_ae": {
        "features": [{"kind": "spectral", "mode": "bands", "n_bands": 16, "log": True}, _STATISTICS],
        "context": {"over": "windows", "width": 4},
        "train": {"epochs": 100, "batch": 16, "learning_rate": 3e-3, "patience": 0, "validation": 0},
    },
    "deep_svdd": _IMAGE | {"train": {"epochs": 20, "pretrain": 20, "batch": 16, "patience": 0, "validation": 0}},
    "vae": _IMAGE | {"train": {"epochs": 40, "batch": 16, "patience": 0, "validation": 0}},
    # Half the width: two networks in one bundle of at most 3 MB, even as float16.
    "svdd_vae": _IMAGE
    | {"network": {"base": 8}, "train": {"epochs": 20, "pretrain": 20, "batch": 16, "patience": 0, "validation": 0}},
    "wgan_gp": _IMAGE
    | {
        "network": {"latent": 32, "ngf": 8, "encoder": 8},
        "train": {
            "epochs": 100, "batch": 16, "learning_rate": 1e-3, "patience": 0, "validation": 0, "ndf": 8,
            "encoder_epochs": 5, "tune_epochs": 60,
        },
    },
    "classifier": _IMAGE
    | {"network": {"base": 8}, "train": {"epochs": 40, "pretrain": 20, "one_class": 10, "batch": 16, "weight_decay": 1e-4}},
}  # fmt: skip


def plan(model: str, windows: Windows, split: dict[str, Any], seed: int = 0) -> Recipe:
    """The recipe of one network for windows of this shape."""
    n_channels, n_samples = windows.x.shape[1:]
    raw: dict[str, Any] = {
        "name": f"vibration-{model.replace('_', '-')}",
        "model": model,
        "data": {"simulate": "demo"},
        "window": {"n_samples": n_samples, "hop_samples": windows.hop},
        "split": split,
        "threshold": {"method": "gamma", "false_alarm_rate": 1e-2},
    } | PLANS[model]
    if model == "indicator" and n_channels > 1:
        raw["score"] = {"kind": "indicator", "feature": "ch0.rms"}
    if model != "indicator":
        raw["train"] = {"seed": seed, **raw["train"]}
    if model == "lstm_ae" and split["by"] == "recording":
        # A recording is one window: its frames are the sequence.
        raw["features"] = [{"kind": "log_mel", "n_fft": 512, "hop": 256, "n_mels": 16}]
        raw["context"] = {"over": "frames", "width": 17, "hop": 17}
    if raw.get("features") == _IMAGE["features"] and n_channels > 1:
        raw["network"] = {**raw.get("network", {}), "channels": n_channels}
    return recipe.parse(raw)


def cell(folder: Path, key: str, model: str, seed: int = 0) -> list[Row]:
    """One network on one set: a row for everything that is judged with it."""
    file, load = SETS[key]
    found = load(folder / file)
    how = plan(model, found.train, found.split, seed)

    train = found.train.table(how)
    judged = {name: windows.table(how) for name, windows in found.judged.items()}
    note = ""
    if model == "classifier":
        faults = [_cells.pick(table, lambda clip: found.labelled(clip.name)) for table in judged.values()]
        train = _cells.join(train, *(table for table in faults if len(table)))
        n = sum(not clip.healthy for clip in train.clips)
        how = replace(how, split=replace(how.split, anomalies=n))
        note = f"{n} labelled recordings"
        # Where all faults have been learnt from, nothing is left to judge.
        left = {k: _cells.pick(table, lambda clip: not found.labelled(clip.name)) for k, table in judged.items()}
        judged = {name: table for name, table in left.items() if not table.healthy().all()}

    def work(out: Path) -> list[Row]:
        made, seconds = _cells.fitted(how, train, out)
        return [_cells.judged(name, how, made, table, seconds, note) for name, table in judged.items()]

    return _cells.in_folder(work)  # type: ignore[no-any-return]


def plain(folder: Path, key: str) -> list[Row]:
    """The baselines, which need no training, fitted to all training windows."""
    file, load = SETS[key]
    found = load(folder / file)
    spec = found.train.table(plan("indicator", found.train, found.split)).spec
    rows = []
    for name in baselines.NAMES:
        known = baselines.fit(name, spec, found.train.x)
        for judged, windows in found.judged.items():
            s = known.score(windows.x)
            anomalous = np.array([not c.healthy for c in windows.clips])[windows.recording]
            rows.append(Row(judged, name, auc(s, anomalous), pauc(s, anomalous)))
    return rows
