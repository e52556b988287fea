"""What a run looked like, as PNG: losses, healthy scores with the fitted limit, scores over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import stats

from edge_agent import causes
from edge_agent.signals import F64
from edge_agent.thresholds import Threshold
from trainer.explain import Explained
from trainer.words import counted

_SIZE = (7.0, 3.6)


class Limits(Protocol):
    """Both limits of pseudo-labels, and how they were set (`trainer.staged`)."""

    @property
    def low(self) -> float:
        """Below it records are pseudo-normal."""

    @property
    def high(self) -> float:
        """Above it they are pseudo-anomalous."""

    @property
    def method(self) -> str:
        """How both were set."""


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


def pseudo_labels(scores: F64, groups: Any, limits: Limits) -> bytes:
    """Histogram of stage 1's scores in three colours, pseudo-normal, uncertain and pseudo-anomalous, and both limits.

    A logarithmic count: of a thousand records the few beyond the upper limit are those to look at.
    """
    figure, axes = _figure("score of stage 1", "windows")
    # A lower limit below every score has nothing to show; the axis then begins at the scores.
    low = min(float(scores.min()), max(limits.low, 0.0))
    top = max(float(scores.max()), limits.high)
    far = low > 0.0 and top > 10.0 * float(np.median(scores))
    edges = np.geomspace(low, 1.05 * top, 61) if far else np.linspace(low, top + 0.02 * (top - low), 61)
    names = {
        0: ("pseudo-normal", "tab:blue"),
        -1: ("uncertain", "tab:gray"),
        1: ("pseudo-anomalous", "tab:orange"),
    }
    of = [np.asarray(scores[groups == g], np.float64) for g in names]
    axes.hist(
        of, edges, stacked=True, color=[colour for _, colour in names.values()],
        label=[f"{name}, {counted(len(s), 'window')}" for s, (name, _) in zip(of, names.values(), strict=True)],
    )  # fmt: skip
    if far:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    for name, value, style in (("lower", limits.low, "--"), ("upper", limits.high, "-")):
        if edges[0] <= value <= edges[-1]:
            axes.axvline(
                value, color="tab:red", linewidth=1, linestyle=style, label=f"{name} limit {value:.4g}"
            )
    axes.set_title(f"limits by {limits.method}", fontsize="small")
    axes.legend(fontsize="small")
    return _png(figure)


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


def explanation(of: Explained) -> bytes:
    """One window: its input, where the score comes from by band and time, and by band against healthy windows.

    The mask of what is not healthy (`trainer.masks`) is outlined in red on the input. A GAN's mask or a Grad-CAM is laid over
    the input in colour; an error is shown in deviations from its own normal distribution.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(3, 3, 2), sharey=True)
    first, last = of.moments
    step = (last - first) / max(len(of.x) - 1, 1) if of.unit == "windows" else 0.0

    def how(n: int) -> dict[str, Any]:
        begin = last - n * step + step / 2 if step else first
        extent = (begin, last + step / 2, -0.5, len(of.names) - 0.5)
        return {"origin": "lower", "aspect": "auto", "extent": extent, "interpolation": "nearest"}

    whole, part = how(len(of.x)), how(len(of.where))
    low, high = np.quantile(of.x, [0.01, 0.99])
    scale = {"vmin": low, "vmax": high if high > low else low + 1.0}
    left.imshow(of.x.T, cmap="viridis", **scale, **whole)
    left.set_title("input", fontsize="small")
    z = of.z
    mask = of.mask
    if min(mask.shape) > 1 and mask.any() and not mask.all():
        left.contour(
            mask.T.astype(float),
            [0.5],
            colors="tab:red",
            linewidths=1.0,
            extent=part["extent"],
            origin="lower",
        )
    if of.overlaid:
        middle.imshow(of.x.T, cmap="gray", **scale, **whole)
        top = float(of.where.max()) or 1.0
        # A GAN's mask is there or not; attention fades out.
        opacity = mask.T.astype(float) if of.kind == "gan" and of.normal is not None else of.where.T / top
        drawn = middle.imshow(of.where.T, cmap="autumn_r", alpha=0.85 * opacity, vmin=0.0, vmax=top, **part)
    else:
        ceiling = max(float(np.quantile(z, 0.995)), 5.0 if of.normal is not None else 1e-9)
        drawn = middle.imshow(z.T, cmap="magma", vmin=0.0, vmax=ceiling, **part)
    figure.colorbar(drawn, ax=middle, pad=0.01)
    middle.set_title(of.what, fontsize="small")
    middle.set_xlim(left.get_xlim())
    for axes in (left, middle):
        axes.xaxis.get_major_locator().set_params(integer=of.unit == "windows")
        axes.set_xlabel("windows before" if of.unit == "windows" else "time in s", fontsize="small")
    _bands(left, of.names)
    _profile(right, of)
    return _png(figure)


def _bands(axes: Any, names: Sequence[str]) -> None:
    """Every feature where there are few, else about ten ticks: where the band lies, or what the feature is called."""
    n = len(names) if len(names) <= 20 else 10
    places = np.unique(np.linspace(0, len(names) - 1, n).round().astype(int))
    labels = []
    for i in places:
        found = causes.band(names[i])
        middle = 0.0 if found is None else (found[0] + found[1]) / 2
        unit, divide = ("kHz", 1000.0) if middle >= 1000.0 else ("Hz", 1.0)
        labels.append(names[i].replace("_", " ") if found is None else f"{middle / divide:.3g} {unit}")
    axes.set_yticks(places, labels, fontsize="x-small")


def _profile(axes: Any, of: Explained) -> None:
    """The map by band, mean over time, beside what healthy windows have."""
    y = np.arange(len(of.names))
    if of.normal is not None:
        label = f"5 to 95 % of {counted(of.normal.n, 'normal window')}"
        axes.fill_betweenx(y, of.normal.low, of.normal.high, alpha=0.4, color="tab:green", label=label)
    axes.plot(of.where.mean(0), y, color="tab:red", linewidth=1, label="this window")
    axes.set_title("by band, mean over time", fontsize="small")
    axes.legend(fontsize="x-small")


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
