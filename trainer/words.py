"""Figures as a person reads them: counts, missing values, lists, parameters, detections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def counted(n: int, noun: str) -> str:
    """(1, "channel") -> "1 channel", (2, "channel") -> "2 channels"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def shown(value: Any) -> str:
    """None -> "-", True -> "yes", 16000.0 -> "16000", [0, 2] -> "0 and 2", [0, 1, 2, 3] -> "0 to 3", {"a": 1} -> "a 1"; text as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        if len(value) > 3 and all(type(v) is int for v in value) and list(value) == list(range(value[0], value[-1] + 1)):
            return f"{value[0]} to {value[-1]}"
        words = [shown(v) for v in value]
        return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return str(value)


def detection(found: Mapping[str, Any]) -> str:
    """One entry of `detections` of `trainer.evaluate`."""
    if not found["found"]:
        return "no event"
    begin = "the first anomalous window" if found["onset"] is None else "the fault began"
    return f"event {found['delay_s']:g} s after {begin}"


def told(result: Mapping[str, Any]) -> Iterator[str]:
    """What `evaluate` gives, line by line: figures, detections, runs, and a line a machine and group.

    A single group says what the whole says: it is left to the JSON object.
    """
    groups = result.get("groups", ())
    apart = ("machines", "detections", "groups", "means", "runs", "baselines")
    for key, value in result.items():
        if key not in apart and (key != "left_out" or value):
            yield f"{key:22} {shown(value)}"
    for name, row in result.get("baselines", {}).items():
        yield f"{name:22} AUC {shown(row['auc'])}  pAUC {shown(row['pauc'])}"
    for found in result["detections"]:
        yield f"{'detection':22} {detection(found)}"
    for row in result.get("runs", ()):
        yield f"{'run':22} {run(row)}"
    for row in (*result.get("machines", ()), *(groups if len(groups) > 1 else ())):
        yield f"  {group_name(row):32} {areas(row)}  windows {row['windows']}"
    if len(groups) > 1:
        yield from _means(result["means"], "")


def _means(found: Mapping[str, Any], of: str) -> Iterator[str]:
    for kind in ("arithmetic", "harmonic"):
        yield f"  {f'{kind} mean' + of:32} {areas(mean(found, kind))}"
    for name, rows in found.get("machine_types", {}).items():
        yield from _means(rows, f" {name}")


def mean(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The "arithmetic" or "harmonic" figures of `means`, as a row like any other."""
    row: dict[str, Any] = {key: found[key][kind] for key in ("auc", "pauc")}
    row["baselines"] = {
        name: {key: value[kind] for key, value in figures.items()}
        for name, figures in found.get("baselines", {}).items()
    }
    return row


def group_name(row: Mapping[str, Any]) -> str:
    """{"machine_type": "fan", "section": "section_00", "domain": "source"} -> "fan section_00 source"."""
    keys = ("machine", "machine_type", "section", "domain", "condition")
    return " ".join(row[key] for key in keys if key in row)


def areas(row: Mapping[str, Any]) -> str:
    """AUC and pAUC of a row, and those of the baselines beside."""
    beside = "".join(
        f"  {name.replace('_', ' ')} {shown(b['auc'])} {shown(b['pauc'])}"
        for name, b in row.get("baselines", {}).items()
    )
    return f"AUC {shown(row['auc'])}  pAUC {shown(row['pauc'])}{beside}"


def run(row: Mapping[str, Any]) -> str:
    """One entry of `runs` of `trainer.evaluate`."""
    early = counted(row["false_events"], "false event")
    if row["first_event"] is None:
        return f"{row['recording']}: no event in {row['windows']} windows"
    return (
        f"{row['recording']}: first event at window {row['first_event_window']} of {row['windows']}, "
        f"{_duration(row['before_end_s'])} before the end; {early} before the fault"
    )


def _duration(seconds: float) -> str:
    """90 -> "90 s", 268800 -> "74.7 h"."""
    return f"{seconds:g} s" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
