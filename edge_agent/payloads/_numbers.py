"""JSON numbers in and out, shared by the JSON formats."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.signals import F32, parse_time

T = TypeVar("T")


def parse(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw | str, what: str) -> T:
    """Decode strictly; whatever is wrong becomes PayloadError("undecodable" | "not_finite")."""
    try:
        return decoder.decode(data)
    except RecursionError:
        raise PayloadError("undecodable", f"{what} is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError, ValueError, OverflowError) as error:
        # A number beyond 1.8e308 inside a list is a sample, and treated as one that overflows float32.
        too_big = "Number out of range" in str(error) and "[" in str(error)
        raise PayloadError("not_finite" if too_big else "undecodable", f"{what}: {error}") from None


def time_of(value: object) -> float | None:
    """A message's time in s, None where it has none; PayloadError where it makes no sense."""
    if value is None:
        return None
    try:
        return parse_time(value)
    except ValueError as error:
        raise PayloadError("undecodable", str(error)) from None


def listed(samples: F32, scale: float) -> str:
    """(n,) float32 -> "0.1,-2,3e-05": nine digits, which keep every bit of a float32 where scale is 1.

    Raises PayloadError("not_finite"): JSON has no word for NaN or infinity.
    """
    if not np.isfinite(samples).all():
        raise PayloadError("not_finite", "samples hold NaN or infinity, which JSON cannot carry")
    values = samples if scale == 1.0 else samples.astype(np.float64) / scale
    return ",".join([f"{v:.9g}" for v in values.tolist()])
