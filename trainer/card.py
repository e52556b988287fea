"""CARD.md: what a bundle is, what it rests on and where it is weak, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_agent.bundle import Manifest
from edge_agent.features import FeatureSet
from edge_agent.signals import F64
from trainer.words import counted, shown


def _score(manifest: Manifest) -> str:
    """The rule in words: "the feature rms", "reconstruction error (sse; steps all; patches mean)"."""
    params = manifest.score.params
    if manifest.score.kind == "indicator":
        return f"the feature {FeatureSet(manifest.features).names[params['index']]}"
    if manifest.score.kind == "log_odds":
        return f"log-odds against the own machine, of {params['n_classes']} machines"
    named = "; ".join(f"{k} {shown(v)}" for k, v in params.items())
    return f"{manifest.score.kind}" + (f" ({named})" if named else "")


def _source(source: Mapping[str, Any]) -> str:
    """One source of recordings: "path fan, fs_hz 16000, channels 0 and 2"."""
    return shown(source)


def text(manifest: Manifest, scores: F64, model_bytes: int | None, warnings: Sequence[str]) -> str:
    """The card in Markdown."""
    spec, limit, q, training = manifest.features, manifest.threshold, manifest.quantization, manifest.training
    split = training["split"]
    families = "; ".join(
        f"{f.kind}" + (f" ({shown(dict(f.params))})" if f.params else "") for f in spec.families
    )
    context = (
        f"the last {spec.context.width} windows"
        if spec.context.over == "windows"
        else f"patches of {counted(spec.context.width, 'frame')}, every {spec.context.hop}"
    )
    size = "no network" if model_bytes is None else f"{q.type}, {model_bytes / 1000:.0f} kB"
    rows = [
        ("model", f"{manifest.model}, {size}"),
        ("input", f"{counted(spec.n_channels, 'channel')}, {spec.fs_hz:g} Hz, windows of {spec.n_samples} samples "
                  f"({spec.n_samples / spec.fs_hz:.4g} s) every {spec.hop_samples}" + (f", in {manifest.unit}" if manifest.unit else "")),
        ("features", families),
        ("context", context),
        ("score", _score(manifest)),
        ("limit", f"{limit.value:.6g} by {limit.method}, promised share of healthy windows above it "
                  f"{shown(limit.false_alarm_rate)}, from {limit.n} scores"),
        ("fit", ", ".join(f"{k} {v:.4g}" for k, v in limit.params.items()) or "none"),
        ("healthy scores", f"median {np.median(scores):.4g}, largest {scores.max():.4g}"),
        ("parity", ", ".join(f"{k} {v:.4g}" for k, v in q.parity.items()) or "nothing to compare"),
        ("training", f"recipe {training['recipe']}, seed {training['seed']}, split by {split['by']}: {split['train']} windows "
                     f"to train, {split['validation']} to stop early, {split['calibrate']} to calibrate"
                     + (f", {split['anomalies']} labelled anomalous" if split["anomalies"] else "")),
        ("data", "; ".join(_source(source) for source in training["data"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in training["versions"].items())),
    ]  # fmt: skip
    if manifest.classes:
        rows.insert(5, ("machines", ", ".join(manifest.classes)))
    if training["figures"]:
        rows.append(("figures", ", ".join(f"{k} {v:.6g}" for k, v in training["figures"].items())))
    about = [told, ""] if (told := training.get("about")) else []
    lines = [f"# {manifest.name}", "", *about, "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows), ""]
    if warnings:
        lines += ["## Warnings", "", *(f"- {w}" for w in warnings), ""]
    lines += [
        "The limit rests on healthy windows that were not trained on, scored by the file as shipped. It holds for",
        "this machine, sensor and mounting, as they were when the recordings were made.",
        "The golden windows are noise with the mean spectrum of the healthy recordings, not recordings.",
        "",
    ]
    return "\n".join(lines)
