"""`json`: {"ts": T, "fs": HZ, "seq": N, "v": ...} with v a list, channels × samples, or base64.

    "v": [0.1, 0.2]                    one channel
    "v": [[0.1, 0.2], [1.1, 1.2]]      two channels of two samples
    "enc": "f4" | "i2", "v": "zczMPQ==" base64 of little-endian samples, channels interleaved
"""

from __future__ import annotations

import base64
from typing import Annotated

import msgspec
import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout, _numbers, _packed, i16le
from edge_agent.signals import F32, Chunk


class _Message(msgspec.Struct):
    v: msgspec.Raw
    ts: str | int | float | None = None
    fs: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    seq: Annotated[int, msgspec.Meta(ge=0)] | None = None
    enc: str | None = None


_MESSAGE = msgspec.json.Decoder(_Message)
_FLAT = msgspec.json.Decoder(list[float])
_NESTED = msgspec.json.Decoder(list[list[float]])
_TEXT = msgspec.json.Decoder(str)


def decode(payload: bytes, layout: PayloadLayout) -> Chunk:
    """One message, each sample × scale (default 1; 1/32768 for "i2") -> Chunk; raises only PayloadError."""
    message = _numbers.parse(_MESSAGE, payload, "json message")
    raw = bytes(message.v).strip()
    samples = _listed(raw, layout) if message.enc is None else _encoded(raw, message.enc, layout)
    seq = None if message.seq is None else message.seq & 0xFFFFFFFF
    return Chunk(samples, t=_numbers.time_of(message.ts), fs_hz=message.fs, seq=seq)


def _listed(raw: bytes, layout: PayloadLayout) -> F32:
    scale = layout.scale or 1.0
    if raw[:1] != b"[":
        raise PayloadError("undecodable", f'v is {raw[:40]!r} without "enc"; expected a list of numbers')
    if raw[1:].lstrip()[:1] != b"[":
        x = np.asarray(_numbers.parse(_FLAT, raw, "v"), np.float64)[np.newaxis]
    else:
        rows = _numbers.parse(_NESTED, raw, "v")
        if len(rows) != layout.n_channels:
            raise PayloadError(
                "wrong_channels", f"v has {len(rows)} channels; payload.n_channels says {layout.n_channels}"
            )
        for c, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise PayloadError(
                    "undecodable", f"v: channel {c} has {len(row)} samples, channel 0 has {len(rows[0])}"
                )
        x = np.asarray(rows, np.float64)
    if x.size == 0:
        raise PayloadError("undecodable", "v holds no samples; expected at least one number")
    return _packed.to_f32(x, scale)


def _encoded(raw: bytes, enc: str, layout: PayloadLayout) -> F32:
    known = {"f4": ("<f4", layout.scale or 1.0), "i2": ("<i2", layout.scale or i16le.SCALE)}
    if enc not in known:
        raise PayloadError("undecodable", f'enc is {enc[:40]!r}; expected "f4" or "i2"')
    text = _numbers.parse(_TEXT, raw, f'v (with "enc": "{enc}")')
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PayloadError("undecodable", f"v is no base64: {error}") from None
    dtype, scale = known[enc]
    return _packed.unpack(data, dtype, layout.n_channels, scale)


def encode(chunk: Chunk, layout: PayloadLayout) -> bytes:
    """The inverse of `decode`, with the samples as numbers and the time in s to the microsecond."""
    rows = [_numbers.listed(row, layout.scale or 1.0) for row in chunk.samples]
    v = f"[{rows[0]}]" if len(rows) == 1 else "[" + ",".join(f"[{row}]" for row in rows) + "]"
    fields = {"ts": None if chunk.t is None else round(chunk.t, 6), "fs": chunk.fs_hz, "seq": chunk.seq}
    given = {key: value for key, value in fields.items() if value is not None}
    return msgspec.json.encode({**given, "v": msgspec.Raw(v.encode())})
