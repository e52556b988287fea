"""Samples on their way in: the chunk of one message and the window that gets one score.

Conventions of the whole package: fs in Hz, times `t` in seconds since 1970-01-01 UTC, samples in the
sensor's physical unit as float32, channels first and time on the last axis.

    message ──► Chunk (n_channels, any length) ──► Window (n_channels, n_samples), gap-free
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_FRACTION = re.compile(r"[.,](\d+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The samples of one message or of one piece of a recording.

    samples : (n_channels, n_samples) float32, n_samples >= 1, in the sensor's unit
    t       : time of the first sample in s, None where the format has none
    fs_hz   : sampling rate as the message states it, None where it does not
    seq     : sequence number as the message states it, None where it has none
    sensor  : sensor id as the message states it, None where it has none
    """

    samples: F32
    t: float | None = None
    fs_hz: float | None = None
    seq: int | None = None
    sensor: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A gap-free stretch of fixed length that gets one score.

    samples : (n_channels, n_samples) float32
    start   : time of the first sample in s
    seq     : running number of the window within its sensor, from 0
    """

    samples: F32
    fs_hz: float
    start: float
    seq: int

    @property
    def end(self) -> float:
        """Time at which the window ends, in s: the `ts` of its score."""
        n: int = self.samples.shape[-1]
        return self.start + n / self.fs_hz


def rfc3339(t: float) -> str:
    """Seconds since 1970 as RFC 3339 UTC with milliseconds: 0.0 -> '1970-01-01T00:00:00.000Z'.

    Rounds to the nearest millisecond. Raises ValueError outside the years 1 to 9999.
    """
    try:
        moment = _EPOCH + timedelta(milliseconds=round(t * 1000.0))
    except (OverflowError, ValueError) as error:
        raise ValueError(f"time {t!r} s since 1970 lies outside the years 1 to 9999") from error
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z".rjust(24, "0")


def parse_time(value: object) -> float:
    """A payload's time as seconds since 1970 UTC.

    Takes RFC 3339 text (no zone means UTC) or a number: epoch seconds, or milliseconds where it
    exceeds 1e11. Raises ValueError with what came and what was expected.
    """
    expected = "RFC 3339 text such as 2026-11-22T03:53:10.000Z, or epoch seconds or milliseconds"
    if isinstance(value, bool):
        raise ValueError(f"time is {value!r}; expected {expected}")
    if isinstance(value, (int, float)):
        try:
            t = float(value)
        except OverflowError:
            t = float("inf")
        if abs(t) > 1e11:
            t /= 1000.0
    elif isinstance(value, str):
        try:
            # Python 3.10 reads fractions of three or six digits only.
            text = _FRACTION.sub(lambda m: f".{m[1][:6]:0<6}", value.strip())
            moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
        except ValueError:
            raise ValueError(f"time is {value[:60]!r}; expected {expected}") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        t = (moment - _EPOCH).total_seconds()
    else:
        raise ValueError(f"time is a {type(value).__name__}; expected {expected}")
    try:
        rfc3339(t)
    except ValueError:
        raise ValueError(f"time is {value!r}, outside the years 1 to 9999; expected {expected}") from None
    return t
