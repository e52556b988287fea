"""Whole runs on small data: parity of every architecture, gates, calibration, the bundle on the device."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent import bundle as bundles
from edge_agent import inference
from edge_agent.errors import RecordingError
from edge_agent.inference import TFLiteModel
from edge_agent.recordings import Recording
from edge_agent.signals import Chunk
from trainer import cli, export, fit, recipe, splits
from trainer import data as trainer_data
from trainer.data import Clip
from trainer.evaluate import auc, score_table
from trainer.run import FitResult, run

FS = 4000.0


def recordings(n_clips, *, machine=None, label=None, tone=200.0, burst=0.0, seed=0, seconds=1.0):
    """Noise with a tone; `burst` adds what a fault would."""
    out = []
    for k in range(n_clips):
        rng = np.random.default_rng([seed, k])
        t = np.arange(round(seconds * FS)) / FS
        x = rng.standard_normal(t.size) * rng.uniform(0.8, 1.2) + np.sin(2 * np.pi * tone * t)
        x = (x + burst * np.sin(2 * np.pi * 1500.0 * t)).astype(np.float32)[np.newaxis]
        name = f"{label or 'clip'}_{machine or 'id_00'}_{k:04d}"
        chunk = Chunk(x, t=1e9 + 100.0 * k, fs_hz=FS)
        rec = Recording(name, Path(name), FS, label, lambda c=chunk: iter([c]))
        out.append((rec, Clip(name, label, machine)))
    return out


def small(tmp_path, **changes):
    """A recipe over one dummy file; the recordings are given to `table` instead."""
    dummy = tmp_path / "x.npy"
    np.save(dummy, np.zeros(8, np.float32))
    mel = {"kind": "log_mel", "n_fft": 256, "hop": 128, "n_mels": 16}
    raw = {
        "name": "small",
        "model": "dense_ae",
        "data": {"path": str(dummy), "fs_hz": FS},
        "window": {"n_samples": 4000},
        "features": [mel],
        "context": {"over": "frames", "width": 4, "hop": 4},
        "split": {"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]},
        "train": {"epochs": 15, "learning_rate": 3e-3},
        "threshold": {"method": "gamma", "false_alarm_rate": 0.01},
    }
    return recipe.parse(raw | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, FitResult]:
    """One small bundle of every architecture."""
    root = tmp_path_factory.mktemp("bundles")
    healthy = recordings(40)
    out = {}
    statistics = [{"kind": "time_domain", "names": ["rms", "kurtosis", "peak", "abs_mean"], "log": True}]
    machines = recordings(24, machine="id_00") + recordings(24, machine="id_01", tone=900.0, seed=5)
    cases = {
        "dense_ae": (small(root), healthy),
        "weak_ae": (
            small(
                root,
                model="weak_ae",
                split={"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0], "anomalies": 4},
                train={"epochs": 15, "stage2": 5, "learning_rate": 3e-3},
            ),
            healthy + recordings(6, label="anomaly", burst=0.5, seed=9),
        ),
        "lstm_ae": (
            small(
                root,
                model="lstm_ae",
                features=statistics,
                context={"over": "windows", "width": 4},
                window={"n_samples": 500},
                split={"by": "time", "train": [0.0, 0.6], "calibrate": [0.6, 1.0]},
                train={"epochs": 15, "learning_rate": 3e-3},
            ),
            recordings(1, seconds=30.0),
        ),
        "mobilenet_v2": (
            small(
                root,
                model="mobilenet_v2",
                context={"over": "frames", "width": 16, "hop": 8},
                network={"alpha": 0.35, "head": 32},
                train={"epochs": 30, "batch": 8, "learning_rate": 3e-3, "patience": 0},
            ),
            machines,
        ),
        "indicator": (
            small(
                root,
                model="indicator",
                features=[{"kind": "time_domain", "names": ["rms"]}],
                context={"over": "frames"},
                score={"kind": "indicator", "feature": "rms"},
            ),
            healthy,
        ),
    }
    for name, (chosen, found) in cases.items():
        table = trainer_data.table(chosen, found)
        out[name] = run(chosen, root / name, table=table)
    return out


@pytest.mark.parametrize("name", ["dense_ae", "weak_ae", "lstm_ae", "mobilenet_v2"])
def test_the_float_file_equals_keras(trained, name):
    """The float32 TFLite file gives Keras' outputs to rounding, for every architecture."""
    parity = trained[name].manifest.quantization.parity
    assert parity["keras_float32_max_abs"] < 1e-4


