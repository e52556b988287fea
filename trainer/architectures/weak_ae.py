"""Weakly supervised autoencoder (S4): the dense autoencoder on 128 × 32 log-mel, trained in two stages.

The score is S(x) = ||x - f(x)||² of a patch, averaged over the patches of a clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.architectures import dense_ae

SCORE = {"kind": "reconstruction", "error": "sse"}
CONTEXT = {"over": "frames", "width": 32, "hop": 32}
LOSS = "sse"


def build(shape: tuple[int, int], *, units: int = 128, depth: int = 4, latent: int = 8) -> Any:
    """As `dense_ae.build`."""
    return dense_ae.build(shape, units=units, depth=depth, latent=latent)


def train(network: Any, course: Any, *, stage2: int = 0, stage2_rate: float = 0.99) -> None:
    """Healthy patches first; then, for `stage2` epochs, the hinge of `losses.hinge` with labelled anomalies.

    stage2_rate : share of the training scores below the hinge's limit a (r of S4), 0.5 to 0.9999
    """
    from edge_agent.errors import RecordingError
    from trainer import fit, losses

    if not 0.5 <= stage2_rate <= 0.9999:
        raise ValueError(f"stage2_rate is {stage2_rate}; expected 0.5 to 0.9999")
    fit.once(network, course, losses.sse)
    if not stage2:
        return
    data = course.data
    if not len(data.anomalies):
        raise RecordingError(
            f"{course.recipe.origin}: train.stage2 is {stage2}, but no labelled anomalous recording is there "
            "to learn from: set split.anomalies and label some (folder `anomaly`), or set train.stage2 to 0"
        )
    a = _hinge_limit(network, data.x, stage2_rate)
    course.figures |= {"hinge_limit": a, "stage2_epochs": float(stage2)}
    course.descend(
        "stage 2", network, losses.hinge(a), y=np.ones(len(data.x)), epochs=stage2, beside=data.anomalies,
        overlap=course.how.overlap, name="stage2_loss",
    )  # fmt: skip


def _hinge_limit(network: Any, x: Any, rate: float) -> float:
    """Quantile `rate` of the gamma distribution fitted to S(x) of the training patches (m, ...): S4's a.

    From held-out patches, whose error is about twice as large where clips are few, the hinge pushes anomalies
    further than the network can tell them from fresh healthy clips: on simulated fans AUC fell by 0.09 with twice
    this limit (docs/decisions/0007).
    """
    from edge_agent import thresholds
    from trainer import fit

    s = np.square(x - fit.predict(network, x)[0]).sum(tuple(range(1, x.ndim)), dtype=np.float64)
    return thresholds.fit(s, "gamma", 1.0 - rate).value
