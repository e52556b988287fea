"""Weakly supervised autoencoder (S4): the dense autoencoder on 128 × 32 log-mel, trained in two stages.

The score is S(x) = ||x - f(x)||² of a patch, averaged over the patches of a clip; see `trainer.losses`
for the second stage.
"""

from __future__ import annotations

from typing import Any

from trainer.architectures import dense_ae

SCORE = {"kind": "reconstruction", "error": "sse"}
CONTEXT = {"over": "frames", "width": 32, "hop": 32}
LOSS = "sse"


def build(shape: tuple[int, int], *, units: int = 128, depth: int = 4, latent: int = 8) -> Any:
    """As `dense_ae.build`."""
    return dense_ae.build(shape, units=units, depth=depth, latent=latent)
