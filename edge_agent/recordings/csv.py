"""CSV: a column a channel, an optional header, an optional time column named t, time, ts or timestamp.

Fields are separated by comma, semicolon or tab. The time column (RFC 3339, epoch seconds or milliseconds)
gives the rate where none is asked for, and gaps: a step of more than ten sample periods.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from edge_agent.errors import RecordingError
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import F64, Chunk, parse_time

_TIME = ("t", "time", "ts", "timestamp")
_GAP_PERIODS = 10.0
_RATE_TOLERANCE = 0.01  # a time column is rounded, and loggers drift


def claims(path: Path) -> bool:
    """By name: .csv."""
    return path.is_file() and path.suffix.lower() == ".csv"


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording. Columns other than the time are channels, in the file's order."""
    delimiter, header = _head(path)
    time_column = next((i for i, name in enumerate(header) if name.strip().lower() in _TIME), None)
    if header and len(header) == 1 and time_column is not None:
        raise RecordingError(f"{path}: has a time column only; expected at least one column of samples")
    # The time column is needed for the rate; the samples are read again when they are asked for.
    times = None if time_column is None else _load(path, delimiter, header, time_column)[0]
    fs_hz = _common.rate(path, ask, None) if times is None else _rate(path, ask, times)
    n_columns = len(header) or _width(path, delimiter)
    keep = _common.channels(path, ask, n_columns - (time_column is not None))

    def chunks() -> Iterator[Chunk]:
        _, frames = _load(path, delimiter, header, time_column)
        if times is None:
            yield from _common.seconds(frames, keep, fs_hz)
            return
        step, seq = max(1, round(fs_hz)), 0
        edges = [0, *(np.flatnonzero(np.diff(times) > _GAP_PERIODS / fs_hz) + 1).tolist(), len(times)]
        for begin, end in pairwise(edges):
            for at in range(begin, end, step):
                piece = frames[at : min(at + step, end)]
                yield _common.to_chunk(piece, keep, fs_hz, t=float(times[at]), seq=seq)
                seq += 1
            seq += 1  # a number left out says that samples are missing, however short the gap

    yield Recording(path.name, path, fs_hz, _common.label_of(path), chunks)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.readline().rstrip("\r\n")
    except UnicodeError as error:
        raise RecordingError(f"{path}: is no UTF-8 text: {error}") from None


def _head(path: Path) -> tuple[str, list[str]]:
    """The delimiter, and the column names, empty where the first line holds numbers."""
    line = _first_line(path)
    if not line.strip():
        raise RecordingError(f"{path}: first line is empty; expected column names or numbers")
    delimiter = max(",;\t", key=line.count)
    fields = next(csv.reader([line], delimiter=delimiter))
    try:
        for field in fields:
            float(field)
    except ValueError:
        return delimiter, fields
    return delimiter, []


def _width(path: Path, delimiter: str) -> int:
    return _first_line(path).count(delimiter) + 1


def _load(path: Path, delimiter: str, header: list[str], time_column: int | None) -> tuple[F64, F64]:
    """Times (n,), empty without a time column, and samples (n, n_channels)."""
    converters: dict[int | str, Callable[[str], float]] | None = (
        None if time_column is None else {time_column: _time}
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of no rows, which is an error below
            table = np.loadtxt(
                path,
                np.float64,
                delimiter=delimiter,
                skiprows=int(bool(header)),
                ndmin=2,
                converters=converters,
                encoding="utf-8-sig",
            )
    except (ValueError, UnicodeError) as error:
        raise RecordingError(f"{path}: {error}; expected numbers separated by {delimiter!r}") from None
    if len(table) == 0:
        raise RecordingError(f"{path}: holds no rows of samples; expected at least one")
    if header and table.shape[1] != len(header):
        raise RecordingError(
            f"{path}: its first line names {len(header)} columns ({delimiter!r} between them), the rows below have {table.shape[1]}; "
            "expected as many"
        )
    if time_column is None:
        return np.empty(0), table
    return table[:, time_column], np.delete(table, time_column, axis=1)


def _time(field: str) -> float:
    try:
        value: float | str = float(field)
    except ValueError:
        value = field
    return parse_time(value)


def _rate(path: Path, ask: Ask, times: F64) -> float:
    """The asked rate where the time column agrees with it to 1 %, else that of the time column."""
    steps = np.diff(times)
    if len(steps) == 0:
        return _common.rate(path, ask, None)
    if (steps < 0).any():
        row = int(np.flatnonzero(steps < 0)[0]) + 1
        raise RecordingError(f"{path}: time goes back at sample {row} (0-based); expected rising times")
    # Gaps are left out; among the rest the mean, because rounded times repeat and a median would be 0.
    usual = steps[steps <= _GAP_PERIODS * max(float(np.median(steps)), float(steps.mean()))]
    if usual.sum() <= 0.0:
        raise RecordingError(f"{path}: time column never rises; expected the time of each row")
    fs_hz = float(f"{len(usual) / usual.sum():.6g}")
    if ask.fs_hz is not None and abs(fs_hz - ask.fs_hz) <= _RATE_TOLERANCE * ask.fs_hz:
        return ask.fs_hz
    return _common.rate(path, ask, fs_hz)
