"""`make quality`: faults of sensors and lines put into real recordings; each must be named, raise no machine alarm, and pass.

    recording ─► messages ─ the middle third ─► fault ─► payload bytes ─► pipeline ─► rows, quality alarm, machine alarm
    recording as it is, healthy or faulty ─► windows ─► quality.inspect ─► nothing withheld

The pipeline is the agent's own in event time. Where a fault strikes, how large and how often it is, is drawn at run time.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import wave
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _data
from benchmarks._report import say, write_section
from edge_agent import bundle as bundles
from edge_agent import offline, payloads, pipeline, quality, thresholds, trouble
from edge_agent.alarms import Alarm
from edge_agent.bundle import Manifest, Quantization, Residual
from edge_agent.features import Context, Family, FeatureSet, FeatureSpec
from edge_agent.payloads import PayloadLayout
from edge_agent.pipeline import Pipeline
from edge_agent.scoring import ScoreRule
from edge_agent.signals import F32, Chunk

NAME = "quality"
PAGE = _data.ROOT / "docs" / "quality.md"
T0 = 1_790_000_000.0


@dataclass(frozen=True)
class Stream:
    """A healthy recording as a sensor sends it: (C, N) at fs_hz, `message` samples a message, a pause of `pause_s` after
    every `snapshot` samples (0: none)."""

    name: str
    ready: Pipeline
    x: F32
    message: int
    snapshot: int = 0
    pause_s: float = 0.0

    @property
    def fs_hz(self) -> float:
        """Sampling rate."""
        return self.ready.window.fs_hz

    def middle(self) -> tuple[int, int]:
        """First and last sample of the middle third, at whole windows (whole snapshots)."""
        whole = self.snapshot or self.ready.window.n_samples
        n = self.x.shape[1] // whole
        return n // 3 * whole, 2 * n // 3 * whole

    def messages(self, x: F32) -> list[Chunk]:
        """Cut and stamped."""
        out = []
        for seq, at in enumerate(range(0, x.shape[1] - self.message + 1, self.message)):
            pauses = at // self.snapshot if self.snapshot else 0
            t = T0 + at / self.fs_hz + pauses * self.pause_s
            out.append(Chunk(np.ascontiguousarray(x[:, at : at + self.message]), t=t, seq=seq))
        return out


#: A fault makes the messages of a stream worse between the samples a and b.
Fault = Callable[[Stream, int, int, np.random.Generator], list[Chunk]]


def _samples(change: Callable[[F32, Stream, np.random.Generator], F32]) -> Fault:
    """A fault of the samples alone."""

    def fault(stream: Stream, a: int, b: int, rng: np.random.Generator) -> list[Chunk]:
        x = stream.x.copy()
        x[:, a:b] = change(x[:, a:b], stream, rng)
        return stream.messages(x)

    return fault


def _messages(change: Callable[[list[Chunk], np.random.Generator], list[Chunk]]) -> Fault:
    """A fault of the messages between a and b."""

    def fault(stream: Stream, a: int, b: int, rng: np.random.Generator) -> list[Chunk]:
        whole = stream.messages(stream.x)
        i, j = a // stream.message, b // stream.message
        return [*whole[:i], *change(whole[i:j], rng), *whole[j:]]

    return fault


def _rms(x: F32) -> F32:
    out: F32 = x.std(-1, keepdims=True)
    return out


def not_finite(some: list[Chunk], rng: np.random.Generator) -> list[Chunk]:
    """One NaN or infinity in every message."""
    out = []
    for chunk in some:
        x = chunk.samples.copy()
        x[rng.integers(len(x)), rng.integers(x.shape[1])] = rng.choice([np.nan, np.inf])
        out.append(replace(chunk, samples=x))
    return out


def stuck(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """The converter repeats one value."""
    return np.repeat(x[:, :1] + _rms(x).astype(np.float32), x.shape[1], axis=1)


def stuck_runs(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """In every window it hangs for 10 to 30 % of the time."""
    out, n = x.copy(), stream.ready.window.n_samples
    for at in range(0, x.shape[1] - n + 1, n):
        length = int(n * rng.uniform(0.1, 0.3))
        i = at + int(rng.integers(n - length))
        out[:, i : i + length] = out[:, i : i + 1]
    return out


def gap(some: list[Chunk], rng: np.random.Generator) -> list[Chunk]:
    """Every third message is lost."""
    first = int(rng.integers(3))
    return [chunk for i, chunk in enumerate(some) if i % 3 != first]


def duplicate(some: list[Chunk], rng: np.random.Generator) -> list[Chunk]:
    """Every message comes twice."""
    return [chunk for chunk in some for _ in range(2)]


def half_rate_timed(stream: Stream, a: int, b: int, rng: np.random.Generator) -> list[Chunk]:
    """The sensor samples half as fast and stamps its messages truly: as many samples a message, twice as far apart."""
    whole, m = stream.messages(stream.x), stream.message
    i, j = a // m, b // m
    out, seq = list(whole[:i]), i
    snapshot = stream.snapshot // m if stream.snapshot else j - i
    for at in range(i, j, snapshot):
        group = whole[at : min(at + snapshot, j)]
        x = _decimated(np.concatenate([c.samples for c in group], axis=1))
        for k in range(x.shape[1] // m):
            t = (group[0].t or 0.0) + k * 2 * m / stream.fs_hz
            out.append(Chunk(np.ascontiguousarray(x[:, k * m : (k + 1) * m]), t=t, seq=seq))
            seq += 1
    return [*out, *(replace(c, seq=seq + k) for k, c in enumerate(whole[j:]))]


def _decimated(x: F32) -> F32:
    """Every other sample behind an ideal low-pass."""
    n = x.shape[1] // 2 * 2
    spectrum = np.fft.rfft(x[:, :n])[:, : n // 4 + 1]
    out: F32 = (np.fft.irfft(spectrum, n // 2) / 2.0).astype(np.float32)
    return out


def half_rate_received(stream: Stream, a: int, b: int, rng: np.random.Generator) -> list[Chunk]:
    """The same from a sensor that states no times: the receipts, which stray by a fifth of a message, or the spectrum tell."""
    chunks = half_rate_timed(stream, a, b, rng)
    late = rng.uniform(0.0, 0.2, len(chunks)) * stream.message / stream.fs_hz
    return [replace(c, t=(c.t or 0.0) + s) for c, s in zip(chunks, late, strict=True)]


def half_rate_untimed(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """Half as many samples, filtered as a sensor does, with times counted from them: the receipts or the spectrum tell; in a
    replay only the spectrum."""
    half = _decimated(np.concatenate([x, x[:, ::-1]], axis=1))
    return half[:, : x.shape[1]]


def half_rate_aliased(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """The same without a filter."""
    return np.concatenate([x[:, ::2], x[:, 1::2]], axis=1)[:, : x.shape[1]]


def held(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """A gateway fills up a stream of half the rate by repeating every sample."""
    return np.repeat(x[:, ::2], 2, axis=1)[:, : x.shape[1]]


def signal_lost(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """The cable is off: the converter's noise, 50 to 70 dB down."""
    out: F32 = (_rms(x) * 10.0 ** rng.uniform(-3.5, -2.5) * rng.standard_normal(x.shape)).astype(np.float32)
    return out


