"""A window from samples to a row in the database, ours beside the usual libraries on the same work.

Ours is the product's own path: `Judge.vectors` and `Judge.score` of a verified int8 bundle, and `Store.write`
with 100 rows a commit, which is less than the daemon has at 20 windows a second. The rivals are what tutorials and
the DCASE baseline write, with the same weights in float32; the scores are compared.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import librosa
import numpy as np

from benchmarks import bench_scalogram
from benchmarks._bundles import PSD_BANDS, Made, sound_bundle, vibration_bundle
from benchmarks._timing import quiet_ms, row
from benchmarks.bench_features import (
    SOUND_FS,
    sound,
    usual_envelope,
    usual_psd,
    usual_statistics,
    usual_stft,
    vibration,
)
from edge_agent import offline, payloads, pipeline
from edge_agent.alarms import Alarm
from edge_agent.payloads import PayloadLayout
from edge_agent.pipeline import Measured, PipelineState
from edge_agent.signals import Chunk, rfc3339
from edge_agent.store import Record, Store
from edge_agent.windowing import initial as no_samples

VIBRATION, CLIP = "vibration", "clip"
#: The strongest rival: nobody's published code, but what one can do with the usual libraries; printed, not judged.
AT_ONCE = "tf.lite.Interpreter float32, resized to all frames in one invoke"
T0 = 1_790_000_000.0
_COMMIT, _HOP_S = 100, 0.4096
_STATISTICS = (
    "np.mean, np.std, ..., scipy.stats.skew(x), scipy.stats.kurtosis(x, fisher=False); scipy.signal.stft(x, fs, "
    "nperseg=256); scipy.signal.welch(x, fs, nperseg=8192), mean of 64 bins; np.fft band mask, scipy.signal.hilbert, np.fft.rfft"
)
_LIBROSA = (
    "librosa.feature.melspectrogram(y=y, sr=16000, n_fft=1024, hop_length=512, n_mels=128, htk=True, norm=None); "
    "10 * np.log10(mel); frames stacked by 5; "
)


def interpreter_of(flatbuffer: bytes) -> Any:
    """tf.lite.Interpreter as its guide has it: one patch a call until it is resized."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=flatbuffer, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def invoke(interpreter: Any, x: Any) -> Any:
    """set_tensor, invoke, get_tensor."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@dataclass(frozen=True)
class VibrationCalls:
    """Each step on its own: a piece of a third of a millisecond is seldom interrupted, a block of 100 always.

    ours, usual       : one window of samples to a score
    whole             : one message to its row and the alarm engine's answer, its data checked on the way
    our_rows          : 100 rows and what else stands in one commit of the agent
    usual_row         : one row and its commit
    """

    ours: Callable[[], float]
    whole: Callable[[], None]
    our_rows: Callable[[], None]
    usual: Callable[[], float]
    usual_row: Callable[[], None]


def vibration_calls(made: Made, folder: Path) -> VibrationCalls:
    """The steps from a window of 8192 samples to its row in a database under `folder`."""
    judge, limit, spec = made.bundle.judge, made.bundle.threshold.value, made.bundle.manifest.features
    x = vibration(10_000)
    window = x[np.newaxis]

    def ours() -> float:
        return judge.score(judge.vectors(window)).value

    ready = replace(offline.pipeline_for(made.bundle), layout=PayloadLayout("f32le", 1, "ts_seq"))
    assert ready.judge.profile is not None
    # Eight messages in turn: one and the same would be a repeat.
    messages = count()
    chunks = [Chunk(vibration(10_000 + i)[np.newaxis]) for i in range(8)]
    going = pipeline.initial(ready)

    def whole() -> None:
        nonlocal going
        i = next(messages)
        t = T0 + i * spec.n_samples / spec.fs_hz
        payload = payloads.encode(replace(chunks[i % 8], t=t, seq=i), ready.layout)
        going, outcome = pipeline.step(ready, going, payload, t + spec.n_samples / spec.fs_hz)
        assert outcome.measured[0].quality == "good"

    offset, scale = np.array(spec.offset), np.array(spec.scale)
    interpreter = interpreter_of(made.float32)

    def usual() -> float:
        psd = usual_psd(x).reshape(PSD_BANDS, -1).mean(axis=1)
        v = np.concatenate([usual_statistics(x), usual_stft(x), psd, usual_envelope(x)])
        z = ((v - offset) / scale).astype(np.float32)[np.newaxis]
        return float(np.mean((z - invoke(interpreter, z)) ** 2))

    store = Store.open(folder / "ours.db")
    seqs = count()
    state = pipeline.dump(PipelineState(no_samples(), np.zeros((0, len(judge.features.names)), np.float32)))
    value = ours()

    def measured() -> Measured:
        seq = next(seqs)
        start = T0 + seq * _HOP_S
        return Measured(seq, start, start + _HOP_S, value, limit, value / limit)

    def our_rows() -> None:
        rows = tuple(measured() for _ in range(_COMMIT))
        store.write([Record("light", rows, (), Alarm(), state, rows[-1].end)])

    db = sqlite3.connect(folder / "usual.db")
    db.execute(
        "CREATE TABLE scores(id INTEGER PRIMARY KEY, sensor TEXT, ts TEXT, start TEXT, seq INTEGER, score REAL, "
        "threshold REAL, ratio REAL, quality TEXT)"
    )

    def usual_row() -> None:
        m = measured()
        db.execute(
            "INSERT INTO scores(sensor, ts, start, seq, score, threshold, ratio, quality) VALUES (?,?,?,?,?,?,?,?)",
            ("light", rfc3339(m.end), rfc3339(m.start), m.seq, m.score, m.threshold, m.ratio, m.quality),
        )
        db.commit()

    return VibrationCalls(ours, whole, our_rows, usual, usual_row)


def clip_calls(made: Made) -> tuple[Callable[[], float], dict[str, Callable[[], float]]]:
    """(ours, rivals by the call that tells them apart); all return the clip's score."""
    judge, spec = made.bundle.judge, made.bundle.manifest.features
    y = sound(10_000)
    window = y[np.newaxis]
    offset, scale = np.array(spec.offset, np.float32), np.array(spec.scale, np.float32)
    width = spec.context.width

    def ours() -> float:
        return judge.score(judge.vectors(window)).value

    def stacked() -> Any:
        mel = librosa.feature.melspectrogram(
            y=y, sr=SOUND_FS, n_fft=1024, hop_length=512, n_mels=128, htk=True, norm=None
        )
        v = ((10.0 * np.log10(np.maximum(mel, 1e-10))).T - offset) / scale
        n = len(v) - width + 1
        data = np.zeros((n, width * 128), np.float32)
        for t in range(width):
            data[:, 128 * t : 128 * (t + 1)] = v[t : t + n]
        return data

    def score(data: Any, output: Any) -> float:
        return float(np.mean(np.square(data - output)))

    def predict() -> float:
        data = stacked()
        return score(data, made.network.predict(data, verbose=0))

    single, batched = interpreter_of(made.float32), interpreter_of(made.float32)
    n_frames = judge.features.n_patches
    batched.resize_tensor_input(batched.get_input_details()[0]["index"], [n_frames, width * 128])
    batched.allocate_tensors()

    def one_by_one() -> float:
        data = stacked()
        return score(data, np.concatenate([invoke(single, frame[np.newaxis]) for frame in data]))

    def at_once() -> float:
        data = stacked()
        return score(data, invoke(batched, data))

    return ours, {
        "keras model.predict(data, verbose=0), as the DCASE baseline": predict,
        "tf.lite.Interpreter float32, set_tensor/invoke/get_tensor frame by frame": one_by_one,
        AT_ONCE: at_once,
    }