@pytest.mark.parametrize("name", ["dense_ae", "weak_ae", "lstm_ae", "mobilenet_v2"])
def test_what_is_shipped_passed_its_gates_or_says_why_not(trained, name):
    """An int8 file holds the rank correlation and the step gate; any other type states the reason."""
    q = trained[name].manifest.quantization
    if q.type == "int8":
        assert q.parity["spearman"] >= 0.99
        assert q.parity.get("residual_rmse", 1.0) >= 2.0 * q.parity.get("step", 0.0)
    else:
        assert q.type == "float16"
        assert "in place of int8" in q.note
        assert q.note in (trained[name].bundle.path / "CARD.md").read_text()


def test_the_lstm_is_fused_and_forgets_between_windows(trained):
    """The exported LSTM is the builtin fused operator, and a window's score does not depend on the one before."""
    path = trained["lstm_ae"].bundle.path
    flatbuffer = (path / "model.tflite").read_bytes()
    assert inference.operators(flatbuffer).count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 4
    model = TFLiteModel(flatbuffer, 1, (4, 4))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1, 4, 4)).astype(np.float32)
    first = model(a)[0].copy()
    model(5.0 * b)
    assert np.array_equal(model(a)[0], first)


def test_all_patches_of_a_clip_go_through_one_invoke(trained):
    """Dense and convolutional models are exported with a free batch."""
    for name in ("dense_ae", "weak_ae", "mobilenet_v2"):
        judge = bundles.load(trained[name].bundle.path).judge
        assert judge.model._batch == judge.features.n_patches > 1


def test_calibration_scores_are_those_of_the_shipped_file(trained):
    """Scoring the calibration windows again with the loaded bundle gives the stored scores exactly."""
    for name in ("dense_ae", "weak_ae", "indicator"):
        result = trained[name]
        again = score_table(bundles.load(result.bundle.path), result.table)
        assert np.array_equal(again[result.parts.calibrate], result.scores)


def test_no_training_recording_calibrates(trained):
    """Training, validation and calibration of a run share no recording."""
    result = trained["dense_ae"]
    owner = result.table.recording
    learnt = set(owner[result.parts.train]) | set(owner[result.parts.validation])
    assert not learnt & set(owner[result.parts.calibrate])


def test_each_machine_has_its_own_limit(trained):
    """A classifier's bundle calibrates every class, and a clip of the other machine is far over the limit."""
    result = trained["mobilenet_v2"]
    assert result.manifest.classes == ("id_00", "id_01")
    other = bundles.load(result.bundle.path, "id_01")
    assert other.threshold.value != result.manifest.threshold.value
    scores = score_table(other, result.table)
    wrong = np.array([c.machine == "id_00" for c in result.table.of(np.arange(len(result.table)))])
    assert auc(scores, wrong) > 0.9


