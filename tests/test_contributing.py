"""The examples of CONTRIBUTING.md run as they are printed."""

from __future__ import annotations

import re
import types
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(path):
    """The module that a code block, headed by its path, defines."""
    (code,) = re.findall(rf"```python\n# {re.escape(path)}\n(.*?)```", TEXT, re.DOTALL)
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
