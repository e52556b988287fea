"""One self-contained HTML page a bundle: its card, its plots and, with data, its figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import bundle as bundles
from edge_agent.bundle import Bundle
from edge_agent.signals import F64, rfc3339
from trainer import card, explain, plots
from trainer.evaluate import Scored
from trainer.explain import Explained
from trainer.words import areas, detection, group_name, mean, run, shown

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
    anomalous = _joined([s.score[s.anomalous] for s in scored])
    found["distribution"] = plots.distribution(bundle.calibration, bundle.threshold, anomalous)
    found["calibration"] = plots.over_time(bundle.calibration / bundle.threshold.value)
    if scored:
        flags = np.concatenate([s.anomalous for s in scored])
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
    scored = list(scored)
    pictures = "".join(f"<h2>{name}</h2>{_image(name, png)}" for name, png in images(bundle, scored).items())
    listed = "".join(f"<li>{html.escape(w)}</li>" for w in warnings)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(manifest.name)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(manifest.name)}</h1>",
        f"<p>version {manifest.version}, sha256 {bundle.sha256}</p><table>{table}</table>",
        f"<h2>warnings</h2><ul>{listed}</ul>" if listed else "",
        "<h2>figures</h2>" + _figures(figures) if figures else "",
        explained(path, scored),
        pictures,
        "</body></html>\n",
    ]
    return "".join(parts)


def _image(name: str, png: bytes) -> str:
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def explained(path: Path, scored: Sequence[Scored]) -> str:
    """The HTML of the windows that `explain.explain` chooses; empty where the score is a single feature."""
    return "".join(_explanation(found) for found in explain.explain(path, scored))


def _explanation(found: Explained) -> str:
    """A window in words and in a picture."""
    kind = "the anomalous window of the highest score" if found.anomalous else "a normal window"
    where = f"{found.name}, window that ends at {_moment(found.end)}, {found.ratio:.3g} times the limit"
    return f"<h2>{kind}</h2><p>{html.escape(where)}: <b>{html.escape(found.sentence)}</b>.</p>" + _image(
        kind, plots.explanation(found)
    )


def _moment(t: float) -> str:
    """Seconds from the start of a file that carries no time, else the time."""
    return f"{t:g} s" if t < 1e8 else rfc3339(t)


#: What `evaluate` gives in tables of their own.
_APART = ("detections", "machines", "groups", "means", "runs", "baselines")


def _figures(figures: Mapping[str, Any]) -> str:
    """What `evaluate` gives as tables: figures, detections in words, a row a machine, group, mean and run."""
    rows = [(k.replace("_", " "), shown(v)) for k, v in figures.items() if k not in _APART]
    rows += [(k.replace("_", " "), areas(v)) for k, v in figures.get("baselines", {}).items()]
    rows += [("detection", detection(found)) for found in figures["detections"]]
    rows += [("run", run(found)) for found in figures.get("runs", ())]
    for kind in ("arithmetic", "harmonic") if "means" in figures else ():
        rows.append((f"{kind} mean of the groups", areas(mean(figures["means"], kind))))
    tables: list[list[Sequence[str]]] = [list(rows)]
    for key in ("machines", "groups"):
        if found := figures.get(key):
            tables.append(_rows(found))
    return "<br>".join(_table(table) for table in tables)


def _rows(found: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    """A header and a line a machine or group; the baselines' AUC and pAUC as columns of their own."""
    beside = list(found[0].get("baselines", {}))
    keys = [k for k, v in found[0].items() if not isinstance(v, (list, dict, str))]
    header = ["", *(k.replace("_", " ") for k in (*keys, *beside))]
    lines = [
        [group_name(row), *(shown(row[k]) for k in keys), *(_pair(row["baselines"][name]) for name in beside)]
        for row in found
    ]
    return [header, *lines]


def _pair(row: Mapping[str, Any]) -> str:
    return f"{shown(row['auc'])} / {shown(row['pauc'])}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _joined(parts: list[F64]) -> F64:
    return np.concatenate(parts) if parts else np.zeros(0)