def test_bundles_load_where_no_training_library_is(trained):
    """Every architecture's bundle loads and re-scores its golden windows without TensorFlow, Keras or scipy's signal."""
    paths = [str(r.bundle.path) for r in trained.values()]
    code = (
        "import sys, json; from pathlib import Path; from edge_agent import bundle\n"
        "[bundle.load(Path(p)) for p in sys.argv[1:]]\n"
        "print(json.dumps([m for m in ('tensorflow', 'keras', 'matplotlib', 'sklearn', 'trainer', 'scipy.signal', "
        "'scipy.stats') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_bundles_stay_small(trained):
    """No golden window makes a bundle large: they are periodic noise, not recordings."""
    for result in trained.values():
        assert (result.bundle.path / "golden.npz").stat().st_size < 60_000


def test_the_same_seed_gives_the_same_bundle(trained, tmp_path):
    """Two runs of one recipe and seed agree in weights, limit and version; another seed does not."""
    first = trained["dense_ae"]
    chosen = small(tmp_path)
    again = run(chosen, tmp_path / "again", table=first.table)
    assert again.manifest.version == first.manifest.version
    assert again.history == first.history
    other = run(trainer_data.with_seed(chosen, 1), tmp_path / "other", table=first.table)
    assert other.manifest.version != first.manifest.version


def test_int8_that_misses_its_gate_is_replaced_by_float16_and_said(tmp_path):
    """One huge outlier stretches the int8 range over the fine residual: float16 is shipped, with the reason."""
    chosen = small(tmp_path)
    table = trainer_data.table(chosen, recordings(40))
    training = splits.split(table, chosen.split, validation=0.15, seed=0).train
    vectors = table.vectors.copy()
    vectors[training[0], 0] = 1e4
    result = run(chosen, tmp_path / "b", table=replace(table, vectors=vectors))
    assert result.manifest.quantization.type == "float16"
    assert "float16 in place of int8" in result.warnings[0]
    assert "float16 in place of int8" in (tmp_path / "b" / "CARD.md").read_text()
    assert result.manifest.quantization.parity["float16_spearman"] > 0.99


def test_the_second_stage_raises_auc_over_as_many_epochs_of_the_first(tmp_path):
    """On a fault the autoencoder reconstructs well, few labelled anomalies help where more epochs do not."""
    found = recordings(50) + recordings(24, label="anomaly", burst=0.4, seed=9)
    split = {"by": "recording", "train": [0.0, 0.6], "calibrate": [0.6, 1.0], "anomalies": 8}
    scores = {}
    for name, train in {"control": {"epochs": 40}, "weak": {"epochs": 20, "stage2": 20}}.items():
        how = train | {"learning_rate": 2e-3, "patience": 0, "validation": 0.2, "overlap": 1}
        chosen = small(tmp_path, model="weak_ae", split=split, train=how)
        table = trainer_data.table(chosen, found)
        result = run(chosen, tmp_path / name, table=table)
        owner, faulty = table.recording, ~table.healthy()
        learnt = np.isin(owner, owner[result.parts.anomalies])
        held = np.zeros(len(table), bool)
        held[result.parts.calibrate] = True
        use = (faulty & ~learnt) | held
        scores[name] = auc(score_table(result.bundle, table)[use], faulty[use])
    assert scores["weak"] > scores["control"] + 0.05


def test_the_second_stage_without_anomalies_is_refused(tmp_path):
    """weak_ae asked for a second stage without any labelled anomaly says what to do."""
    chosen = small(tmp_path, model="weak_ae", train={"epochs": 1, "stage2": 1})
    with pytest.raises(RecordingError, match="no labelled anomalous recording"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, recordings(25)))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([], "0 recordings"),
        (recordings(3, seconds=0.1), "shorter than one window"),
        (recordings(1), "expected at least"),
    ],
)
def test_data_that_cannot_be_used_is_an_error_with_figures(tmp_path, found, text):
    """No recording, only short ones, or a single one are refused in words."""
    chosen = small(tmp_path)
    with pytest.raises(RecordingError, match=text):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, found))


def test_silence_gives_an_error_and_no_bundle(tmp_path):
    """All-equal recordings cannot carry a limit; nothing is written."""
    silent = []
    for rec, clip in recordings(20):
        chunk = Chunk(np.zeros((1, 4000), np.float32), fs_hz=FS)
        silent.append((replace(rec, chunks=lambda c=chunk: iter([c])), clip))
    chosen = small(tmp_path, model="indicator", features=[{"kind": "time_domain", "names": ["rms"]}],
                   context={"over": "frames"}, score={"kind": "indicator", "feature": "rms"})  # fmt: skip
    with pytest.raises(RecordingError, match="calibration"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, silent))
    assert not (tmp_path / "b").exists()


