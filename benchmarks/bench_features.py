"""Features against the usual library calls: same work, same process, one thread, results compared.

    python benchmarks/bench_features.py

Ours and the rival are timed in turn, ten calls each, many times, and the medians are printed, so that a busy
machine slows both. `agree` is the largest difference of the results: of a statistic relative to itself, of a
spectrum relative to its largest value, of log-mel in dB.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(_pool, "1")

import json
import time
from collections.abc import Callable
from typing import Any

import librosa
import numpy as np
from scipy import signal, stats

from edge_agent.bearings import Bearing
from edge_agent.features import build

FS, N = 20000.0, 8192
SOUND_FS, SOUND_N = 16000.0, 160000
BEARING = {"n_balls": 16, "ball_mm": 8.407, "pitch_mm": 71.501, "contact_deg": 15.17}
SPEED_HZ = 2000 / 60
BAND = (2000.0, 6000.0)


def vibration(seed: int = 0) -> Any:
    """8192 samples of a bearing with an outer-race defect in noise, float32."""
    rng = np.random.default_rng(seed)
    since = (np.arange(N) / FS) % (1.0 / Bearing.from_mapping(BEARING).frequencies(SPEED_HZ).bpfo)
    blows = np.exp(-since / 1e-3) * np.sin(2 * np.pi * 4000 * since)
    return (blows + 0.3 * rng.standard_normal(N) + 0.05).astype(np.float32)


def sound(seed: int = 1) -> Any:
    """10 s at 16 kHz: hum, a whine and broadband noise, float32."""
    t = np.arange(SOUND_N) / SOUND_FS
    hum = 0.2 * np.sin(2 * np.pi * 50 * t) + 0.05 * np.sin(2 * np.pi * 1210 * t)
    return (hum + 0.05 * np.random.default_rng(seed).standard_normal(SOUND_N)).astype(np.float32)


def usual_statistics(x: Any) -> Any:
    """15 statistics as tutorials write them."""
    rms = np.sqrt(np.mean(x**2))
    abs_mean = np.mean(np.abs(x))
    sqrt_amplitude = np.mean(np.sqrt(np.abs(x))) ** 2
    peak = np.max(np.abs(x))
    return np.array(
        [
            np.mean(x),
            np.std(x),
            rms,
            abs_mean,
            sqrt_amplitude,
            peak,
            np.ptp(x),
            stats.skew(x),
            stats.kurtosis(x, fisher=False),
            peak / rms,
            rms / abs_mean,
            peak / abs_mean,
            peak / sqrt_amplitude,
            np.sum(x**2),
            np.mean(np.diff(np.signbit(x))),
        ]
    )


def usual_stft(x: Any) -> Any:
    _, _, z = signal.stft(x - x.mean(), FS, nperseg=256, boundary=None, padded=False)
    return np.abs(z).mean(axis=1)[1:-1]


def usual_psd(x: Any) -> Any:
    _, psd = signal.welch(x, FS, nperseg=N)
    return psd[1:]


_WINDOW = signal.get_window("hann", N).astype(np.float32)


def masked_hilbert_spectrum(x: Any) -> Any:
    """The rival that yields the same numbers: ideal band-pass, scipy.signal.hilbert, windowed spectrum."""
    spectrum = np.fft.rfft(x)
    f = np.fft.rfftfreq(N, 1 / FS)
    spectrum[(f < BAND[0]) | (f > BAND[1])] = 0
    envelope = np.abs(signal.hilbert(np.fft.irfft(spectrum, N)))
    return 2 / _WINDOW.sum() * np.abs(np.fft.rfft((envelope - envelope.mean()) * _WINDOW))


def lines(amplitude: Any) -> Any:
    """The largest amplitude near each of three harmonics of the four defect frequencies, summed."""
    f = np.arange(amplitude.size) * FS / N
    known = Bearing.from_mapping(BEARING).frequencies(SPEED_HZ)
    found = []
    for g in (known.bpfo, known.bpfi, 2 * known.bsf, known.ftf):
        near = [np.abs(f - h * g) <= max(0.02 * h * g, FS / N) for h in (1, 2, 3)]
        found.append(sum(amplitude[mask].max() for mask in near))
    return np.array(found)


def usual_envelope(x: Any) -> Any:
    return lines(masked_hilbert_spectrum(x))


def usual_log_mel(y: Any) -> Any:
    mel = librosa.feature.melspectrogram(
        y=y, sr=SOUND_FS, n_fft=1024, hop_length=512, n_mels=128, htk=True, norm=None, center=False
    )
    return librosa.power_to_db(mel, top_db=None).T


def interleaved_ms(*calls: Callable[[], Any], seconds: float = 1.0) -> list[float]:
    """Median milliseconds of each call, timed in turn until `seconds` are spent; at least 3 rounds of 10."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < 30 or time.perf_counter() < end:
        for call, mine in zip(calls, times, strict=True):
            for _ in range(10):
                start = time.perf_counter()
                call()
                mine.append(time.perf_counter() - start)
    return [1e3 * float(np.median(t)) for t in times]


