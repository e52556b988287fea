"""Figures as a person reads them: counts, missing values, lists, parameters, detections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def counted(n: int, noun: str) -> str:
    """(1, "channel") -> "1 channel", (2, "channel") -> "2 channels"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def shown(value: Any) -> str:
    """None -> "-", True -> "yes", 16000.0 -> "16000", [0, 2] -> "0 and 2", {"a": 1} -> "a 1"; text as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        words = [shown(v) for v in value]
        return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return str(value)


def detection(found: Mapping[str, Any]) -> str:
    """One entry of `detections` of `trainer.evaluate`."""
    if not found["found"]:
        return "no event"
    begin = "the first anomalous window" if found["onset"] is None else "the fault began"
    return f"event {found['delay_s']:g} s after {begin}"
