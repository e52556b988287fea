"""What a run looked like, as PNG: losses, healthy scores with the fitted limit, scores over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from edge_agent.signals import F64
from edge_agent.thresholds import Threshold
from trainer.words import counted

_SIZE = (7.0, 3.6)


def loss(history: Mapping[str, Sequence[float]]) -> bytes:
    """Loss by epoch, each stage and part a line."""
    figure, axes = _figure("epoch", "loss")
    for name, values in history.items():
        axes.plot(np.arange(1, len(values) + 1), values, label=name.replace("_", " "))
    every = np.concatenate([np.asarray(values, np.float64) for values in history.values()])
    # Over less than a decade or so a logarithmic axis has no tick that one could read.
    if every.size and every.min() > 0 and every.max() > 20 * every.min():
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return _png(figure)


def distribution(scores: F64, threshold: Threshold, anomalous: F64 | None = None) -> bytes:
    """Histogram of the healthy scores, the fitted density where the method has one, and the limit.

    The axis spans every score. Where one lies beyond three times the limit it is logarithmic, and the bars and
    the density count a decade: all areas are 1 as they are seen.
    """
    anomalous = np.zeros(0) if anomalous is None else anomalous
    every = np.concatenate([scores, anomalous, [threshold.value]])
    edges, far = bins(every, threshold.value, int(np.clip(3 * np.sqrt(len(scores)), 12, 60)))
    figure, axes = _figure("score", "share of windows a decade" if far else "density")
    if far:
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        if below := int((every < edges[0]).sum()):
            axes.set_title(
                f"{counted(below, 'score')} below {edges[0]:.3g} at the left edge", fontsize="small"
            )
    width = np.diff(np.log10(edges)) if far else np.diff(edges)
    for values, opacity, name in ((scores, 0.6, "healthy"), (anomalous, 0.5, "anomalous")):
        if len(values):
            height = np.histogram(np.maximum(values, edges[0]), edges)[0] / (len(values) * width)
            label = f"{name}, {counted(len(values), 'window')}"
            axes.bar(edges[:-1], height, np.diff(edges), align="edge", alpha=opacity, label=label)
    if threshold.method == "gamma":
        x = (
            np.geomspace(edges[0], edges[-1], 500)
            if far
            else np.linspace(max(edges[0], edges[-1] / 500), edges[-1], 500)
        )
        density = stats.gamma.pdf(x, threshold.params["shape"], scale=threshold.params["scale"])
        axes.plot(x, density * x * np.log(10.0) if far else density, "k-", linewidth=1, label="gamma fit")
    axes.axvline(threshold.value, color="tab:red", label=f"limit {threshold.value:.5g}")
    axes.legend()
    return _png(figure)


def bins(every: F64, limit: float, n: int) -> tuple[F64, bool]:
    """(edges of about n bins that span every score, whether they are logarithmic).

    Logarithmic where a score lies beyond three times the limit, at least 15 a decade then. Zeros, as of a
    silent clip, have no place on such an axis: it begins at a millionth of the largest score at the lowest.
    """
    low, top = float(every.min()), float(every.max())
    if top > 3.0 * limit:
        low = max(float(every[every > 0].min()), 1e-6 * top) / 1.2
        top *= 1.2
        return np.geomspace(low, top, 1 + max(n, int(15 * np.log10(top / low)))), True
    # From zero, unless all scores lie far from it (log-odds): they would be one bar.
    low = 0.0 if low < 0.5 * top else max(0.0, low - 0.3 * (top - low))
    return np.linspace(low, top + 0.1 * (top - low), n), False


def over_time(ratios: F64, flags: Any = None, title: str = "healthy windows in time order") -> bytes:
    """score / limit of consecutive windows; anomalous ones in another colour."""
    figure, axes = _figure("window", "score / limit")
    i = np.arange(len(ratios))
    flags = np.zeros(len(ratios), bool) if flags is None else np.asarray(flags, bool)
    size = 4 if len(ratios) > 200 else 8
    axes.plot(i[~flags], ratios[~flags], ".", markersize=size, label="normal")
    if flags.any():
        axes.plot(i[flags], ratios[flags], ".", markersize=size, color="tab:orange", label="anomalous")
    axes.axhline(1.0, color="tab:red", linewidth=1, label="limit")
    if len(ratios) and ratios.min() > 0 and ratios.max() > 10:
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title)
    axes.legend()
    return _png(figure)


def _figure(x: str, y: str) -> tuple[Any, Any]:
    # Figure without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
