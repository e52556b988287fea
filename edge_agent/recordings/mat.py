"""Case Western (CWRU) .mat files: X105_DE_time, X105_FE_time, X105_BA_time -> channels DE, FE, BA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_agent.errors import RecordingError
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import Chunk

_KEY = re.compile(r"X(\d+)_(DE|FE|BA)_time")
_ORDER = ("DE", "FE", "BA")


def claims(path: Path) -> bool:
    """By name: .mat."""
    return path.is_file() and path.suffix.lower() == ".mat"


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording a measurement (a file may hold two); the rate must be asked for, it is not inside."""
    from scipy import io  # only for recordings: 20 MiB that the running agent does without

    try:
        shapes = {name: shape for name, shape, _ in io.whosmat(str(path))}
    except Exception as error:  # scipy's reader raises whatever it trips over in a damaged file
        raise RecordingError(f"{path}: is no MATLAB 5 file that can be read: {error}") from error
    measurements: dict[str, dict[str, str]] = {}
    for name in shapes:
        if match := _KEY.fullmatch(name):
            measurements.setdefault(match[1], {})[match[2]] = name
    if not measurements:
        raise RecordingError(
            f"{path}: holds {', '.join(shapes) or 'nothing'}; expected keys such as X105_DE_time"
        )
    fs_hz = _common.rate(path, ask, None)
    for number, places in sorted(measurements.items()):
        names = [places[place] for place in _ORDER if place in places]
        keep = _common.channels(path, ask, len(names))
        sizes = {name: int(np.prod(shapes[name])) for name in names}
        if len(set(sizes.values())) != 1:
            raise RecordingError(f"{path}: channels differ in length: {sizes}")

        def chunks(names: list[str] = names, keep: list[int] = keep) -> Iterator[Chunk]:
            try:
                arrays = io.loadmat(str(path), variable_names=names)
                frames = np.stack([np.ravel(arrays[name]) for name in names], axis=-1)
                if frames.dtype.kind not in "iuf":
                    raise TypeError(f"{', '.join(names)} hold {frames.dtype}, expected numbers")
            except Exception as error:
                raise RecordingError(f"{path}: is damaged: {error}") from error
            return _common.seconds(frames, keep, fs_hz)

        name = path.name if len(measurements) == 1 else f"{path.name}:X{number}"
        yield Recording(name, path, fs_hz, _common.label_of(path), chunks)