def test_one_machine_cannot_be_told_from_others(tmp_path):
    """mobilenet_v2 on a single machine id says that it needs two."""
    chosen = small(tmp_path, model="mobilenet_v2", context={"over": "frames", "width": 16, "hop": 8})
    with pytest.raises(RecordingError, match="at least two"):
        run(chosen, tmp_path / "b", table=trainer_data.table(chosen, recordings(20, machine="id_00")))


def test_a_converter_that_refuses_is_an_error_with_its_words():
    """A wrong set of weights comes back as an ExportError that quotes the converter's process."""
    fit.tensorflow()
    with pytest.raises(export.ExportError, match="dense_ae as float32"):
        export.tflite(
            "dense_ae", (2, 2), 1, {}, [np.zeros(3, np.float32)], "float32", np.zeros((1, 2, 2), np.float32)
        )


def test_a_converter_that_died_is_replaced():
    """After the converter's process has been killed, the next request starts another and is answered."""
    worker = export._start()
    worker.kill()
    worker.wait()
    weights = [
        np.zeros((4, 2)),
        np.zeros(2),
        np.zeros((2, 2)),
        np.zeros(2),
        np.zeros((2, 2)),
        np.zeros(2),
        np.zeros((2, 4)),
        np.zeros(4),
    ]
    params = {"units": 2, "depth": 1, "latent": 2}
    data = export.tflite(
        "dense_ae",
        (2, 2),
        1,
        params,
        [w.astype(np.float32) for w in weights],
        "float32",
        np.zeros((1, 2, 2), np.float32),
    )
    assert data[4:8] == b"TFL3"


@pytest.mark.parametrize(
    ("found", "texts"),
    [
        (12, ["12 healthy recordings", "leave 4 healthy windows", "at least 15 such recordings"]),
        (1, ["1 healthy recording (4 windows of 1 s)", "about 15 s (15 windows)"]),
    ],
)
def test_too_little_to_calibrate_is_refused_before_training(tmp_path, found, texts):
    """Where no split leaves ten windows, the numbers and what to give are said before the first epoch."""
    chosen = small(tmp_path, split={})
    table = trainer_data.table(chosen, recordings(found, seconds=1.0 if found > 1 else 4.0))
    epochs = []
    with pytest.raises(RecordingError) as caught:
        run(chosen, tmp_path / "b", table=table, progress=lambda *said: epochs.append(said))
    assert epochs == []
    for text in texts:
        assert text in str(caught.value)


def test_every_machine_calibrates_on_enough_clips_where_there_are_any(tmp_path):
    """A classifier's default split leaves ten clips of each machine, and names the machine that has too few."""
    chosen = small(
        tmp_path,
        model="mobilenet_v2",
        context={"over": "frames", "width": 16, "hop": 8},
        network={"alpha": 0.35, "head": 16},
        train={"epochs": 1},
        split={},
    )
    two = recordings(20, machine="id_00") + recordings(20, machine="id_01", tone=900.0, seed=5)
    result = run(chosen, tmp_path / "b", table=trainer_data.table(chosen, two))
    machines = [c.machine for c in result.table.of(result.parts.calibrate)]
    assert (machines.count("id_00"), machines.count("id_01")) == (10, 10)
    few = trainer_data.table(chosen, two[:32])
    with pytest.raises(RecordingError, match="of id_01"):
        run(chosen, tmp_path / "c", table=few)


def test_scores_that_would_hold_an_alarm_for_good_are_said(tmp_path):
    """The RMS of a tone whose level wanders by a per cent: the training warns that an alarm would not return, and of the deadband."""
    chosen = small(
        tmp_path, model="indicator", features=[{"kind": "time_domain", "names": ["rms"]}], context={"over": "frames"},
        score={"kind": "indicator", "feature": "rms"}, threshold={"false_alarm_rate": 1e-5},
    )  # fmt: skip
    table = trainer_data.table(chosen, recordings(40))
    levels = np.random.default_rng(3).normal(1.0, 0.01, table.vectors.shape)
    result = run(chosen, tmp_path / "b", table=replace(table, vectors=levels.astype(np.float32)))
    assert any("does not return by itself; set the sensor's alarm.deadband to 0.0" in w for w in result.warnings)


