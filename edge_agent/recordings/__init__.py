"""Files with recorded samples; one file per format, found by its name in this folder.

A format module defines

    claims(path: Path) -> bool                       by name and first bytes, never by reading it all
    read(path: Path, ask: Ask) -> Iterator[Recording]

and `open_recordings` walks a path (a file or a folder) and asks them in turn.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.signals import Chunk


@dataclass(frozen=True)
class Ask:
    """What the caller knows and wants.

    fs_hz    : sampling rate, for formats that carry none; where the file states one they must agree
    channels : 0-based indexes to keep, None keeps all
    """

    fs_hz: float | None = None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Recording:
    """One recording: no window crosses from one into the next, but times may continue.

    name   : the file's name, with the array's or record's name where a file holds several
    label  : "normal" or "anomaly" where the name says so (DCASE file names, else a parent folder),
             None otherwise; unsupervised training never reads it
    fs_hz  : sampling rate
    chunks : opens the samples anew at each call; every chunk (n_channels, n) float32 with fs_hz set,
             t where the format carries times
    """

    name: str
    path: Path
    fs_hz: float
    label: str | None
    chunks: Callable[[], Iterator[Chunk]]


def formats() -> tuple[str, ...]:
    """Names of the formats found in this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def open_recordings(path: Path, ask: Ask = Ask()) -> Iterator[Recording]:
    """Every recording under `path`, in the order of names (which for dated names is that of time).

    A folder is walked recursively; files no format claims are passed over, but a path that yields
    nothing at all is an error. Raises RecordingError with what was found and what was expected.
    """
    from edge_agent.errors import RecordingError

    modules = [importlib.import_module(f"{__name__}.{name}") for name in formats()]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = False
    for file in files:
        for module in modules:
            if module.claims(file):
                for recording in module.read(file, ask):
                    found = True
                    yield recording
                break
    if not found:
        known = ", ".join(formats())
        what = "does not exist" if not path.exists() else f"holds no recording among its {len(files)} files"
        raise RecordingError(f"{path}: {what}; expected a file or folder of: {known}")
