"""`f32le`: packed little-endian float32 in the sensor's unit, channels interleaved."""

from __future__ import annotations

from edge_agent.payloads import PayloadLayout, _packed
from edge_agent.signals import Chunk


def decode(payload: bytes, layout: PayloadLayout) -> Chunk:
    """Packed float32, each × scale (default 1) -> Chunk; raises only PayloadError."""
    return _packed.decode(payload, layout, "<f4", layout.scale or 1.0)


def encode(chunk: Chunk, layout: PayloadLayout) -> bytes:
    """The inverse of `decode`; keeps every bit where the scale is 1."""
    return _packed.encode(chunk, layout, "<f4", layout.scale or 1.0)
