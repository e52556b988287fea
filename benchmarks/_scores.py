"""Scores of given windows under every bundle, as JSON: run on two machines, the outputs are compared (`benchmarks.elsewhere`).

    python -m benchmarks._scores MODELS WINDOWS.npz    ->  {"golden": {bundle: ratio off}, "ratios": {bundle: [...]}, ...}

Needs what the agent needs, and imports nothing else.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

from edge_agent import bundle as bundles


def scores(folder: Path, windows: dict[str, np.ndarray]) -> dict[str, object]:
    """Load each bundle, which verifies its golden windows here, and score windows[name] (m, C, n) as ratios."""
    golden, ratios = {}, {}
    for path in sorted(p.parent for p in folder.glob("*/bundle.json")):
        bundle = bundles.load(path, golden=False)
        files = {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}
        golden[path.name] = bundles.verify_golden(bundle, files, bundle.manifest)
        with np.load(path / bundles.GOLDEN, allow_pickle=False) as data:
            history = data["features"][0].astype(np.float32)
        ratios[path.name] = []
        for window in windows[path.name]:
            vectors = bundle.judge.vectors(window.astype(np.float32))
            vectors = np.concatenate([history[: len(history) - len(vectors)], vectors])
            ratios[path.name].append(bundle.judge.score(vectors).value / bundle.threshold.value)
    return {"golden": golden, "ratios": ratios, "machine": platform.machine(), "python": platform.python_version(), "packages": packages()}


def packages() -> dict[str, str]:
    """Versions of what computes."""
    found = {}
    for name in ("ai-edge-litert", "numpy", "scipy", "PyWavelets"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def windows_of(folder: Path, seed: int, more: int = 8) -> dict[str, np.ndarray]:
    """The golden windows of each bundle, and `more` of them at other levels with noise in them, (m, C, n) float32."""
    rng = np.random.default_rng(seed)
    made = {}
    for path in sorted(p.parent for p in folder.glob("*/bundle.json")):
        with np.load(path / "golden.npz", allow_pickle=False) as data:
            golden = data["windows"].astype(np.float32) * np.float32(data["window_scale"])
        picked = golden[rng.integers(0, len(golden), more)]
        level = rng.uniform(0.5, 3.0, (more, 1, 1))
        noise = rng.normal(size=picked.shape) * picked.std(axis=-1, keepdims=True) * rng.uniform(0, 1, (more, 1, 1))
        made[path.name] = np.concatenate([golden, (picked * level + noise).astype(np.float32)])
    return made


if __name__ == "__main__":
    with np.load(sys.argv[2], allow_pickle=False) as given:
        print(json.dumps(scores(Path(sys.argv[1]), dict(given))))
