"""What a device loads: scoring a window needs none of a workstation's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import make_indicator_bundle

from edge_agent import bundle as bundles
from edge_agent import scoring, thresholds
from edge_agent.bundle import Manifest, Quantization, Residual
from edge_agent.features import Family, FeatureSpec, kinds

ROOT = Path(__file__).parents[1]
FORBIDDEN = (
    "tensorflow", "keras", "matplotlib", "pandas", "pydantic", "librosa", "sklearn", "scipy.signal", "scipy.stats",
    "trainer",
)  # fmt: skip
#: Loads the agent, scores one stored window of each bundle named, prints every module that came along.
SCORE_ONE = """
import json, sys
from pathlib import Path
import numpy as np
from edge_agent import bundle, cli, daemon, pipeline
for path in sys.argv[1:]:
    loaded = bundle.load(Path(path))
    with np.load(Path(path) / "golden.npz") as data:
        window = data["windows"][0].astype(np.float32) * np.float32(data["window_scale"])
        enough = data["features"][0]
    vectors = loaded.judge.vectors(window)
    vectors = np.concatenate([enough[: len(enough) - len(vectors)], vectors])
    score = loaded.judge.score(vectors)
    assert np.isfinite(score.value)
    loaded.judge.why(score.residual)
print(json.dumps(sorted(sys.modules)))
"""


def committed() -> list[Path]:
    """The bundles under models/."""
    return sorted(p.parent for p in (ROOT / "models").glob("*/bundle.json"))


def forbidden_after(code: str, *arguments: str) -> list[str]:
    """Modules of FORBIDDEN that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    return [m for m in loaded if m in FORBIDDEN or m.startswith(tuple(f"{name}." for name in FORBIDDEN))]


def every_family(path: Path) -> Path:
    """A bundle whose features come from every family that gives one vector a window by default."""
    fs_hz, n = 16000.0, 8192
    bearing = {"n_balls": 9, "ball_mm": 7.94, "pitch_mm": 39.04, "contact_deg": 0.0}
    spec = FeatureSpec(
        fs_hz, n, n, 1,
        (
            Family("time_domain"),
            Family("spectral"),
            Family("spectral", {"mode": "psd", "n_bands": 8}),
            Family("spectral", {"mode": "stft_means"}),
            Family("envelope", {"bearing": bearing, "speed_hz": 30.0}),
        ),
    )  # fmt: skip
    windows = np.random.default_rng(0).standard_normal((40, 1, n)).astype(np.float32)
    features = bundles.FeatureSet(spec)
    vectors = features(windows)
    index = features.names.index("rms")
    scores = vectors[:, 0, index].astype(np.float64)
    residual = tuple(1.0 for _ in features.names)
    manifest = Manifest(
        bundles.SCHEMA, path.name, "1", "indicator", spec, scoring.ScoreRule("indicator", {"index": index}),
        thresholds.fit(scores, "gamma", 1e-3), Residual(residual, residual), Quantization("none"), {},
    )  # fmt: skip
    bundles.write(
        path, manifest, model=None, calibration=scores, groups=None, golden_windows=windows[:1],
        golden_features=vectors[:2], card="# every family\n",
    )  # fmt: skip
    return path


def test_scoring_with_a_bundle_of_the_tests_loads_no_workstation_library(tmp_path: Path) -> None:
    """The agent and one scored window of an indicator bundle leave no forbidden name in sys.modules."""
    make_indicator_bundle(tmp_path / "rms")
    assert forbidden_after(SCORE_ONE, str(tmp_path / "rms")) == []


def test_every_vibration_family_stays_on_the_device_path(tmp_path: Path) -> None:
    """Statistics, spectra and envelope of one window load neither scipy.signal nor scipy.stats."""
    assert {"time_domain", "spectral", "envelope"} <= set(kinds())
    assert forbidden_after(SCORE_ONE, str(every_family(tmp_path / "every"))) == []


def test_scoring_with_each_committed_bundle_loads_no_workstation_library() -> None:
    """One window of every bundle under models/, through its own network, leaves no forbidden name."""
    found = committed()
    if not found:
        pytest.skip("models/ holds no bundle: train them with `make models`")
    for path in found:
        assert forbidden_after(SCORE_ONE, str(path)) == [], path.name


def test_a_window_with_its_check_of_quality_needs_no_more_of_scipy_than_its_transforms() -> None:
    """From samples to alarm engine with the shipped bundle of the demo: scipy.fft, scipy.special and numpy's test tools, 20 MiB
    and 0.3 s of every start, stay out."""
    code = """
import json, sys
from pathlib import Path
import numpy as np
from edge_agent import bundle, cli, daemon, offline, pipeline
from edge_agent.signals import Chunk
ready = offline.pipeline_for(bundle.load(Path(sys.argv[1])))
with np.load(Path(sys.argv[1]) / "golden.npz") as data:
    window = data["windows"][0].astype(np.float32) * np.float32(data["window_scale"])
assert ready.judge.profile is not None
state, outcome = pipeline.step_chunk(ready, pipeline.initial(ready), Chunk(window, t=1.8e9), 1.8e9 + 10)
assert [m.quality for m in outcome.measured] == ["good"]
print(json.dumps(sorted(sys.modules)))
"""
    path = ROOT / "models" / "demo-vae"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert {"scipy.fft", "scipy.special", "numpy.testing"}.isdisjoint(json.loads(done.stdout))


def test_the_check_itself_sees_a_workstation_library(tmp_path: Path) -> None:
    """The same subprocess with one import of scipy.stats before it is caught."""
    make_indicator_bundle(tmp_path / "rms")
    assert "scipy.stats" in forbidden_after("import scipy.stats" + SCORE_ONE, str(tmp_path / "rms"))
