"""Every committed bundle in the agent: through a real broker into the database, equal to `edge-agent score`."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import scores_as_offline
from conftest import Broker

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parent for path in (ROOT / "models").glob("*/bundle.json"))
#: What a bundle may weigh, all files together.
MAX_BYTES = 3_000_000


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_committed_bundle_scores_in_the_agent_as_offline(
    path: Path, tmp_path: Path, broker: Broker
) -> None:
    """One row a window sent, none of them lost, each score equal to the command's to the last bit."""
    scores_as_offline(path, tmp_path, broker.port)


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_committed_bundle_is_small(path: Path) -> None:
    """Every bundle weighs at most 3 MB as shipped, all its files together."""
    assert sum(file.stat().st_size for file in path.iterdir()) <= MAX_BYTES


def test_there_are_bundles_to_try() -> None:
    """The folder is found: nothing above passes for want of a bundle."""
    assert {"demo-lstm-ae", "sound-mobilenet-v2", "sound-weak-ae"} <= {path.name for path in BUNDLES}