def disagreement(a: Any, b: Any) -> float:
    """Largest relative difference; of a spectrum's values relative to the largest, of statistics each to itself."""
    scale = np.maximum(np.abs(b), 1e-3) if len(b) == 15 else np.abs(b).max()
    return float((np.abs(a - b) / scale).max())


def light_families() -> list[Any]:
    """The four extractors of the light vibration window: statistics, STFT means, PSD, envelope."""
    return [
        build("time_domain", FS, N, {}),
        build("spectral", FS, N, {"mode": "stft_means"}),
        build("spectral", FS, N, {"mode": "psd"}),
        build("envelope", FS, N, {"band": BAND, "bearing": BEARING, "speed_hz": SPEED_HZ}),
    ]


def rows(seconds: float = 1.0) -> list[dict[str, Any]]:
    """One row a piece of work: {work, ms, rival, rival_ms, ratio, agree}."""
    x, y = vibration(), sound()
    statistics, stft, psd, envelope = families = light_families()
    mel = build("log_mel", SOUND_FS, SOUND_N, {"n_fft": 1024, "hop": 512, "n_mels": 128})

    def light() -> Any:
        return [e(x)[0] for e in families]

    def usual_light() -> Any:
        return [usual_statistics(x), usual_stft(x), usual_psd(x), usual_envelope(x)]

    work: list[tuple[str, Callable[[], Any], str, Callable[[], Any]]] = [
        (
            "15 time statistics, 8192",
            lambda: statistics(x)[0],
            "np.mean, np.std, np.ptp, ..., scipy.stats.skew(x), scipy.stats.kurtosis(x, fisher=False)",
            lambda: usual_statistics(x),
        ),
        (
            "STFT 127 means, 8192",
            lambda: stft(x)[0],
            "abs(scipy.signal.stft(x - x.mean(), fs, nperseg=256, boundary=None, padded=False)[2]).mean(1)[1:-1]",
            lambda: usual_stft(x),
        ),
        (
            "PSD, 8192",
            lambda: psd(x)[0],
            "scipy.signal.welch(x, fs, nperseg=8192)[1][1:]",
            lambda: usual_psd(x),
        ),
        (
            "envelope spectrum at 4 bearing frequencies, 8192",
            lambda: envelope(x)[0],
            "np.fft band mask, abs(scipy.signal.hilbert(...)), np.fft.rfft, max near 3 harmonics",
            lambda: usual_envelope(x),
        ),
        ("light vibration window: the four above, 8192", light, "the four rivals above", usual_light),
        (
            "log-mel, 10 s at 16 kHz, 1024/512/128",
            lambda: mel(y),
            "librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=16000, n_fft=1024, hop_length=512, "
            "n_mels=128, htk=True, norm=None, center=False), top_db=None)",
            lambda: usual_log_mel(y),
        ),
    ]
    result = []
    for name, ours, quoted, rival in work:
        a, b = ours(), rival()
        if name.startswith("log-mel"):
            agree = float(np.abs(a - b).max())
        else:
            pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
            agree = max(disagreement(*pair) for pair in pairs)
        ms, rival_ms = interleaved_ms(ours, rival, seconds=seconds)
        result.append(
            {
                "work": name,
                "ms": round(ms, 4),
                "rival": quoted,
                "rival_ms": round(rival_ms, 4),
                "ratio": round(rival_ms / ms, 2),
                "agree": float(f"{agree:.2g}"),
            }
        )
    return result


if __name__ == "__main__":
    for line in rows():
        print(json.dumps(line))
