"""Wire formats of sensor messages; one file per format, found by its name in this folder.

A format module defines

    decode(payload: bytes, layout: PayloadLayout) -> Chunk      raises only PayloadError
    encode(chunk: Chunk, layout: PayloadLayout) -> bytes        the inverse, for replay and the simulator
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.signals import Chunk


@dataclass(frozen=True)
class PayloadLayout:
    """How one sensor writes its messages.

    n_channels : channels in the message (not all need be used)
    header     : "none", or "ts_seq": int64 ns UTC of the first sample and uint32 sequence number
    scale      : physical unit per count; None is the format's own default (1; 1/32768 for i16le)
    """

    format: str
    n_channels: int = 1
    header: str = "none"
    scale: float | None = None


def formats() -> tuple[str, ...]:
    """Names of the formats found in this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


@lru_cache(maxsize=64)
def _module(name: str) -> Any:
    # Remembered, since the folder is read from the disk and this is asked for every message.
    if name not in formats():
        raise ValueError(f"payload format {name!r} is unknown; known: {', '.join(formats())}")
    return importlib.import_module(f"{__name__}.{name}")


def decode(payload: bytes, layout: PayloadLayout) -> Chunk:
    """One message -> Chunk (layout.n_channels, n) with finite samples.

    Raises PayloadError("undecodable" | "wrong_channels" | "not_finite"); never anything else,
    whatever the bytes are.
    """
    chunk: Chunk = _module(layout.format).decode(payload, layout)
    got = chunk.samples.shape[0]
    if got != layout.n_channels:
        raise PayloadError(
            "wrong_channels",
            f"message has {got} channel{'s' if got != 1 else ''}; payload.n_channels says {layout.n_channels}",
        )
    if not np.isfinite(chunk.samples).all():
        bad = int(np.size(chunk.samples) - np.count_nonzero(np.isfinite(chunk.samples)))
        raise PayloadError(
            "not_finite",
            f"{bad} of {chunk.samples.size} samples are NaN or infinite; send finite numbers only",
        )
    return chunk


def encode(chunk: Chunk, layout: PayloadLayout) -> bytes:
    """The inverse of `decode`; float32 formats keep every bit, i16le rounds to the nearest count."""
    payload: bytes = _module(layout.format).encode(chunk, layout)
    return payload
