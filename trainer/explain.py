"""Why one window scores as it does, as a picture's data: the input, where the score comes from, and what is normal.

window ─► patches ─► model ─► Score.excess()  (n_patches, width, F)
                                    └─ assembled over the patches ─► (T, F) ─ z against healthy windows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import bundle as bundles
from edge_agent import causes
from edge_agent.bundle import Bundle
from edge_agent.causes import Cause
from edge_agent.pipeline import Judge
from edge_agent.recordings import Recording, windows
from edge_agent.scoring import Score
from edge_agent.signals import F32, F64
from trainer import masks
from trainer.evaluate import Scored

#: Healthy windows from which the distribution of every cell is drawn, at most.
HEALTHY = 64
#: What the map of each score rule is, in words.
MAPS = {
    "reconstruction": "reconstruction error",
    "vae": "reconstruction error",
    "ensemble": "reconstruction error of the VAE",
    "gan": "mask: error of the generator",
    "log_odds": "Grad-CAM of the log-odds",
    "knn": "Grad-CAM of the distance",
    "distance": "squared input",
}
#: Rules whose map is Grad-CAM where the bundle allows it, and what it is where not.
ATTENTIVE, SQUARED = ("log_odds", "knn"), "squared input"


@dataclass(frozen=True)
class Normal:
    """How the map of healthy windows is distributed, feature by feature.

    cells : mean and deviation over every moment of every window, and the limits of a mask
    low, high : (F,) 5 and 95 % of the windows' means over time
    n : windows
    """

    cells: masks.Normal
    low: F64
    high: F64
    n: int


@dataclass(frozen=True)
class Explained:
    """One window: x (T, F) standardised input, where (T, F) map >= 0, and what carries it. The map may be shorter than the
    input: it ends with it.

    attention : whether the map of a classifier is Grad-CAM; a bundle without its head has none, nor has one whose
                input is no picture
    moments : (first, last) of the time axis in `unit`
    """

    name: str
    anomalous: bool
    end: float
    ratio: float
    kind: str
    names: tuple[str, ...]
    x: F32
    where: F32
    normal: Normal | None
    causes: tuple[Cause, ...]
    attention: bool = False
    moments: tuple[float, float] = (0.0, 1.0)
    unit: str = "s"

    @property
    def overlaid(self) -> bool:
        """Whether the map is read as a layer over the input."""
        return self.kind == "gan" or self.attention

    @property
    def what(self) -> str:
        """The map in words."""
        if self.attention:
            return MAPS[self.kind]
        name = SQUARED if self.kind in ATTENTIVE else MAPS[self.kind]
        return name if self.normal is None or self.overlaid else f"{name}, deviations from normal"

    @property
    def z(self) -> F64:
        """Like the map: deviations of each cell from the healthy mean; the map itself where no healthy window is known."""
        if self.normal is None:
            return np.asarray(self.where, np.float64)
        return np.asarray((self.where - self.normal.cells.mean) / self.normal.cells.std, np.float64)

    @property
    def mask(self) -> Any:
        """Like the map, bool: what is not healthy (`trainer.masks`); all False where no healthy window is known."""
        if self.normal is None:
            return np.zeros(self.where.shape, bool)
        return masks.mask(self.where, self.normal.cells)

    @property
    def sentence(self) -> str:
        """ "2.4 to 3.6 kHz carries 61 % of the excess"."""
        return causes.sentence(self.causes)


def assemble(patches: F32, hop: int) -> F32:
    """(n_patches, width, F), one every `hop` vectors -> (T, F); where patches overlap their mean, between them 0."""
    n, width, n_features = patches.shape
    total = np.zeros(((n - 1) * hop + width, n_features))
    count = np.zeros((len(total), 1))
    for i, patch in enumerate(patches):
        total[i * hop : i * hop + width] += patch
        count[i * hop : i * hop + width] += 1.0
    return np.asarray(total / np.maximum(count, 1.0), np.float32)


def maps(judge: Judge, vectors: F32) -> tuple[F32, F32, Score]:
    """(input (T, F), map (T, F), score) of the standardised vectors of one window or history.

    Where a rule scores the newest vectors of a history only, the map has those alone.
    """
    x = judge.features.patches(vectors)
    score = judge.score(vectors)
    excess = score.excess()
    if excess.shape[1] < x.shape[1] and len(x) > 1:
        # A rule that looks at the newest vector of each patch says nothing of those between.
        excess = np.pad(excess, ((0, 0), (x.shape[1] - excess.shape[1], 0), (0, 0)))
    hop = judge.features.spec.context.hop
    seen = excess if len(excess) == len(x) else np.repeat(excess[:1], len(x), axis=0)
    return assemble(x, hop), assemble(seen, hop), score


def histories(bundle: Bundle, recording: Recording) -> Iterator[tuple[float, F32]]:
    """(end in s, standardised vectors) of every window of a recording that has a score, as the agent forms them."""
    judge, spec = bundle.judge, bundle.manifest.features
    context = spec.context
    history, last = np.zeros((0, len(judge.features.names)), np.float32), None
    for window in windows(recording, spec.n_samples, spec.hop_samples):
        vectors = judge.vectors(window.samples)
        if context.over == "windows":
            if context.max_gap_s is not None and last is not None and window.start - last > context.max_gap_s:
                history = history[:0]
            history = vectors = np.concatenate([history, vectors])[-context.width :]
            last = window.end
            if len(history) < context.width:
                continue
        yield window.end, vectors


def chosen(scored: Sequence[Scored]) -> list[tuple[Scored, int]]:
    """The anomalous window of the highest score, and the normal one in the middle of its kind; either may lack."""
    picked = []
    for anomalous in (True, False):
        own = [
            (float(s.ratio[i]), k, int(i))
            for k, s in enumerate(scored)
            for i in np.flatnonzero(s.anomalous == anomalous)
        ]
        if own:
            own.sort()
            _, k, i = own[-1] if anomalous else own[len(own) // 2]
            picked.append((scored[k], i))
    return picked


def explain(path: Path, scored: Sequence[Scored]) -> list[Explained]:
    """The windows of `chosen`, each against up to HEALTHY healthy windows of the same recordings.

    scored : by `trainer.evaluate`; empty for an indicator, whose score is the feature it names
    """
    manifest = bundles.read_manifest(path)
    if manifest.score.kind == "indicator":
        return []
    loaded: dict[str | None, Bundle] = {}

    def bundle_of(s: Scored) -> Bundle:
        machine = s.clip.machine if manifest.classes else None
        if machine not in loaded:
            loaded[machine] = bundles.load(path, machine, golden=False)
        return loaded[machine]

    normal = normal_of([(bundle_of(s), s) for s in scored if not s.anomalous.all()])
    return [_explained(bundle_of(s), s, i, normal) for s, i in chosen(scored)]


def normal_of(healthy: Sequence[tuple[Bundle, Scored]]) -> Normal | None:
    """The distribution of the map over healthy windows, drawn evenly from the recordings; None without two."""
    share = max(1, HEALTHY // max(len(healthy), 1))
    found: list[F32] = []
    for i in np.linspace(0, len(healthy) - 1, min(len(healthy), HEALTHY)).astype(int):
        bundle, s = healthy[i]
        assert s.recording is not None  # score_recordings sets it
        end = s.end[~s.anomalous]
        wanted = {float(end[k]) for k in np.linspace(0, len(end) - 1, min(share, len(end))).astype(int)}
        found += [maps(bundle.judge, v)[1] for end, v in histories(bundle, s.recording) if end in wanted]
    if len(found) < 2:
        return None
    stacked = np.stack(found)
    low, high = np.quantile(stacked.mean(1, dtype=np.float64), [0.05, 0.95], axis=0)
    return Normal(masks.learn(stacked), low, high, len(found))


def _explained(bundle: Bundle, s: Scored, i: int, normal: Normal | None) -> Explained:
    assert s.recording is not None  # score_recordings sets it
    judge, spec = bundle.judge, bundle.manifest.features
    end = float(s.end[i])
    vectors = next(v for when, v in histories(bundle, s.recording) if when == end)
    x, where, score = maps(judge, vectors)
    kind = bundle.manifest.score.kind
    squared = np.square(judge.features.patches(vectors))
    attention = kind in ATTENTIVE and not np.array_equal(score.excess(), squared)
    explained = Explained(
        s.clip.name, bool(s.anomalous[i]), end, float(s.ratio[i]), kind, judge.features.names, x, where, normal,
        judge.why(score.residual), attention,
    )  # fmt: skip
    if spec.context.over == "windows":
        return replace(explained, moments=(1.0 - len(x), 0.0), unit="windows")
    # Frames behind the last whole patch are not seen.
    seen = len(x) / judge.features.n_frames
    return replace(explained, moments=(0.0, seen * spec.n_samples / spec.fs_hz))
