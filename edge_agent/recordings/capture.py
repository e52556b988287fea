"""Captures of live messages, written by `edge-agent capture`: JSON Lines, suffix `.capture`.

    {"capture": 1, "sensor": "pump-1-de", "topic": "plant/pump-1/de/waveform", "layout": {...}, "fs_hz": 25600}
    {"received": 1763776990.123, "payload": "<base64 of the message as it came>"}
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from edge_agent.errors import PayloadError, RecordingError
from edge_agent.payloads import PayloadLayout, decode, formats
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import Chunk

VERSION = 1
#: A pause between receipts longer than this, beyond the samples themselves, is a gap.
_SILENT_S = 60.0


class Header(msgspec.Struct, frozen=True):
    """First line of a capture."""

    capture: int
    sensor: str
    topic: str
    layout: PayloadLayout
    fs_hz: float


class Message(msgspec.Struct, frozen=True):
    """One message as it came. received: receipt clock in s since 1970."""

    received: float
    payload: bytes


_HEADER = msgspec.json.Decoder(Header)
_MESSAGE = msgspec.json.Decoder(Message)


def header_line(*, sensor: str, topic: str, layout: PayloadLayout, fs_hz: float) -> bytes:
    """The first line, with its line end."""
    fields = {"capture": VERSION, "sensor": sensor, "topic": topic, "layout": asdict(layout), "fs_hz": fs_hz}
    return msgspec.json.encode(fields) + b"\n"


def message_line(received: float, payload: bytes) -> bytes:
    """One message as a line, with its line end."""
    return msgspec.json.encode(Message(received, payload)) + b"\n"


def claims(path: Path) -> bool:
    """By name: .capture."""
    return path.is_file() and path.suffix.lower() == ".capture"


def read_header(path: Path) -> Header:
    """The first line. Raises RecordingError where it is none of ours."""
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = _HEADER.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RecordingError(f"{path}, line 1: {error}; expected the header of a capture") from None
    if header.capture != VERSION:
        raise RecordingError(f"{path}: capture version is {header.capture}; expected {VERSION}")
    if header.layout.format not in formats():
        raise RecordingError(
            f"{path}: payload format is {header.layout.format!r}; expected one of {', '.join(formats())}"
        )
    if header.layout.header not in ("none", "ts_seq") or header.layout.n_channels < 1:
        raise RecordingError(
            f"{path}: payload header is {header.layout.header!r} with {header.layout.n_channels} channels; "
            "expected 'none' or 'ts_seq' and at least one channel"
        )
    return header


def messages(path: Path) -> Iterator[Message]:
    """The messages as they came, for replay. A last line cut off by a kill or a full disk ends them."""
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            try:
                message = _MESSAGE.decode(line)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise RecordingError(f"{path}, line {number}: {error}; expected a captured message") from None
            yield message


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording. Messages that the agent would drop as unreadable are dropped here too."""
    header = read_header(path)
    fs_hz = _common.rate(path, ask, header.fs_hz)
    keep = _common.channels(path, ask, header.layout.n_channels)

    def chunks() -> Iterator[Chunk]:
        heard: float | None = None
        for message in messages(path):
            try:
                chunk = decode(message.payload, header.layout)
            except PayloadError:
                continue
            duration = chunk.samples.shape[1] / fs_hz
            t = chunk.t
            # As in the agent: without a time of its own, a stream's clock is set by the first receipt and
            # again after a silence, and runs on nominally in between.
            if t is None and (heard is None or message.received - heard - duration > _SILENT_S):
                t = message.received - duration
            heard = message.received
            yield replace(chunk, samples=chunk.samples[keep], t=t, fs_hz=fs_hz)

    yield Recording(path.name, path, fs_hz, _common.label_of(path), chunks)
