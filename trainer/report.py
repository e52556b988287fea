"""One self-contained HTML page a bundle: its card, its plots and, with data, its figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import bundle as bundles
from edge_agent.bundle import Bundle
from edge_agent.signals import F64
from trainer import card, plots
from trainer.evaluate import Scored
from trainer.words import detection, shown

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}\
td{border-top:1px solid #ccc;padding:.2em .6em;vertical-align:top}img{max-width:100%}pre{background:#f4f4f4;padding:1em;\
overflow:auto}"
)


def images(bundle: Bundle, scored: Iterable[Scored] = ()) -> dict[str, bytes]:
    """Name -> PNG of every plot the bundle (and recordings scored by it) gives."""
    found: dict[str, bytes] = {}
    if history := bundle.manifest.training.get("history"):
        found["loss"] = plots.loss(history)
    scored = [s for s in scored if len(s.score)]
    anomalous = _joined([s.score for s in scored if not s.clip.healthy])
    found["distribution"] = plots.distribution(bundle.calibration, bundle.threshold, anomalous)
    found["calibration"] = plots.over_time(bundle.calibration / bundle.threshold.value)
    if scored:
        flags = np.concatenate([np.full(len(s.score), not s.clip.healthy) for s in scored])
        found["scores"] = plots.over_time(
            _joined([s.ratio for s in scored]), flags, "recordings in their order"
        )
    return found


def page(path: Path, scored: Iterable[Scored] = (), figures: dict[str, Any] | None = None) -> str:
    """The HTML page of the bundle in `path`."""
    bundle = bundles.load(path)
    manifest = bundle.manifest
    warnings = [str(w) for w in manifest.training.get("warnings", ())]
    # Written anew in place of CARD.md, which may come from an earlier version.
    network = path / bundles.MODEL
    size = network.stat().st_size if network.exists() else None
    rows = [
        line.strip("| ").split(" | ", 1)
        for line in card.text(manifest, bundle.calibration, size, warnings).splitlines()
        if line.startswith("| ")
    ]
    table = "".join(
        f"<tr><td>{html.escape(r[0])}</td><td>{html.escape(r[1])}</td></tr>" for r in rows if len(r) == 2
    )
    pictures = "".join(
        f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in images(bundle, scored).items()
    )
    listed = "".join(f"<li>{html.escape(w)}</li>" for w in warnings)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(manifest.name)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(manifest.name)}</h1>",
        f"<p>version {manifest.version}, sha256 {bundle.sha256}</p><table>{table}</table>",
        f"<h2>warnings</h2><ul>{listed}</ul>" if listed else "",
        pictures,
        "<h2>figures</h2>" + _figures(figures) if figures else "",
        "</body></html>\n",
    ]
    return "".join(parts)


def _figures(figures: Mapping[str, Any]) -> str:
    """What `evaluate` gives as tables: figures, detections in words, a row a machine."""
    rows = [(k, shown(v)) for k, v in figures.items() if k not in ("detections", "machines")]
    rows += [("detection", detection(found)) for found in figures["detections"]]
    tables = [[[k.replace("_", " "), v] for k, v in rows]]
    if machines := figures.get("machines"):
        keys = [k for k in machines[0] if k != "detections"]
        tables.append(
            [[k.replace("_", " ") for k in keys], *([shown(row[k]) for k in keys] for row in machines)]
        )
    return "<br>".join(
        "<table>"
        + "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table
        )
        + "</table>"
        for table in tables
    )


def _joined(parts: list[F64]) -> F64:
    return np.concatenate(parts) if parts else np.zeros(0)
