"""Labels by time, as `edge-agent export --labels` writes them: what people said of alarms, laid over recordings of their sensors.

    sensor,t_start,t_end,label
    pump-1-de,2026-11-22T03:53:00.000Z,2026-11-22T06:10:20.000Z,anomaly

    recording ─► cut ─► before (no label) │ the alarm (anomaly, normal) │ after (no label)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_agent.errors import RecordingError
from edge_agent.recordings import Recording
from edge_agent.recordings.capture import claims, read_header
from edge_agent.signals import Chunk, parse_time, rfc3339

COLUMNS = ("sensor", "t_start", "t_end", "label")


@dataclass(frozen=True)
class Span:
    """A time of one sensor, ends in s, and what it was: "anomaly" or "normal"."""

    sensor: str
    start: float
    end: float
    label: str


def is_spans(path: Path) -> bool:
    """Whether a CSV labels times, by its heading; labels of files have a column `file`."""
    with path.open(newline="", encoding="utf-8") as file:
        return "t_start" in (next(csv.reader(file), []))


def read_spans(path: Path) -> tuple[Span, ...]:
    """The spans of a CSV in order of time; raises RecordingError with the line."""
    spans = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                span = Span(row["sensor"], parse_time(row["t_start"]), parse_time(row["t_end"]), row["label"])
            except (KeyError, ValueError) as error:
                raise RecordingError(f"{path}:{number}: {error}; expected the columns {','.join(COLUMNS)}") from error
            if not span.start < span.end or span.label not in ("normal", "anomaly"):
                raise RecordingError(
                    f"{path}:{number}: {row['t_start']} to {row['t_end']}, label {span.label!r}; expected an end after the "
                    "start, and normal or anomaly"
                )
            spans.append(span)
    return tuple(sorted(spans, key=lambda s: s.start))


def of_sensor(spans: Sequence[Span], recording: Recording) -> tuple[Span, ...]:
    """Those of the recording's sensor: a capture says which it is, other files by their own or their folders' names. All of
    them where all are of one sensor and the recording is no capture."""
    if claims(recording.path):
        names = {read_header(recording.path).sensor}
    else:
        names = {recording.path.stem, *recording.path.parts}
        if len({span.sensor for span in spans}) == 1:
            return tuple(spans)
    return tuple(span for span in spans if span.sensor in names)


def cut(recording: Recording, spans: Sequence[Span]) -> Iterator[Recording]:
    """The recording in pieces: each span one with its label, what lies between them without; no window crosses.

    Of spans that overlap the earlier one ends where the next begins. Raises RecordingError where the recording has no times.
    """
    bounds: list[tuple[float, str | None]] = [(float("-inf"), None)]
    for i, span in enumerate(spans):
        end = min([span.end, *(following.start for following in spans[i + 1 : i + 2])])
        bounds += [(span.start, span.label), (end, None)]
    for (start, label), (end, _) in zip(bounds, [*bounds[1:], (float("inf"), None)], strict=True):
        if not start < end or next(_within(recording, start, end), None) is None:
            continue
        name = recording.name if start == float("-inf") else f"{recording.name}@{rfc3339(start)}"
        yield replace(recording, name=name, label=label, chunks=_opener(recording, start, end))


def _opener(recording: Recording, start: float, end: float) -> Callable[[], Iterator[Chunk]]:
    return lambda: _within(recording, start, end)


def _within(recording: Recording, start: float, end: float) -> Iterator[Chunk]:
    """The chunks' samples of this time."""
    at: float | None = None
    for chunk in recording.chunks():
        n, fs_hz = chunk.samples.shape[-1], chunk.fs_hz or recording.fs_hz
        at = chunk.t if chunk.t is not None else at
        if at is None:
            raise RecordingError(
                f"{recording.path}: {recording.name} has no times, so labels by time cannot be laid over it; expected a "
                "capture, or records with times"
            )
        first, last = (int(np.clip(np.ceil((t - at) * fs_hz - 1e-6), 0, n)) for t in (start, end))
        if first < last:
            yield replace(chunk, samples=chunk.samples[..., first:last], t=at + first / fs_hz)
        at += n / fs_hz
