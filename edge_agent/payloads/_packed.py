"""Packed little-endian samples, channels interleaved: c0[0] c1[0] ... c0[1] c1[1] ...

With `header: ts_seq` twelve bytes come before the samples: int64 nanoseconds since 1970-01-01 UTC of the
first sample, then the uint32 sequence number.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import F32, F64, Chunk

_HEADER = struct.Struct("<qI")


def to_f32(values: F64, scale: float) -> F32:
    """values × scale as float32; what overflows float32 becomes infinite, for `decode` to find."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values if scale == 1.0 else values * scale, dtype=np.float32)


def unpack(data: bytes | memoryview, dtype: str, n_channels: int, scale: float) -> F32:
    """Interleaved samples -> (n_channels, n) float32 in the sensor's unit.

    Raises PayloadError where the length is zero or not a whole number of frames.
    """
    size = np.dtype(dtype).itemsize
    frame = size * n_channels
    if len(data) == 0:
        raise PayloadError("undecodable", "message holds no samples; expected at least one frame")
    if len(data) % frame:
        raise PayloadError(
            "undecodable",
            f"samples are {len(data)} bytes, not a multiple of {frame} ({n_channels} "
            f"channel{'s' if n_channels != 1 else ''} × {size} bytes); check n_channels, header and format",
        )
    counts = np.frombuffer(data, dtype).reshape(-1, n_channels).T
    with np.errstate(over="ignore", invalid="ignore"):
        samples = np.ascontiguousarray(counts, dtype=np.float32)
        if scale != 1.0:
            samples = samples * np.float32(scale)
    return samples


def pack(samples: F32, dtype: str, scale: float) -> bytes:
    """(n_channels, n) -> interleaved bytes; integers are rounded to the nearest count and clipped."""
    kind: np.dtype[Any] = np.dtype(dtype)
    if scale == 1.0 and kind.kind == "f":
        return bytes(np.ascontiguousarray(samples.T, dtype=kind))
    counts = samples.T.astype(np.float64) / scale
    if kind.kind == "f":
        return bytes(counts.astype(kind))
    if not np.isfinite(counts).all():
        raise PayloadError("not_finite", f"samples hold NaN or infinity, which {dtype} cannot carry")
    limits = np.iinfo(kind)
    return bytes(np.clip(np.rint(counts), limits.min, limits.max).astype(kind))


def decode(payload: bytes, layout: PayloadLayout, dtype: str, scale: float) -> Chunk:
    """A packed message, with or without the header, -> Chunk."""
    if layout.header == "none":
        return Chunk(unpack(payload, dtype, layout.n_channels, scale))
    _check_header(layout)
    if len(payload) < _HEADER.size:
        raise PayloadError(
            "undecodable",
            f"message is {len(payload)} bytes, shorter than its header of {_HEADER.size} "
            "(int64 ns UTC, uint32 sequence number)",
        )
    ns, seq = _HEADER.unpack_from(payload)
    samples = unpack(memoryview(payload)[_HEADER.size :], dtype, layout.n_channels, scale)
    return Chunk(samples, t=ns / 1e9, seq=seq)


def encode(chunk: Chunk, layout: PayloadLayout, dtype: str, scale: float) -> bytes:
    """The inverse of `decode`. Raises ValueError where the header needs a time or number it lacks."""
    body = pack(chunk.samples, dtype, scale)
    if layout.header == "none":
        return body
    _check_header(layout)
    if chunk.t is None or chunk.seq is None:
        raise ValueError(f"header ts_seq needs a time and a number; got t={chunk.t}, seq={chunk.seq}")
    return _HEADER.pack(round(chunk.t * 1e9), chunk.seq & 0xFFFFFFFF) + body


def _check_header(layout: PayloadLayout) -> None:
    if layout.header != "ts_seq":
        raise ValueError(f"payload header is {layout.header!r}; expected 'none' or 'ts_seq'")