def rows(folder: Path, rounds: int = 12) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """({work, ms, rival, rival_ms, ratio, agree} of every pair, bundle folders by name)."""
    made = {VIBRATION: vibration_bundle(folder), CLIP: sound_bundle(folder)}
    calls = vibration_calls(made[VIBRATION], folder)
    ms, whole_ms, rows_ms, rival_ms, row_ms = quiet_ms(
        [(calls.ours, 1), (calls.whole, 1), (calls.our_rows, _COMMIT), (calls.usual, 1), (calls.usual_row, 1)], rounds=rounds
    )
    work = "window of 8192: 15 statistics, STFT, PSD, envelope, int8 autoencoder"
    difference = calls.ours() / calls.usual() - 1.0
    rival = f"{_STATISTICS}; tf.lite.Interpreter float32"
    found = [
        row(
            VIBRATION,
            f"{work}, database row",
            ms + rows_ms,
            f"{rival}; sqlite3 insert and commit",
            rival_ms + row_ms,
            difference,
        ),
        row(VIBRATION, f"{work}; no database", ms, rival, rival_ms, difference, judged=False),
        row(
            "vibration_whole",
            "the same from the message on: decoded, its data checked, scored, explained, voted, and its row",
            whole_ms + rows_ms,
            f"{rival}; sqlite3 insert and commit; none of the rest",
            rival_ms + row_ms,
            difference,
            judged=False,
        ),
    ]
    steps = (calls.ours, calls.our_rows, _COMMIT, calls.usual, calls.usual_row)
    found += bench_scalogram.rows(steps, rounds)
    ours, rivals = clip_calls(made[CLIP])
    times = quiet_ms([(ours, 1), *((call, 1) for call in rivals.values())], rounds=rounds)
    for (quoted, call), rival_ms in zip(rivals.items(), times[1:], strict=True):
        found.append(
            row(
                CLIP,
                "clip of 10 s at 16 kHz: log-mel, int8 autoencoder on 309 stacked frames",
                times[0],
                _LIBROSA + quoted,
                rival_ms,
                ours() / call() - 1.0,
                judged=quoted != AT_ONCE,
            )
        )
    return found, {name: one.bundle.path for name, one in made.items()}
