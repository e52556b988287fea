"""Small real bundles for tests: an `indicator` over generated healthy noise, no network, no trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_agent import bundle as bundles
from edge_agent import thresholds
from edge_agent.bundle import Bundle, Manifest, Quantization, Residual
from edge_agent.features import Context, Family, FeatureSet, FeatureSpec
from edge_agent.quality import Profile
from edge_agent.scoring import ScoreRule

PER_WINDOW = Context()


def healthy(n: int, n_channels: int = 1, seed: int = 0, level: float = 1.0) -> np.ndarray:
    """(n_channels, n) float32 Gaussian noise whose RMS wanders by a few per cent, as a machine's does."""
    rng = np.random.default_rng(seed)
    knots = n // 512 + 2
    wander = 1.0 + 0.03 * np.interp(np.arange(n), 512 * np.arange(knots), rng.standard_normal(knots))
    return (level * wander * rng.standard_normal((n_channels, n))).astype(np.float32)


def make_indicator_bundle(
    path: Path,
    *,
    fs_hz: float = 1000.0,
    n_samples: int = 256,
    hop: int | None = None,
    feature: str = "rms",
    n_channels: int = 1,
    context: Context = PER_WINDOW,
    false_alarm_rate: float = 1e-4,
    unit: str | None = None,
    seed: int = 0,
    starts: np.ndarray | None = None,
    profile: Profile | None = None,
) -> Bundle:
    """Write and load a bundle whose score is `feature` of channel 0: about 1.0 for `healthy` and RMS.

    The limit is a gamma fit to 200 healthy windows; samples three times as large cross it at once.
    """
    spec = FeatureSpec(
        fs_hz=fs_hz,
        n_samples=n_samples,
        hop_samples=hop or n_samples,
        n_channels=n_channels,
        families=(Family("time_domain", {"names": [feature]}),),
        context=context,
    )
    features = FeatureSet(spec)
    samples = healthy(200 * n_samples, n_channels, seed)
    windows = samples.reshape(n_channels, 200, n_samples).swapaxes(0, 1)
    vectors = features(np.ascontiguousarray(windows))[:, 0, :]
    scores = vectors[:, 0].astype(np.float64)
    needed = context.width if context.over == "windows" else 1
    manifest = Manifest(
        schema=bundles.SCHEMA,
        name=path.name,
        version="1",
        model="indicator",
        features=spec,
        score=ScoreRule("indicator", {"index": 0}),
        threshold=thresholds.fit(scores, "gamma", false_alarm_rate),
        residual=Residual(tuple(vectors.mean(0).tolist()), tuple(np.maximum(vectors.std(0), 1e-6).tolist())),
        quantization=Quantization("none"),
        files={},
        unit=unit,
        training={"data": "generated noise", "seed": seed},
        profile=profile,
    )
    return bundles.write(
        path,
        manifest,
        model=None,
        calibration=scores,
        groups=None,
        starts=starts,
        golden_windows=windows[:2],
        golden_features=np.stack([vectors[i : i + needed] for i in range(4)]),
        card=f"# {path.name}\n\n{feature} of generated noise; for tests.\n",
    )


def golden_noise(path: Path, n_windows: int) -> np.ndarray:
    """(n, n_channels) float32 of a bundle's golden noise, which has the spectrum of its healthy recordings: so many
    windows, each of another loudness and the last three times as loud."""
    spec = bundles.read_manifest(path).features
    with np.load(path / bundles.GOLDEN) as data:
        golden = data["windows"] * float(data["window_scale"])
    n = spec.n_samples + (n_windows - 1) * spec.hop_samples
    parts = [(0.8 + 0.1 * (k % 5)) * golden[k % len(golden)] for k in range(-(-n // spec.n_samples))]
    parts[-1] = 3.0 * parts[-1]
    return np.concatenate(parts, axis=-1)[:, :n].T.astype(np.float32)
