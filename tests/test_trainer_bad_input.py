"""Data that cannot be learnt from: each a clear error, whatever the network, and never a NaN in a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import make_indicator_bundle
from test_trainer_run import FS, recordings, small

from edge_agent import bundle as bundles
from edge_agent.errors import BundleError, RecordingError
from edge_agent.signals import Chunk
from trainer import architectures, splits
from trainer import data as trainer_data
from trainer.recipe import Split
from trainer.run import run

#: Networks that learn from healthy patches alone.
HEALTHY_ONLY = ["deep_svdd", "vae", "svdd_vae"]
PICTURES = {"context": {"over": "frames", "width": 16, "hop": 8}, "train": {"epochs": 1}}


def constant(found, level=0.0):
    """The same recordings with nothing but a constant in them."""
    silent = np.full((1, round(FS)), level, np.float32)
    return [(replace(r, chunks=lambda: iter([Chunk(silent, fs_hz=FS)])), c) for r, c in found]


def copied(n):
    """One recording n times."""
    ((first, _),) = recordings(1)
    return [(replace(r, chunks=first.chunks), c) for r, c in recordings(n)]


@pytest.mark.parametrize("model", HEALTHY_ONLY)
@pytest.mark.parametrize(
    ("found", "text"),
    [
        (lambda: [], "0 recordings"),
        (lambda: recordings(3, seconds=0.1), "3 recordings, 3 of them shorter than one window"),
        (lambda: recordings(1), "expected at least one"),
        (lambda: recordings(12), "at least 10 are needed"),
        (lambda: constant(recordings(40)), "all 20 windows to train on are the same"),
        (lambda: constant(recordings(40), 0.7), "all 20 windows to train on are the same"),
        (lambda: copied(40), "one recording copied"),
        (lambda: [(r, replace(c, label="anomaly")) for r, c in recordings(40)], "among 0 healthy windows"),
        (lambda: [*recordings(30), *[(replace(r, fs_hz=8000.0), c) for r, c in recordings(1)]], "one sampling rate"),
    ],
    ids=["nothing", "short clips", "one recording", "too few", "silence", "constant", "copies", "no healthy", "two rates"],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_refused_before_training(tmp_path, model, found, text):
    """The error gives the numbers, no epoch is run and no folder is left."""
    # Twelve clips are enough for no split; any other case is cut where the recipe says.
    cut = (
        {}
        if text == "at least 10 are needed"
        else {"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]}
    )
    chosen = small(tmp_path, model=model, **PICTURES, split=cut)
    epochs = []
    with pytest.raises(RecordingError, match=text):
        run(
            chosen,
            tmp_path / "b",
            table=trainer_data.table(chosen, found()),
            progress=lambda *e: epochs.append(e),
        )
    assert epochs == []
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "model", [n for n in architectures.names() if architectures.defaults(n).learns == "faults"]
)
def test_a_supervised_step_without_labels_is_refused(tmp_path, model):
    """A network that learns from faults says how to label them where there is no labelled anomaly."""
    chosen = small(tmp_path, model=model, **PICTURES)
    with pytest.raises(RecordingError, match=r"split\.anomalies.*label"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, recordings(40)))


def test_a_machine_with_faulty_recordings_only_is_no_class(tmp_path):
    """Machines are told apart by healthy recordings: an id without any does not count as the second machine."""
    chosen = small(tmp_path, model="mobilenet_v2", **PICTURES)
    found = recordings(30, machine="id_00") + recordings(10, machine="id_01", label="anomaly", seed=3)
    with pytest.raises(RecordingError, match=r"found the ids \['id_00'\]; expected at least two"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, found))


def test_fewer_anomalies_than_asked_for_are_used_and_said(tmp_path):
    """Eight are asked for, three are there: three are used, and the card will say so."""
    chosen = small(tmp_path)
    table = trainer_data.table(chosen, recordings(30) + recordings(3, label="anomaly", seed=3))
    parts = splits.split(table, Split(by="recording", anomalies=8), validation=0.1, seed=0)
    assert len(parts.anomalies) == 3
    assert parts.note == "8 labelled anomalous recordings were asked for, 3 were there and are used"


@pytest.mark.parametrize("what", ["calibration", "golden_windows", "golden_features", "residual", "arrays"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_that_is_not_finite_enters_a_bundle(tmp_path, what, bad):
    """One NaN or infinity in any array ends the writing with its place, and no folder is left."""
    good = make_indicator_bundle(tmp_path / "good")
    manifest = good.manifest
    given = {
        "calibration": good.calibration.copy(),
        "golden_windows": np.ones((2, 1, 256), np.float32),
        "golden_features": np.ones((4, 1, 1), np.float32),
    }
    if what in given:
        given[what].flat[0] = bad
    if what == "residual":
        manifest = replace(manifest, residual=replace(manifest.residual, std=(bad,)))
    arrays = {"center": np.array([0.0, bad])} if what == "arrays" else {}
    with pytest.raises(BundleError, match="NaN or infinite"):
        bundles.write(tmp_path / "bad", manifest, model=None, groups=None, card="#", arrays=arrays, **given)
    assert [p.name for p in tmp_path.iterdir()] == ["good"]


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", sorted(p.parent for p in (ROOT / "models").glob("*/bundle.json")), ids=lambda p: p.name
)
def test_committed_bundles_hold_finite_numbers_only(path):
    """Every array is finite, and no number of bundle.json was written as null in place of NaN."""
    for file in path.glob("*.npz"):
        with np.load(file) as data:
            for name in data.files:
                assert np.isfinite(data[name]).all(), f"{file.name}: {name}"
    told = json.loads((path / "bundle.json").read_text())
    for key in ("features", "score", "residual"):
        assert "null" not in json.dumps({k: v for k, v in told[key].items() if k != "context"}), key
    for limit in (told["threshold"], *told.get("limits", {}).values()):
        assert isinstance(limit["value"], float)
