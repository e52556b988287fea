"""The two bundles that `make bench` runs: made on the spot by the trainer, from data made on the spot.

    vibration  8192 points at 20 kHz: 15 statistics, 127 STFT means, the PSD in 64 bands, 4 envelope lines -> dense AE
    sound      10 s at 16 kHz: 313 log-mel frames of 128, stacked by 5 as in the DCASE baseline -> dense AE

Speed does not depend on what the weights are; agreement with the rival does, so both networks are trained,
shortly, and the rival runs the same weights in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_features import BAND, BEARING, FS, SOUND_FS, SOUND_N, SPEED_HZ, N, sound, vibration
from edge_agent.bundle import Bundle
from trainer import export, recipe, run

_WINDOWS, _CLIPS = 400, 12
#: Of 64 bins each: a small network sees the shape of the spectrum, not 4096 single bins.
PSD_BANDS = 64


@dataclass(frozen=True)
class Made:
    """A bundle and what the rivals need: the Keras model, and the same weights as a float32 TFLite file."""

    bundle: Bundle
    network: Any
    float32: bytes


def vibration_bundle(folder: Path) -> Made:
    """`light` under `folder`."""
    data = folder / "vibration.npz"
    np.savez(data, x=np.concatenate([vibration(seed) for seed in range(_WINDOWS)]), fs=FS)
    return _make(
        folder / "light",
        {
            "name": "light",
            "model": "dense_ae",
            "data": {"path": str(data)},
            "window": {"n_samples": N},
            "features": [
                {"kind": "time_domain"},
                {"kind": "spectral", "mode": "stft_means"},
                {"kind": "spectral", "mode": "psd", "n_bands": PSD_BANDS},
                {"kind": "envelope", "band": list(BAND), "bearing": BEARING, "speed_hz": SPEED_HZ},
            ],
            "train": {"epochs": 5, "patience": 0, "validation": 0},
        },
    )


def sound_bundle(folder: Path) -> Made:
    """`clip` under `folder`."""
    data = folder / "clips"
    data.mkdir()
    for seed in range(_CLIPS):
        np.savez(data / f"clip_{seed:02d}.npz", x=sound(seed), fs=SOUND_FS)
    return _make(
        folder / "clip",
        {
            "name": "clip",
            "model": "dense_ae",
            "data": {"path": str(data)},
            "window": {"n_samples": SOUND_N},
            "features": [{"kind": "log_mel", "n_fft": 1024, "hop": 512, "n_mels": 128, "center": True}],
            "context": {"over": "frames", "width": 5, "hop": 1},
            "split": {"by": "recording", "train": [0, 2], "calibrate": [2, 12]},
            "train": {"epochs": 5, "batch": 128, "patience": 0, "validation": 0},
        },
    )


def _make(out: Path, mapping: dict[str, Any]) -> Made:
    plan = recipe.parse(mapping)
    made = run.run(plan, out)
    kind = made.manifest.quantization.type
    if kind != "int8":
        raise RuntimeError(f"bundle {plan.name} came out as {kind}; expected int8: {made.warnings}")
    features = made.bundle.judge.features
    shape = (features.spec.context.width, len(features.names))
    float32 = export.tflite(
        plan.model, shape, 0, plan.network, made.network.get_weights(), "float32", np.zeros((1, *shape), np.float32)
    )
    return Made(made.bundle, made.network, float32)