def test_a_rate_that_the_scores_cannot_show_is_said(trained, tmp_path):
    """Sixteen scores asked for one in a thousand are warned of, with a rate nearer to what they carry."""
    first = trained["indicator"]
    chosen = small(
        tmp_path, model="indicator", features=[{"kind": "time_domain", "names": ["rms"]}], context={"over": "frames"},
        score={"kind": "indicator", "feature": "rms"}, threshold={"false_alarm_rate": 1e-3},
    )  # fmt: skip
    result = run(chosen, tmp_path / "b", table=first.table)
    assert any("16 scores cannot show a rate of 0.001" in w and "0.01" in w for w in result.warnings)
    assert not any("cannot show" in w for w in first.warnings)


def test_files_of_two_rates_are_refused_by_name(tmp_path, monkeypatch, capsys):
    """Two sampling rates in one folder end the command with both files and both rates."""
    noise = np.random.default_rng(0).standard_normal(4000)
    write_wav(tmp_path / "a.wav", noise)
    write_wav(tmp_path / "b.wav", noise, fs=8000)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "--model", "indicator", "--data", "."]) == 1
    said = capsys.readouterr().err
    assert "a.wav was sampled at 4000 Hz" in said
    assert "b.wav at 8000 Hz" in said


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, trained, capsys):
    """An output below a plain file ends with the path on stderr and code 1, for fit and report alike."""
    (tmp_path / "file").touch()
    write_wav(tmp_path / "a.wav", np.zeros(4000))
    inside = str(tmp_path / "file" / "x" / "y")
    assert cli.main(["fit", "--model", "indicator", "--data", str(tmp_path / "a.wav"), "--out", inside]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    bundle = str(trained["indicator"].bundle.path)
    assert cli.main(["report", "--bundle", bundle, "-o", inside]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    there = tmp_path / "new" / "folder" / "r.html"
    assert cli.main(["report", "--bundle", bundle, "-o", str(there)]) == 0
    assert there.is_file()


def write_wav(path, x, fs=FS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(int(fs))
        out.writeframes((np.clip(x / 8, -1, 1) * 32767).astype("<i2").tobytes())


def test_fit_evaluate_and_report_from_the_command_line(tmp_path, capsys, monkeypatch):
    """A WAV folder becomes a bundle, plots, one JSON object of figures and one self-contained page."""
    monkeypatch.chdir(tmp_path)
    for label, n, burst in (("normal", 30, 0.0), ("anomaly", 10, 1.0)):
        for rec, _ in recordings(n, burst=burst, seed=int(burst)):
            write_wav(tmp_path / "wavs" / label / f"{rec.name}.wav", next(rec.chunks()).samples[0])
    recipe_file = tmp_path / "r.yaml"
    recipe_file.write_text(
        "name: cli\nmodel: dense_ae\ndata: {path: wavs}\nwindow: {n_samples: 4000}\n"
        "features: [{kind: log_mel, n_fft: 256, hop: 128, n_mels: 16}]\n"
        "context: {over: frames, width: 4, hop: 4}\ntrain: {epochs: 10}\nthreshold: {false_alarm_rate: 1e-2}\n"
        "split: {by: recording, train: [0.0, 0.5], calibrate: [0.5, 1.0]}\n"
    )
    assert cli.main(["fit", str(recipe_file), "--json", "--seed", "3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (tmp_path / summary["plots"] / "distribution.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["evaluate", "--bundle", summary["bundle"], "--data", "wavs", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["normal_windows"], result["anomalous_windows"]) == (30, 10)
    assert result["auc"] > 0.95
    assert cli.main(["report", "--bundle", summary["bundle"], "--data", "wavs", "-o", "r.html"]) == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
