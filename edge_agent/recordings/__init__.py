"""Files with recorded samples; one file per format, found by its name in this folder.

A format module defines

    claims(path: Path) -> bool                       by name and first bytes, never by reading it all
    read(path: Path, ask: Ask) -> Iterator[Recording]

and `open_recordings` walks a path (a file or a folder) and asks them in turn; a format may claim a folder
as one recording. `windows` cuts a recording exactly as the agent cuts a stream.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edge_agent import windowing
from edge_agent.errors import RecordingError
from edge_agent.signals import Chunk, Window
from edge_agent.windowing import WindowSpec


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

    A folder is walked recursively; hidden files and files no format claims are passed over, but a path
    that yields nothing at all is an error. Where a format claims a folder as one recording (NASA), its
    files are not read a second time. Raises RecordingError with what was found and what was expected.
    """
    modules = [importlib.import_module(f"{__name__}.{name}") for name in formats()]
    found = False
    for module, item in _claimed(path, modules):
        for recording in module.read(item, ask):
            found = True
            yield recording
    if not found:
        what = "holds no recording" if path.exists() else "does not exist"
        raise RecordingError(f"{path}: {what}; expected a file or folder of: {', '.join(formats())}")


def _claimed(path: Path, modules: Sequence[ModuleType]) -> Iterator[tuple[ModuleType, Path]]:
    """(format, file or folder) under `path`."""
    if not path.is_dir():
        yield from [(module, path) for module in modules if module.claims(path)][:1]
        return
    whole = [module for module in modules if module.claims(path)]
    yield from ((module, path) for module in whole)
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        yield from (
            (module, item)
            for module, item in _claimed(entry, modules)
            if item != entry or entry.is_dir() or module not in whole
        )


def windows(recording: Recording, n_samples: int, hop_samples: int) -> Iterator[Window]:
    """The windows of one recording, cut by the agent's own windower: gaps, duplicates and all.

    Where the chunks carry no time, the first sample is at 0 s. Chunks the agent would drop (`duplicate`,
    `late`) are left out here too.
    """
    spec: WindowSpec | None = None
    for chunk in recording.chunks():
        n_channels, n = chunk.samples.shape
        if spec is None:
            spec = WindowSpec(recording.fs_hz, n_samples, hop_samples, n_channels)
            state = windowing.initial()
        begin = chunk.t if chunk.t is not None else state.next_t or 0.0
        pushed = windowing.push(state, spec, chunk, begin + n / recording.fs_hz)
        state = pushed.state
        yield from pushed.windows