def silence(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """Zeros."""
    return np.zeros_like(x)


def low_level(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """The machine is off: 23 to 34 dB down, with noise of its own."""
    share = rng.uniform(0.02, 0.07)
    out: F32 = (share * (x + 0.3 * _rms(x) * rng.standard_normal(x.shape))).astype(np.float32)
    return out


def clipping(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """A wrong measuring range: cut at 1.2 to 2 times the RMS."""
    mean, at = x.mean(-1, keepdims=True), rng.uniform(1.2, 2.0) * _rms(x)
    out: F32 = np.clip(x, mean - at, mean + at)
    return out


def dc_step(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """The offset jumps by 1 to 4 times the RMS in the midst of a window, and back."""
    out, k = x.copy(), int(rng.integers(stream.ready.window.n_samples))
    out[:, k:] += _rms(x) * rng.uniform(1.0, 4.0) * rng.choice([-1.0, 1.0])
    return out


def hum(hz: float) -> Callable[[F32, Stream, np.random.Generator], F32]:
    """Mains at up to 0.1 Hz beside its nominal frequency, with odd harmonics."""

    def change(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
        f, size = hz + rng.uniform(-0.1, 0.1), rng.uniform(0.7, 2.0)
        t = np.arange(x.shape[1]) / stream.fs_hz
        line = sum(np.sin(2 * np.pi * k * f * t + rng.uniform(0, 6.3)) / k for k in (1, 3, 5))
        out: F32 = (x + size * _rms(x) * line).astype(np.float32)
        return out

    return change


def bit_errors(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """One of the high bits of a 16-bit word is flipped, in 3 to 30 words a window. Full scale is four times the peak."""
    full = 4.0 * np.abs(stream.x).max()
    words = np.round(x / full * 32767).astype(np.int16)
    n = stream.ready.window.n_samples
    for _ in range(x.shape[1] // n * int(rng.integers(3, 30))):
        c, i = rng.integers(len(x)), rng.integers(x.shape[1])
        words[c, i] ^= np.int16(1) << np.int16(rng.integers(13, 15))
    out: F32 = (words / 32767.0 * full).astype(np.float32)
    return out


def lost_channel(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """One of several cables is off."""
    out, c = x.copy(), int(rng.integers(len(x)))
    out[c] = 1e-3 * _rms(x)[c] * rng.standard_normal(x.shape[1])
    return out


def swapped(x: F32, stream: Stream, rng: np.random.Generator) -> F32:
    """Two cables have changed places."""
    out = x.copy()
    out[[0, 1]] = out[[1, 0]]
    return out


#: Messages of this fault go without header.
RECEIVED = "half rate, no times"
#: Messages of these come twice as late as the times that the sensor counts from its samples; a replay keeps to the times.
COUNTED, REPLAYED = "half rate, times counted", "half rate in a replay, times counted"
FAULTS: tuple[tuple[str, Fault, str], ...] = (
    ("NaN or infinity", _messages(not_finite), quality.NOT_FINITE),
    ("stuck value", _samples(stuck), quality.STUCK),
    ("hangs for a while", _samples(stuck_runs), quality.STUCK),
    ("gaps", _messages(gap), quality.GAP),
    ("duplicates", _messages(duplicate), quality.DUPLICATE),
    ("half rate, true times", half_rate_timed, quality.WRONG_RATE),
    (RECEIVED, half_rate_received, quality.WRONG_RATE),
    (f"{COUNTED}, filtered", _samples(half_rate_untimed), quality.WRONG_RATE),
    (f"{COUNTED}, aliased", _samples(half_rate_aliased), quality.WRONG_RATE),
    (f"{REPLAYED}, filtered", _samples(half_rate_untimed), quality.WRONG_RATE),
    (f"{REPLAYED}, aliased", _samples(half_rate_aliased), quality.WRONG_RATE),
    ("half rate, samples repeated", _samples(held), quality.WRONG_RATE),
    ("signal lost", _samples(signal_lost), quality.SIGNAL_LOST),
    ("silence (zeros)", _samples(silence), quality.SIGNAL_LOST),
    ("machine off", _samples(low_level), quality.LOW_LEVEL),
    ("clipped", _samples(clipping), quality.CLIPPING),
    ("DC step", _samples(dc_step), quality.DC_STEP),
    ("mains hum 50 Hz", _samples(hum(50.0)), quality.HUM),
    ("mains hum 60 Hz", _samples(hum(60.0)), quality.HUM),
    ("bit errors", _samples(bit_errors), quality.SPIKES),
)
#: (fault, beginning of the recording's name) shown, not judged: from clip to clip a factory's noise changes the spectrum by
#: 4 to 8 dB, an octave's shift of so smooth a spectrum by 3. No sensor can send so: its messages would come as late.
BEYOND = {(f"{REPLAYED}, filtered", "MIMII"), (f"{REPLAYED}, aliased", "MIMII")}
#: (fault, beginning of the recording's name) named otherwise: a snapshot at half the rate without times is half a snapshot.
OTHERWISE = {(RECEIVED, "IMS"): quality.GAP}
OF_SEVERAL: tuple[tuple[str, Fault, str], ...] = (
    ("lost channel", _samples(lost_channel), quality.LOST_CHANNEL),
    ("swapped channels", _samples(swapped), quality.SWAPPED),
)


def receipts(stream: Stream, messages: list[Chunk], fault: str, rng: np.random.Generator) -> list[float]:
    """When they come: at their end by their times; where a sensor counts those, the middle third takes twice as long, and each
    message up to a fifth of its length more."""
    took = np.array([c.samples.shape[1] / stream.fs_hz for c in messages])
    ends = np.array([c.t or 0.0 for c in messages]) + took
    if fault.startswith(COUNTED):
        i, j = (at // stream.message for at in stream.middle())
        late = np.zeros(len(ends))
        late[i:j] = took[i:j]
        ends += np.cumsum(late) + rng.uniform(0.0, 0.2, len(ends)) * took
    return [float(t) for t in ends]


def run(stream: Stream, messages: list[Chunk], received: list[float], timed: bool = True) -> dict[str, Any]:
    """Through the pipeline as bytes: what was said of the data, what the machine alarm did, how it ended."""
    ready = stream.ready if timed else replace(stream.ready, layout=PayloadLayout("f32le", len(stream.x)))
    state = pipeline.initial(ready)
    rows, machine, begun, ended = [], 0, [], 0
    for chunk, came in zip(messages, received, strict=True):
        state, outcome = pipeline.step(ready, state, payloads.encode(chunk, ready.layout), came)
        rows += outcome.measured
        machine += len(outcome.machine)
        for _, told in outcome.transitions:
            if told.type == "quality" and told.extra is not None:
                alarm = told.extra["quality_alarm"]
                begun += [alarm["reasons"]] if alarm["active"] else []
                ended += not alarm["active"]
    last = rows[-3:]
    return {
        "counts": dict(Counter(state.trouble.counts)),
        "rows": dict(Counter(r for m in rows for r in m.reasons)),
        "machine_events": machine,
        "begun": begun,
        "resumes": len(rows) > 3
        and state.trouble.episode is None
        and all(m.quality == quality.GOOD and m.score is not None for m in last),
    }


def judged(stream: Stream, fault: str, expected: str | None, found: dict[str, Any]) -> dict[str, Any]:
    """One cell of the table. Named is what the quality alarm put first; of a machine that is off it says nothing, so there
    the rows are asked. A clean recording has no alarm and no window withheld."""
    first = found["begun"][0][0] if found["begun"] else None
    if expected is None:
        named = not found["begun"] and not any(r in found["rows"] for r in quality.BAD_REASONS)
    elif expected == quality.LOW_LEVEL:
        named = not found["begun"] and found["rows"].get(expected, 0) >= 3
        first = expected if named else first
    else:
        named = first == expected
    return {
        "recording": stream.name,
        "fault": fault,
        "expected": expected,
        "verdict": first,
        "named": named,
        "machine_events": found["machine_events"],
        "resumes": found["resumes"],
        "counts": found["counts"],
        "judged": (fault, stream.name.split()[0].rstrip(",")) not in BEYOND,
        "ok": bool(named and found["machine_events"] == 0 and found["resumes"]),
    }


# ---------------------------------------------------------------- recordings


def ready_for(folder: Path, x: F32, fs_hz: float, hop: int) -> Pipeline:
    """A pipeline over the RMS of the first channel, its limit fitted to healthy windows (k, C, n); no network."""
    n_channels, n = x.shape[1:]
    families = (Family("time_domain", {"names": ["rms"]}),)
    spec = FeatureSpec(fs_hz, n, hop, n_channels, families, Context())
    features = FeatureSet(spec)
    vectors = features(x)[:, 0, :]
    scores = vectors[:, 0].astype(np.float64)
    manifest = Manifest(
        schema=bundles.SCHEMA, name=folder.name, version="1", model="indicator", features=spec,
        score=ScoreRule("indicator", {"index": 0}), threshold=thresholds.fit(scores, "gamma", 1e-4),
        residual=Residual(tuple(vectors.mean(0).tolist()), tuple(np.maximum(vectors.std(0), 1e-6).tolist())),
        quantization=Quantization("none"), files={},
    )  # fmt: skip
    made = bundles.write(
        folder, manifest, model=None, calibration=scores, groups=None, golden_windows=x[[len(x) // 4, len(x) // 2]],
        golden_features=vectors[:4, None, :], card=f"# {folder.name}\n",
    )  # fmt: skip
    return _sends(offline.pipeline_for(made))


def _sends(ready: Pipeline) -> Pipeline:
    return replace(ready, layout=PayloadLayout("f32le", ready.window.n_channels, "ts_seq"))


def streams(folder: Path, data: Path) -> list[Stream]:
    """The recordings, each with its pipeline."""
    out = []
    with np.load(data / "ims_set2.npz", allow_pickle=False) as z:
        ims = (z["x_milli"][140:215] / np.float32(1000.0)).transpose(0, 2, 1)
    n = ims.shape[2]
    ready = _sends(offline.pipeline_for(bundles.load(_data.ROOT / "models" / "bearing-lstm-ae")))
    line = ims.transpose(1, 0, 2).reshape(4, -1)
    out.append(Stream("IMS bearing 1, LSTM autoencoder", ready, line[:1], n // 4, n, 599.0))
    several = ready_for(folder / "ims4", ims, 20000.0, n)
    out.append(Stream("IMS, 4 channels, RMS", several, line, n // 4, n, 599.0))
    with np.load(data / "cwru.npz", allow_pickle=False) as z:
        cwru = z["normal48k/normal_0/DE"].astype(np.float32)
    n = 8192
    windows = np.stack([cwru[i : i + n] for i in range(0, len(cwru) - n, n // 2)])[:, None]
    whole = cwru[: len(cwru) // n * n]
    one = ready_for(folder / "cwru", windows, 48000.0, n)
    out.append(Stream("CWRU normal, RMS", one, np.tile(whole, 2)[None], n // 2))
    # The second channel as it would be on a heavier part of the housing: a slow copy of another stretch.
    other = np.roll(whole, len(whole) // 2)
    other = (0.5 * (other + np.roll(other, 1))).astype(np.float32)
    both = np.stack([whole, other])
    pair = ready_for(folder / "cwru2", both.reshape(2, -1, n).transpose(1, 0, 2).copy(), 48000.0, n)
    out.append(Stream("CWRU normal, 2 channels, RMS", pair, np.tile(both, 2), n // 2))
    clips = _clips(data / "sound" / "fan" / "normal")
    sound = _sends(offline.pipeline_for(bundles.load(_data.ROOT / "models" / "sound-weak-ae")))
    m = sound.window.n_samples
    fan = np.concatenate([c[:m] for c in clips if len(c) >= m])
    out.append(Stream("MIMII fan, weakly supervised autoencoder", sound, fan[None], 16000))
    return out


@dataclass(frozen=True)
class Untouched:
    """Windows (k, C, n) of recordings as they are, and the healthy ones that the profile is of. kind: healthy, faulty or off."""

    name: str
    kind: str
    fs_hz: float
    learnt: F32
    windows: F32


def untouched(data: Path) -> list[Untouched]:
    """Whole recordings; the profile is of ten windows of the healthy one."""
    out = []
    with np.load(data / "ims_set2.npz", allow_pickle=False) as z:
        ims = (z["x_milli"] / np.float32(1000.0)).transpose(0, 2, 1)
    for name, c in (("IMS bearing 1", [0]), ("IMS bearing 2", [1]), ("IMS bearing 3", [2]), ("IMS bearing 4", [3]), ("IMS, 4 channels", [0, 1, 2, 3])):
        x, few = ims[:, c], ims[:200:20, c]
        out += [
            Untouched(f"{name}, files 0 to 499", "healthy", 20000.0, few, x[:500]),
            Untouched(f"{name}, files 500 to 981", "faulty", 20000.0, few, x[500:982]),
            Untouched(f"{name}, after shutdown", "off", 20000.0, few, x[982:]),
        ]
    with np.load(data / "cwru.npz", allow_pickle=False) as z:
        for name, normal, faults, fs, n in (
            ("CWRU 48 kHz", "normal48k/normal_0/DE", "DE48k", 48000.0, 8192),
            ("CWRU 12 kHz", "normal12k_decimated/normal_0/DE", "DE12k", 12000.0, 2048),
        ):
            x = _cut(z[normal], n)
            out.append(Untouched(f"{name}, normal", "healthy", fs, x[:10], x))
            out += [Untouched(f"{name}, {k.split('/')[1]}", "faulty", fs, x[:10], _cut(z[k], n)) for k in z.files if k.startswith(faults)]
    if (data / "hit_sm.npz").exists():
        with np.load(data / "hit_sm.npz", allow_pickle=False) as z:
            fs = float(z["fs"])
            for speed in ("600", "900"):
                x = _cut(z[f"mfs/Normal_{speed}"], 8192)
                out.append(Untouched(f"HIT-SM {speed}, normal", "healthy", fs, x[:10], x))
                names = sorted(k for k in z.files if k.endswith(speed) and "Normal" not in k)
                out += [Untouched(f"HIT-SM {speed}, {k[4:]}", "faulty", fs, x[:10], _cut(z[k], 8192)) for k in names]
    for name, normal, anomaly in (("MIMII fan", "fan/normal", "fan/anomaly"), ("DCASE slider", "slider/normal", None)):
        if (data / "sound" / normal).exists():
            x = np.concatenate([_cut(c, 160000) for c in _clips(data / "sound" / normal)])
            out.append(Untouched(f"{name}, normal", "healthy", 16000.0, x[:: max(1, len(x) // 10)][:10], x))
            if anomaly is not None:
                bad = np.concatenate([_cut(c, 160000) for c in _clips(data / "sound" / anomaly)])
                out.append(Untouched(f"{name}, anomalous", "faulty", 16000.0, x[:: max(1, len(x) // 10)][:10], bad))
    return out


def _clips(folder: Path) -> list[F32]:
    out = []
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as file:
            out.append(np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768.0)
    return out


def _cut(x: Any, n: int) -> F32:
    """(N,) -> (k, 1, n)."""
    x = np.asarray(x, np.float32)
    return x[: len(x) // n * n].reshape(-1, 1, n)


def look(whole: Untouched) -> dict[str, Any]:
    """What is said of each window: nothing healthy or faulty may be withheld, nothing healthy have a quality alarm."""
    known = quality.Profile.of(whole.learnt, whole.fs_hz)
    state, verdicts, alarms = trouble.Trouble(), [], 0
    for i, window in enumerate(whole.windows):
        window = np.ascontiguousarray(window)
        verdict = quality.inspect(window, whole.fs_hz, known, trouble.offset(state, window))
        state = trouble.settle(state, verdict)
        state, told = trouble.note(state, verdict.reasons, T0 + i, Alarm(), "quality")
        alarms += told is not None and state.episode is not None
        verdicts.append(verdict)
    withheld = sum(not quality.votes(v.quality, v.reasons) for v in verdicts)
    lost = sum(v.reasons == (quality.SIGNAL_LOST,) for v in verdicts)
    ok = lost == len(verdicts) if whole.kind == "off" else withheld == 0 and (alarms == 0 or whole.kind != "healthy")
    return {
        "recording": whole.name, "kind": whole.kind, "windows": len(verdicts), "no_vote": withheld, "quality_alarms": alarms,
        "reasons": dict(Counter(r for v in verdicts for r in v.reasons)), "ok": bool(ok),
    }  # fmt: skip


def as_they_are(rows: list[dict[str, Any]]) -> str:
    """The section of docs/quality.md."""
    lines = ["| recordings as they are | windows | without a vote | quality alarms | reasons |", "|---|---|---|---|---|"]
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for r in rows:
        # The many faults of one rig are one row.
        name = f"{r['recording'].split(',')[0]}, faults" if r["recording"].startswith(("CWRU", "HIT")) and r["kind"] == "faulty" else r["recording"]
        old = merged.setdefault((name, r["kind"]), {"windows": 0, "no_vote": 0, "quality_alarms": 0, "reasons": {}, "ok": True})
        counts = {k: old[k] + r[k] for k in ("windows", "no_vote", "quality_alarms")}
        reasons = dict(Counter(old["reasons"]) + Counter(r["reasons"]))
        merged[name, r["kind"]] = {"recording": name, **counts, "reasons": reasons, "ok": old["ok"] and r["ok"]}
    for r in merged.values():
        found = ", ".join(f"{k} {v}" for k, v in r["reasons"].items()) or "none"
        lines.append(f"| {r['recording']} | {r['windows']} | {r['no_vote']} | {r['quality_alarms']} | {found}{'' if r['ok'] else ' **(not wanted)**'} |")
    return "\n".join([f"{sum(r['ok'] for r in rows)} of {len(rows)} recordings as wanted.", "", *lines])


def markdown(rows: list[dict[str, Any]], seed: int) -> str:
    """The section of docs/quality.md."""
    lines = [
        "| recording | fault in the middle third | named | verdict | machine events | scores resume |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        verdict = r["verdict"] or "none"
        lines.append(
            f"| {r['recording']} | {r['fault']} | {'yes' if r['named'] else '**no**' if r['judged'] else 'no (not judged)'} | {verdict} | {r['machine_events']} | "
            f"{'yes' if r['resumes'] else '**no**'} |"
        )
    judged = [r for r in rows if r["judged"]]
    good = sum(r["ok"] for r in judged)
    return "\n".join([f"{good} of {len(judged)} judged cells as wanted (seed {seed}).", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run all cells."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=None, help="of where and how large the faults are; drawn if absent")
    parser.add_argument("--only", default="", help="recordings whose name holds this text")
    parser.add_argument("--write", action="store_true", help="write the table into docs/quality.md")
    a = parser.parse_args(argv)
    data = _data.data_dir()
    missing = [name for name in ("ims_set2.npz", "cwru.npz", "sound/fan/normal") if not (data / name).exists()]
    if missing:
        return _data.skip(NAME, f"{data} has no {', '.join(missing)}")
    seed = int(os.environ.get("SEED", 0)) or a.seed or secrets.randbelow(10**6) + 1
    say(f"seed {seed}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for k, stream in enumerate(streams(Path(folder), data)):
            if a.only not in stream.name:
                continue
            whole = stream.messages(stream.x)
            rows.append(judged(stream, "none", None, run(stream, whole, receipts(stream, whole, "none", np.random.default_rng(seed)))))
            faults = (*FAULTS, *(OF_SEVERAL if len(stream.x) > 1 else ()))
            for i, (name, fault, expected) in enumerate(faults):
                expected = OTHERWISE.get((name, stream.name.split()[0].rstrip(",")), expected)
                rng = np.random.default_rng([seed, k, i])
                messages = fault(stream, *stream.middle(), rng)
                found = run(stream, messages, receipts(stream, messages, name, rng), timed=name != RECEIVED)
                rows.append(judged(stream, name, expected, found))
            for r in rows[-len(faults) - 1 :]:
                say(
                    f"{'ok  ' if r['ok'] else 'MISS'} {r['recording'][:30]:30s} {r['fault']:30s} {r['verdict'] or '-':18s} "
                    f"events {r['machine_events']} resumes {r['resumes']} {r['counts']}"
                )
    seen = [look(w) for w in untouched(data) if a.only in w.name]
    for r in seen:
        say(f"{'ok  ' if r['ok'] else 'MISS'} {r['recording']:40s} {r['windows']:5d} windows, {r['no_vote']} without a vote, {r['reasons']}")
    if a.write:
        write_section(NAME, markdown(rows, seed), PAGE)
        write_section("untouched", as_they_are(seen), PAGE)
    verdicts = [{k: v for k, v in r.items() if k != "counts"} for r in rows]
    ok = all(r["ok"] for r in rows if r["judged"]) and all(r["ok"] for r in seen)
    return _data.finish(NAME, ok, seed=seed, verdicts=verdicts, untouched=seen)


if __name__ == "__main__":
    sys.exit(main())
