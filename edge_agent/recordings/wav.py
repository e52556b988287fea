"""WAV and FLAC: each file its own recording, in chunks of one second, full scale = ±1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from edge_agent.errors import RecordingError
from edge_agent.payloads import _riff
from edge_agent.recordings import Ask, Recording, _common
from edge_agent.signals import Chunk


def claims(path: Path) -> bool:
    """By name: .wav and .flac."""
    return path.is_file() and path.suffix.lower() in (".wav", ".flac")


def read(path: Path, ask: Ask) -> Iterator[Recording]:
    """One recording. A WAV cut off in the middle gives the whole frames it holds."""
    if path.suffix.lower() == ".flac":
        yield _flac(path, ask)
        return
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            wave = _riff.parse(file, size)
    except ValueError as error:
        raise RecordingError(f"{path}: {error}") from None
    n = wave.held // wave.frame
    if n == 0:
        raise RecordingError(f"{path}: holds no samples; expected at least one frame of {wave.frame} bytes")
    fs_hz = _common.rate(path, ask, wave.fs_hz)
    keep = _common.channels(path, ask, wave.n_channels)

    def chunks() -> Iterator[Chunk]:
        step = max(1, round(fs_hz))
        with path.open("rb") as file:
            file.seek(wave.offset)
            for begin in range(0, n, step):
                data = file.read(min(step, n - begin) * wave.frame)
                yield Chunk(_riff.samples(wave, data)[keep], fs_hz=fs_hz)

    yield Recording(path.name, path, fs_hz, _common.label_of(path), chunks)


def _flac(path: Path, ask: Ask) -> Recording:
    soundfile = _soundfile(path)
    try:
        info = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise RecordingError(f"{path}: is no FLAC file: {error}") from None
    fs_hz = _common.rate(path, ask, float(info.samplerate))
    keep = _common.channels(path, ask, info.channels)

    def chunks() -> Iterator[Chunk]:
        blocks = soundfile.blocks(str(path), info.samplerate, dtype="float32", always_2d=True)
        try:
            for block in blocks:
                yield _common.to_chunk(block, keep, fs_hz)
        except soundfile.SoundFileError as error:
            raise RecordingError(f"{path}: is damaged: {error}") from None

    return Recording(path.name, path, fs_hz, _common.label_of(path), chunks)


def _soundfile(path: Path) -> ModuleType:
    try:
        import soundfile
    except ImportError:
        raise RecordingError(f"{path}: FLAC needs the package soundfile: pip install soundfile") from None
    module: ModuleType = soundfile
    return module
