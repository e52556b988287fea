"""`i16le`: packed little-endian int16 counts, channels interleaved."""

from __future__ import annotations

from edge_agent.payloads import PayloadLayout, _packed
from edge_agent.signals import Chunk

SCALE = 1.0 / 32768.0


def decode(payload: bytes, layout: PayloadLayout) -> Chunk:
    """Packed int16, each × scale (default 1/32768: -32768 -> -1.0) -> Chunk; raises only PayloadError."""
    return _packed.decode(payload, layout, "<i2", layout.scale or SCALE)


def encode(chunk: Chunk, layout: PayloadLayout) -> bytes:
    """The inverse of `decode`; rounds to the nearest count and clips at full scale."""
    return _packed.encode(chunk, layout, "<i2", layout.scale or SCALE)
