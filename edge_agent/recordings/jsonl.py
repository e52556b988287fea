"""Records as JSON: .jsonl with one `record_json` object a line, .json with a list of them or a single one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from edge_agent.errors import PayloadError, RecordingError
from edge_agent.payloads import PayloadLayout, decode
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import Chunk

_LAYOUT = PayloadLayout("record_json")
_RECORDS = msgspec.json.Decoder(list[msgspec.Raw])


def claims(path: Path) -> bool:
    """.jsonl or .json whose first 4 KiB name `signal_value`."""
    if not path.is_file() or path.suffix.lower() not in (".jsonl", ".json"):
        return False
    with path.open("rb") as file:
        return b'"signal_value"' in file.read(4096)


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording a file, a chunk a record; the rate must be asked for, records carry none."""
    fs_hz = _common.rate(path, ask, None)
    keep = _common.channels(path, ask, 1)

    def chunks() -> Iterator[Chunk]:
        for place, text in _records(path):
            try:
                chunk = decode(text, _LAYOUT)
            except PayloadError as error:
                raise RecordingError(f"{path}, {place}: {error}") from None
            yield replace(chunk, samples=chunk.samples[keep], fs_hz=fs_hz)

    yield Recording(path.name, path, fs_hz, _common.label_of(path), chunks)


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where, text) of each record."""
    if path.suffix.lower() == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", line
        return
    data = path.read_bytes()
    if data.lstrip()[:1] == b"{":
        yield "record 0", data
        return
    try:
        records = _RECORDS.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordingError(f"{path}: {error}; expected a list of records") from None
    for number, raw in enumerate(records):
        yield f"record {number}", bytes(raw)
