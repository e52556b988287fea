"""NASA IMS bearing text files: one snapshot a file, named by its time, a column a channel.

A folder of them is one recording whose chunks are the files in time order; a single file is a recording
of one chunk. The names (2004.02.12.10.32.39) are read as UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_agent.errors import RecordingError
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import F64, Chunk

#: As NASA states it; the files themselves do not.
FS_HZ = 20000.0

_COMMAS = bytes.maketrans(b"\t\n", b",,")
_LIST = msgspec.json.Decoder(list[float])


def claims(path: Path) -> bool:
    """A file named by a time, or a folder that holds one."""
    if path.is_dir():
        return any(_common.stamp(p.name) is not None and p.is_file() for p in path.iterdir())
    return path.is_file() and _common.stamp(path.name) is not None


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording of all snapshots in the folder, read one by one; fs is 20 kHz where none is asked."""
    candidates = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    files = [(t, p) for p in candidates if (t := _common.stamp(p.name)) is not None]
    fs_hz = FS_HZ if ask.fs_hz is None else _common.rate(path, ask, None)
    with files[0][1].open("rb") as first:
        keep = _common.channels(path, ask, len(first.readline().split()))

    def chunks() -> Iterator[Chunk]:
        for t, file in files:
            frames = parse(file)
            _common.channels(file, ask, frames.shape[1])
            yield _common.to_chunk(frames, keep, fs_hz, t=t)

    yield Recording(path.name, path, fs_hz, _common.label_of(path), chunks)


def parse(file: Path) -> F64:
    """One snapshot -> (n, n_channels). Raises RecordingError naming the file and what is wrong.

    Tabs become commas and the whole is read as one JSON list, an eighth of the time of numpy.loadtxt;
    numbers that JSON does not know (".5", "1.") take the slow way.
    """
    data = file.read_bytes()
    n_channels = len(data[: data.find(b"\n") + 1 or len(data)].split())
    if n_channels == 0:
        raise RecordingError(f"{file}: first line holds no numbers; expected tab-separated samples")
    body = data.translate(_COMMAS, b"\r").strip(b",")
    try:
        flat = np.asarray(_LIST.decode(b"[" + body + b"]"), np.float64)
    except msgspec.MsgspecError:
        return _slowly(file, data)
    if flat.size % n_channels or body.count(b",") + 1 != flat.size:
        raise RecordingError(
            f"{file}: {flat.size} numbers are not a multiple of the {n_channels} columns of the first line"
        )
    return flat.reshape(-1, n_channels)


def _slowly(file: Path, data: bytes) -> F64:
    try:
        return np.loadtxt(data.decode().splitlines(), dtype=np.float64, ndmin=2)
    except (ValueError, UnicodeError) as error:
        raise RecordingError(f"{file}: {error}; expected tab-separated samples, a column a channel") from None
