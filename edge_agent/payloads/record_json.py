"""`record_json`: {"data_time": T, "signal_value": "0.1,0.2,…" or [0.1 …], "sensor_id": S}, one channel."""

from __future__ import annotations

import msgspec
import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.payloads import PayloadLayout, _numbers, _packed
from edge_agent.signals import F64, Chunk, rfc3339


class _Record(msgspec.Struct):
    signal_value: str | list[float]
    data_time: str | int | float | None = None
    sensor_id: str | int | None = None


_RECORD = msgspec.json.Decoder(_Record)
_LIST = msgspec.json.Decoder(list[float])


def decode(payload: bytes, layout: PayloadLayout) -> Chunk:
    """One record, each sample × scale (default 1) -> Chunk (1, n); raises only PayloadError."""
    record = _numbers.parse(_RECORD, payload, "record_json message")
    value = record.signal_value
    x = _text(value) if isinstance(value, str) else np.asarray(value, np.float64)
    if x.size == 0:
        raise PayloadError("undecodable", "signal_value holds no samples; expected at least one number")
    return Chunk(
        _packed.to_f32(x, layout.scale or 1.0)[np.newaxis],
        t=_numbers.time_of(record.data_time),
        sensor=None if record.sensor_id is None else str(record.sensor_id),
    )


def _text(text: str) -> F64:
    """Comma-separated numbers -> (n,); also what JSON refuses: "1.", "+1", ".5", a comma at the end."""
    try:
        return np.asarray(_LIST.decode(f"[{text}]"), np.float64)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        parts = text.strip().removesuffix(",").split(",")
    values: list[float] = []
    for i, part in enumerate(parts):
        try:
            if "_" in part:  # Python reads 1_000 as a number, no sensor writes one so
                raise ValueError
            values.append(float(part))
        except ValueError:
            raise PayloadError(
                "undecodable", f"signal_value: number {i} is {part[:40]!r}; expected a number"
            ) from None
    return np.asarray(values, np.float64)


def encode(chunk: Chunk, layout: PayloadLayout) -> bytes:
    """The inverse of `decode`, with the samples as text and the time to the millisecond."""
    if chunk.samples.shape[0] != 1:
        raise ValueError(f"record_json carries one channel; the chunk has {chunk.samples.shape[0]}")
    record = {
        "data_time": None if chunk.t is None else rfc3339(chunk.t),
        "signal_value": _numbers.listed(chunk.samples[0], layout.scale or 1.0),
        "sensor_id": chunk.sensor,
    }
    return msgspec.json.encode({key: value for key, value in record.items() if value is not None})
