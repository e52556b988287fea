"""Every committed bundle in the agent: through a real broker into the database, equal to `edge-agent score`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agents import Agent, offline, write_plant
from bundles import golden_noise
from conftest import Broker, until

from edge_agent import bundle as bundles
from edge_agent.config import load
from edge_agent.replay import replay

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parent for path in (ROOT / "models").glob("*/bundle.json"))
#: Windows that get a score.
SCORED = 3
#: What a bundle may weigh, all files together.
MAX_BYTES = 3_000_000


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_committed_bundle_scores_in_the_agent_as_offline(
    path: Path, tmp_path: Path, broker: Broker
) -> None:
    """One row a window sent, none of them lost, each score equal to the command's to the last bit."""
    bundle = bundles.load(path)
    spec = bundle.manifest.features
    waiting = spec.context.width - 1 if spec.context.over == "windows" else 0
    n_windows = waiting + SCORED
    np.savez(tmp_path / "run.npz", x=golden_noise(path, n_windows), fs=np.float64(spec.fs_hz))
    packed = {"format": "f32le", "header": "ts_seq", "n_channels": spec.n_channels}
    sensor = {
        "model": str(path), "fs_hz": spec.fs_hz, "payload": packed, "channels": list(range(spec.n_channels)),
    }  # fmt: skip
    config = write_plant(tmp_path, broker.port, {"s": sensor})
    with Agent(config) as agent:
        until(lambda: agent.daemon._transport.connected)
        replay(load(config), "s", tmp_path / "run.npz")
        until(lambda: agent.daemon.worker.sensors["s"].windows >= n_windows, 60.0, f"{n_windows} windows")
    got = agent.rows("SELECT seq, score FROM scores ORDER BY id")
    assert [seq for seq, _ in got] == list(range(n_windows))
    scores = [score for _, score in got]
    assert scores == offline(tmp_path / "run.npz", path)
    assert scores[:waiting] == [None] * waiting
    assert np.isfinite(np.array(scores[waiting:], float)).all()


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_committed_bundle_is_small(path: Path) -> None:
    """Every bundle weighs at most 3 MB as shipped, all its files together."""
    assert sum(file.stat().st_size for file in path.iterdir()) <= MAX_BYTES


def test_there_are_bundles_to_try() -> None:
    """The folder is found: nothing above passes for want of a bundle."""
    assert {"demo-lstm-ae", "sound-mobilenet-v2", "sound-weak-ae"} <= {path.name for path in BUNDLES}
