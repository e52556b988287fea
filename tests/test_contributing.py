"""The examples of CONTRIBUTING.md run as they are printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(path, language="python"):
    """The text of the code block that is headed by this path."""
    (code,) = re.findall(rf"```{language}\n# {re.escape(path)}\n(.*?)```", TEXT, re.DOTALL)
    return code


def example(path):
    """The module that a code block, headed by its path, defines."""
    code = block(path)
    module = types.ModuleType(Path(path).stem)
    exec(compile(code, path, "exec"), module.__dict__)
    return module


def test_the_feature_example_measures_what_it_says():
    """A sine A cos(ω i) has the Teager energy A² sin² ω, silence has none, and a batch is a shape."""
    extractor = example("edge_agent/features/teager.py").build(1000.0, 4096)
    sine = 2 * np.cos(0.3 * np.arange(4096)).astype(np.float32)
    assert float(extractor(sine)[0, 0]) == pytest.approx(4 * np.sin(0.3) ** 2, rel=1e-4)
    assert extractor(np.zeros((5, 2, 4096), np.float32)).shape == (5, 2, 1, 1)
    assert extractor.names == ("teager_energy",)


def test_the_payload_example_round_trips_and_refuses():
    """decode undoes encode; every truncation decodes or raises PayloadError."""
    module, layout = example("edge_agent/payloads/hex16.py"), PayloadLayout("hex16", scale=0.5)
    samples = np.array([[-16384.0, -0.5, 0.0, 1.5, 16383.5]], np.float32)
    wire = module.encode(Chunk(samples), layout)
    assert np.array_equal(module.decode(wire, layout).samples, samples)
    refused = 0
    for n in range(len(wire)):
        try:
            assert module.decode(wire[:n], layout).samples.shape[1] == n // 4
        except PayloadError:
            refused += 1
    assert refused == len(wire) - len(wire) // 4 + 1
    for junk in (b"zz", "üü".encode()):
        with pytest.raises(PayloadError):
            module.decode(junk, layout)


def test_every_path_that_contributing_names_exists():
    """Files and folders in back-quotes are there."""
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:docs|tests|trainer|edge_agent|features|architectures|recordings)/[\w./-]+)`", TEXT):
        if "NAME" not in name:
            assert any((root / base / name).exists() for base in ("", "edge_agent", "trainer")), name


def test_a_feature_and_a_network_are_one_file_each(tmp_path):
    """With nothing but the two example files added to a copy of the packages, the example recipe becomes a bundle
    that the agent's own command scores a recording with."""
    for package in ("edge_agent", "trainer"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("edge_agent/features/teager.py", "trainer/architectures/linear_ae.py"):
        (tmp_path / path).write_text(block(path))
    (tmp_path / "linear.yaml").write_text(block("linear.yaml", "yaml"))
    samples = np.random.default_rng(0).standard_normal(3 * 4096).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)

    def said(*command):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    (summary,) = said("trainer", "fit", "linear.yaml", "--out", "linear", "--json")
    assert summary["model"] == "linear_ae"
    assert summary["quantization"] in ("int8", "float16")
    features = json.loads((tmp_path / "linear" / "bundle.json").read_text())["features"]["families"]
    assert features[0]["kind"] == "teager"
    rows = said("edge_agent", "score", "x.npy", "--bundle", "linear", "--fs", "10240", "--json")
    assert len(rows) == 3
    assert all(row["score"] > 0 for row in rows)
