"""NumPy files: .npz (each array a recording, or one of snapshots) and .npy.

| array | read as |
|---|---|
| (n,) | one channel |
| (n, c), c <= 16, n > c | c channels |
| (snapshots, n, c), c <= 16 | snapshots of c channels; no window crosses from one into the next |
| scalar `fs` or `fs_hz` | the sampling rate of all |
| `files`: names such as 2004.02.12.10.32.39; `start_hms_us`: (snapshots, 4) hour, minute, s, µs | times |

Where a file holds snapshots, its flat arrays describe them and are passed over. Integers are counts, but
for a name that ends in `_milli`: thousandths of the unit. Arrays of fewer than 64 samples, of other
shapes, of text and of objects are passed over; nothing is ever unpickled.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import RecordingError
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import Chunk

_MAX_CHANNELS = 16
_MIN_SAMPLES = 64
#: What zipfile, zlib and NumPy raise on damaged files (RuntimeError: encrypted, unknown compression).
_DAMAGE = (
    ValueError,
    TypeError,
    SyntaxError,
    OSError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class _Array:
    """One array as its header describes it; the numbers stay in the file."""

    name: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def numeric(self) -> bool:
        return self.dtype.kind in "iuf"

    @property
    def snapshots(self) -> bool:
        """(snapshots, n, c)"""
        return self.numeric and len(self.shape) == 3 and self.shape[2] <= _MAX_CHANNELS < self.shape[1]

    @property
    def flat(self) -> bool:
        """(n,) or (n, c)"""
        return (
            self.numeric
            and len(self.shape) in (1, 2)
            and self.shape[0] >= _MIN_SAMPLES
            and (len(self.shape) == 1 or 1 <= self.shape[1] <= _MAX_CHANNELS)
        )


def claims(path: Path) -> bool:
    """By name: .npz and .npy."""
    return path.is_file() and path.suffix.lower() in (".npz", ".npy")


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording an array, in the order of names; each is read from the file piece by piece."""
    try:
        arrays = _headers(path)
        described = [a for a in arrays if a.snapshots] or [a for a in arrays if a.flat]
        fs_stated = _scalar(path, arrays)
        times = _times(path, arrays)
    except _DAMAGE as error:
        raise RecordingError(f"{path}: is no NumPy file that can be read: {error}") from None
    if not described:
        held = ", ".join(f"{a.name} {a.shape} {a.dtype}" for a in arrays[:8]) or "nothing"
        raise RecordingError(
            f"{path}: holds {held}; expected numbers as (n,), (n, channels) or (snapshots, n, channels) "
            f"with at most {_MAX_CHANNELS} channels"
        )
    fs_hz = _common.rate(path, ask, fs_stated)
    for array in sorted(described, key=lambda a: a.name):
        keep = _common.channels(path, ask, array.shape[-1] if len(array.shape) > 1 else 1)
        own = times if times is not None and array.snapshots and len(times) == array.shape[0] else None
        name = path.name if len(described) == 1 else f"{path.name}:{array.name}"
        yield Recording(name, path, fs_hz, _common.label_of(path), _opener(path, array, keep, fs_hz, own))


def _opener(
    path: Path, array: _Array, keep: list[int], fs_hz: float, times: list[float] | None
) -> Callable[[], Iterator[Chunk]]:
    def chunks() -> Iterator[Chunk]:
        rows = 1 if array.snapshots else max(1, round(fs_hz))
        for i, piece in enumerate(_pieces(path, array, rows)):
            frames = piece[0] if array.snapshots else piece.reshape(len(piece), -1)
            if array.name.endswith("_milli"):
                frames = frames / 1000.0
            t = None if times is None else times[i]
            # Without times every second number is left out, which says that snapshots do not join.
            seq = 2 * i if array.snapshots and times is None else None
            yield _common.to_chunk(frames, keep, fs_hz, t=t, seq=seq)

    return chunks


def _headers(path: Path) -> list[_Array]:
    if path.suffix.lower() == ".npy":
        names = [path.stem]
    else:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    found = []
    for name in names:
        with _open(path, name) as file:
            found.append(_Array(name, *_header(file)))
    return found


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"array format {version}; expected 1.0 or 2.0")


@contextmanager
def _open(path: Path, name: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if path.suffix.lower() == ".npy":
            yield stack.enter_context(path.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield cast(BinaryIO, stack.enter_context(archive.open(f"{name}.npy")))


def _pieces(path: Path, array: _Array, rows: int) -> Iterator[NDArray[Any]]:
    """The array in slices of `rows` along its first axis; in Fortran order it is read as a whole."""
    if array.fortran and len(array.shape) > 1:
        whole = _whole(path, array)
        for begin in range(0, len(whole), rows):
            yield whole[begin : begin + rows]
        return
    row = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    with _open(path, array.name) as file:
        _header(file)
        for begin in range(0, array.shape[0], rows):
            n = min(rows, array.shape[0] - begin)
            try:
                data = file.read(n * row)
            except _DAMAGE as error:
                raise RecordingError(f"{path}: array {array.name} is damaged: {error}") from None
            if len(data) != n * row:
                raise RecordingError(
                    f"{path}: array {array.name} ends within row {begin + len(data) // row} of "
                    f"{array.shape[0]}; the file is cut off"
                )
            yield np.frombuffer(data, array.dtype).reshape(n, *array.shape[1:])


def _whole(path: Path, array: _Array) -> NDArray[Any]:
    try:
        with _open(path, array.name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGE as error:
        raise RecordingError(f"{path}: array {array.name} is damaged: {error}") from None


def _scalar(path: Path, arrays: list[_Array]) -> float | None:
    for array in arrays:
        if array.name in ("fs", "fs_hz") and array.numeric and int(np.prod(array.shape)) == 1:
            return float(_whole(path, array).reshape(()))
    return None


def _times(path: Path, arrays: list[_Array]) -> list[float] | None:
    """Times of the snapshots; a clock without a date counts from 1970-01-01 and runs over midnight."""
    for array in arrays:
        if array.name == "files" and array.dtype.kind == "U" and len(array.shape) == 1:
            stamps = [_common.stamp(name) for name in _whole(path, array).tolist()]
            known = [t for t in stamps if t is not None]
            if len(known) == len(stamps):
                return known
        if array.name == "start_hms_us" and array.numeric and array.shape[1:] == (4,):
            clock = _whole(path, array) @ np.array([3600.0, 60.0, 1.0, 1e-6])
            midnights = np.cumsum(np.diff(clock, prepend=clock[:1]) < -43200.0)
            t = clock + 86400.0 * midnights
            # An entry not above all before it is a slip of the logger (FEMTO 1_1 has two): interpolated.
            good = np.flatnonzero(t > np.maximum.accumulate(np.concatenate([[-np.inf], t[:-1]])))
            return [float(v) for v in np.interp(np.arange(len(t)), good, t[good])]
    return None
