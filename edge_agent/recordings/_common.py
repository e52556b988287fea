"""What every recording format needs: labels from names, the sampling rate, channels, times from names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import RecordingError
from edge_agent.recordings import Ask
from edge_agent.signals import Chunk

_LABELS = {"normal": "normal", "anomaly": "anomaly", "abnormal": "anomaly"}
_STAMP = re.compile(r"\d{4}\.\d\d\.\d\d\.\d\d\.\d\d\.\d\d")
#: A file's rate may differ from the asked one by a clock error and by rounding, not by more.
_RATE_TOLERANCE = 1e-3


def label_of(path: Path) -> str | None:
    """ "normal" or "anomaly" by a word of the file name (DCASE), else by the folder's name; else None.

    section_00_source_test_anomaly_0003.wav -> anomaly; normal/clip.wav -> normal; abnormal is anomaly.
    """
    for word in re.split(r"[^a-z]+", path.stem.lower()):
        if word in _LABELS:
            return _LABELS[word]
    return _LABELS.get(path.absolute().parent.name.lower())


def stamp(name: str) -> float | None:
    """Time in s (UTC) of a name such as 2004.02.12.10.32.39; None for any other name."""
    if not _STAMP.fullmatch(name):
        return None
    try:
        return datetime.strptime(name, "%Y.%m.%d.%H.%M.%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def rate(path: Path, ask: Ask, stated: float | None) -> float:
    """The sampling rate: the file's, else the asked one; RecordingError where both differ or lack."""
    if stated is None:
        if ask.fs_hz is None:
            raise RecordingError(f"{path}: states no sampling rate; expected one: say it with --fs HZ")
        stated = ask.fs_hz
    elif ask.fs_hz is not None:
        if abs(stated - ask.fs_hz) > _RATE_TOLERANCE * stated:
            raise RecordingError(
                f"{path}: was sampled at {stated:g} Hz, {ask.fs_hz:g} Hz is asked for; give a recording of "
                "that rate, or leave out --fs to take the file's own"
            )
        stated = ask.fs_hz
    if not 0.0 < stated < float("inf"):
        raise RecordingError(f"{path}: sampling rate is {stated:g} Hz; expected a finite number above 0")
    return stated


def channels(path: Path, ask: Ask, n_channels: int) -> list[int]:
    """The channels to keep; RecordingError where one is not there."""
    if ask.channels is None:
        return list(range(n_channels))
    for c in ask.channels:
        if not 0 <= c < n_channels:
            raise RecordingError(
                f"{path}: has no channel {c}; expected 0 to {n_channels - 1} ({n_channels} "
                f"channel{'s' if n_channels != 1 else ''})"
            )
    return list(ask.channels)


def to_chunk(frames: NDArray[Any], keep: list[int], fs_hz: float, **stated: Any) -> Chunk:
    """(n, n_channels) numbers of any kind -> Chunk of the channels to keep."""
    with np.errstate(over="ignore"):
        return Chunk(np.ascontiguousarray(frames[:, keep].T, dtype=np.float32), fs_hz=fs_hz, **stated)


def seconds(frames: NDArray[Any], keep: list[int], fs_hz: float) -> Iterator[Chunk]:
    """(n, n_channels) -> chunks of one second without times."""
    step = max(1, round(fs_hz))
    for begin in range(0, len(frames), step):
        yield to_chunk(frames[begin : begin + step], keep, fs_hz)
