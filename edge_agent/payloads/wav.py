"""`wav`: a whole WAV file as one message; PCM scaled to ±1."""

from __future__ import annotations

import io

import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout, _riff
from edge_agent.signals import Chunk


def decode(payload: bytes, layout: PayloadLayout) -> Chunk:
    """A WAV file, full scale = ±1 × scale (default 1) -> Chunk with fs; raises only PayloadError."""
    try:
        wave = _riff.parse(io.BytesIO(payload), len(payload))
    except ValueError as error:
        raise PayloadError("undecodable", f"WAV message {error}") from None
    if wave.stated is not None and wave.stated > wave.held:
        raise PayloadError(
            "undecodable", f"WAV message states {wave.stated} bytes of samples, {wave.held} came: cut off"
        )
    if wave.held == 0 or wave.held % wave.frame:
        raise PayloadError(
            "undecodable",
            f"WAV message holds {wave.held} bytes of samples; expected a multiple of {wave.frame} above 0",
        )
    x = _riff.samples(wave, memoryview(payload)[wave.offset : wave.offset + wave.held])
    if layout.scale is not None and layout.scale != 1.0:
        with np.errstate(over="ignore", invalid="ignore"):
            x = x * np.float32(layout.scale)
    return Chunk(x, fs_hz=wave.fs_hz)


def encode(chunk: Chunk, layout: PayloadLayout) -> bytes:
    """The inverse of `decode`, as float32, which keeps every bit. Raises ValueError without an fs."""
    if chunk.fs_hz is None:
        raise ValueError("a WAV message needs the chunk's fs_hz; it is None")
    x = chunk.samples if layout.scale in (None, 1.0) else chunk.samples / np.float32(layout.scale or 1.0)
    return _riff.build(x, chunk.fs_hz)
