"""Recordings to a table of feature vectors, cut and computed by the agent's own code.

    Source ─► Recording ─► windows (edge_agent.recordings) ─► FeatureSet.raw ─► Table

Samples are not kept: a table of a thousand one-second snapshots is a few hundred kilobytes, and several
training runs can share it. What is kept is the mean spectrum of the healthy windows, from which `surrogate`
makes the bundle's golden windows: no recorded sample leaves the workstation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from edge_agent import simulate
from edge_agent.errors import ConfigError, Problem, RecordingError
from edge_agent.features import FeatureSet, FeatureSpec
from edge_agent.quality import IDLE, Profile
from edge_agent.recordings import Ask, Recording, open_recordings, windows
from edge_agent.signals import F32, F64, Chunk
from trainer import spans
from trainer.recipe import Recipe, Source

#: Windows whose spectra are averaged for the surrogate.
_SPECTRA = 64
#: Windows of each machine and of each of the first recordings that the profile rests on.
_OF_EACH = 8
#: Windows that go through the feature families at once.
_BATCH = 16
#: Period of a long surrogate, in samples.
_PERIOD = 8192
_ID = re.compile(r"(?:^|[_/])((?:id|section)_\d+)", re.IGNORECASE)
_NOT_A_MACHINE = {"normal", "anomaly", "abnormal", "train", "test", "source_test", "target_test"}


@dataclass(frozen=True)
class Clip:
    """What is known of one recording: its name, label ("normal", "anomaly" or None) and machine id."""

    name: str
    label: str | None
    machine: str | None

    @property
    def healthy(self) -> bool:
        """Everything that no label calls anomalous."""
        return self.label != "anomaly"


@dataclass(frozen=True)
class Table:
    """Features of every window of every recording, in order; n windows, R recordings.

    spec      : fs, window, families; without standardisation constants
    names     : (F,) names of the features
    vectors   : (n, n_frames, F) float32, not standardised
    start     : (n,) time of each window's first sample, s
    recording : (n,) index into `clips`
    clips     : (R,)
    spectrum  : (C, n_samples // 2 + 1) root of the mean power of healthy windows' spectra
    profile   : of healthy windows, for data quality on the device
    """

    spec: FeatureSpec
    names: tuple[str, ...]
    vectors: F32
    start: F64
    recording: Any
    clips: tuple[Clip, ...]
    spectrum: F64
    profile: Profile | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def healthy(self) -> Any:
        """(n,) bool: windows of recordings that no label calls anomalous."""
        return np.array([c.healthy for c in self.clips], bool)[self.recording]

    def of(self, indices: Any) -> tuple[Clip, ...]:
        """The clip of each window."""
        return tuple(self.clips[i] for i in self.recording[indices])


def machine_of(recording: Recording, root: Path) -> str | None:
    """The machine id a file's place says: `id_00` or `section_00` in its name, else its sub-folder.

    normal_id_02_00000007.wav -> "id_02"; root/pump-3/a.wav -> "pump-3"; root/normal/a.wav -> None.
    """
    if found := _ID.search(recording.name):
        return found.group(1).lower()
    folder = recording.path.parent
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    for part in reversed(parts):
        if found := _ID.search(part):
            return found.group(1).lower()
        if part.lower() not in _NOT_A_MACHINE:
            return re.sub(r"[^a-z0-9_-]", "-", part.lower())
    return None


def recordings(source: Source) -> Iterator[tuple[Recording, Clip]]:
    """Every recording of a source with what is known of it."""
    if source.simulate is not None:
        yield from _simulated(source)
        return
    assert source.path is not None  # the recipe has one or the other
    found = open_recordings(source.path, Ask(source.fs_hz, source.channels))
    for recording in found if source.verdicts is None else _judged(found, source.verdicts):
        label = recording.label if source.labels else None
        yield recording, Clip(recording.name, label, source.machine or machine_of(recording, source.path))


def _judged(found: Iterable[Recording], verdicts: Path) -> Iterator[Recording]:
    """The recordings in pieces, labelled by what people said of the alarms in them; raises RecordingError where nobody said
    anything of any of them."""
    given, used = spans.read_spans(verdicts), False
    for recording in found:
        for piece in spans.cut(recording, spans.of_sensor(given, recording)):
            used |= piece.label is not None
            yield piece
    if not used:
        sensors = ", ".join(sorted({span.sensor for span in given})) or "no sensor"
        raise RecordingError(
            f"{verdicts}: none of its {len(given)} spans (of {sensors}) lies in the recordings; expected captures of these "
            "sensors and times (edge-agent capture)"
        )


def table(recipe: Recipe, found: Iterable[tuple[Recording, Clip]] | None = None) -> Table:
    """The feature table of a recipe's data, or of recordings given instead.

    Raises RecordingError where nothing can be used: no recording, several sampling rates or channel
    counts, all shorter than one window.
    """
    if found is None:
        _check_rates(recipe)
        found = (pair for source in recipe.data for pair in recordings(source))
    features: FeatureSet | None = None
    clips: list[Clip] = []
    vectors: list[F32] = []
    starts: list[float] = []
    owner: list[int] = []
    power: F64 | float = 0.0
    profile: Profile | None = None
    profiled: Counter[str] = Counter()
    levels: dict[str, list[float]] = {}
    n_spectra = n_profiled = n_short = 0
    for recording, clip in found:
        if features is None:
            spec = _spec(recipe, recording)
            try:
                features = FeatureSet(spec)
            except ValueError as error:
                problem = Problem(
                    "features", f"{len(spec.families)} families at {spec.fs_hz:g} Hz", str(error)
                )
                raise ConfigError(recipe.origin, [problem]) from error
        spec = features.spec
        if not _same_rate(recording.fs_hz, spec.fs_hz):
            raise RecordingError(
                f"{recording.name}: {recording.fs_hz:g} Hz, but the recordings before it have {spec.fs_hz:g} Hz; "
                "expected one sampling rate: resample the file or leave it out"
            )
        n_before = len(starts)
        cut = windows(recording, spec.n_samples, spec.hop_samples)
        while batch := list(islice(cut, _BATCH)):
            x = np.stack([w.samples for w in batch])
            if x.shape[1] != spec.n_channels:
                raise RecordingError(
                    f"{recording.name}: {x.shape[1]} channels, but the recordings before it have "
                    f"{spec.n_channels}; choose with `channels`"
                )
            if not np.isfinite(x).all():
                raise RecordingError(
                    f"{recording.name}: holds NaN or infinite samples; mend or leave out the file"
                )
            vectors.append(features.raw(x))
            starts += [w.start for w in batch]
            owner += [len(clips)] * len(batch)
            if clip.healthy and n_spectra < _SPECTRA:
                power = power + (np.abs(fft.rfft(x)) ** 2).sum(0, dtype=np.float64)
                n_spectra += len(batch)
            if clip.healthy:
                # The first windows overall, and some of every machine and of every early recording: a run to failure
                # ends unhealthy.
                some = _SPECTRA - n_profiled
                if clip.machine is not None:
                    some = max(some, _OF_EACH - profiled[clip.machine])
                if len(clips) < _SPECTRA:
                    some = max(some, _OF_EACH - (len(starts) - n_before - len(batch)))
                if some > 0:
                    part = Profile.of(x[:some], spec.fs_hz)
                    profile = part if profile is None else profile.joined(part, n_profiled, len(x[:some]))
                    n_profiled += len(x[:some])
                    profiled[clip.machine or ""] += len(x[:some])
                    levels.setdefault(clip.machine or "", []).append(max(part.rms))
        n_short += len(starts) == n_before
        clips.append(clip)
    if features is None or not starts:
        raise RecordingError(
            f"{recipe.origin}: {len(clips)} recordings, {n_short} of them shorter than one window; "
            "expected at least one whole window: choose a shorter window"
        )
    if profile is not None and _apart(levels.values()):
        profile = replace(profile, quiet=(0.0,) * len(profile.quiet))
    return Table(
        features.spec,
        features.names,
        np.concatenate(vectors),
        np.array(starts),
        np.array(owner, np.int64),
        tuple(clips),
        np.sqrt(np.asarray(power) / max(n_spectra, 1)),
        profile,
    )


def _apart(levels: Iterable[Sequence[float]]) -> bool:
    """Whether the machines' levels lie so far apart that what is an idle one here is a healthy one there."""
    each = [float(np.median(level)) for level in levels]
    return min(each) < IDLE * max(each)


def _check_rates(recipe: Recipe) -> None:
    """Refuse files of several sampling rates by their headers, before minutes go into the first of them."""
    first: Recording | None = None
    for source in recipe.data:
        for recording, _ in recordings(source):
            first = first or recording
            if not _same_rate(recording.fs_hz, first.fs_hz):
                raise RecordingError(
                    f"{first.path} was sampled at {first.fs_hz:g} Hz, {recording.path} at {recording.fs_hz:g} Hz; "
                    "expected one sampling rate: resample the files of one kind or leave them out"
                )


def _same_rate(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)


def surrogate(of: Table, rng: np.random.Generator) -> F32:
    """(C, n_samples) Gaussian noise with the mean spectrum of the healthy windows.

    Long windows repeat a period of 8192 samples: as good for re-scoring, and it packs into a few kilobytes.
    """
    n = of.spec.n_samples
    period = min(n, _PERIOD)
    bins = np.arange(period // 2 + 1) * (n / period)
    mean = np.stack([np.interp(bins, np.arange(row.size), row) for row in of.spectrum]) * np.sqrt(period / n)
    # A Gaussian's bins have Rayleigh magnitudes; the mean power stays that of the table.
    magnitude = mean * np.sqrt(rng.exponential(1.0, mean.shape))
    x = fft.irfft(magnitude * np.exp(2j * np.pi * rng.random(mean.shape)), period)
    return np.asarray(np.tile(x, -(-n // period))[:, :n], np.float32)


def subset(of: Table, clips: Sequence[int]) -> Table:
    """The table of these recordings only, in their order, numbered anew: for cross-validation."""
    chosen = np.unique(np.asarray(clips, np.int64))
    keep = np.flatnonzero(np.isin(of.recording, chosen))
    return replace(
        of,
        vectors=of.vectors[keep],
        start=of.start[keep],
        recording=np.searchsorted(chosen, of.recording[keep]),
        clips=tuple(of.clips[i] for i in chosen),
    )


def _spec(recipe: Recipe, recording: Recording) -> FeatureSpec:
    n_samples, hop_samples = recipe.window.samples(recording.fs_hz)
    chunk = next(iter(recording.chunks()), None)
    if chunk is None:
        raise RecordingError(f"{recording.name}: holds no samples")
    return FeatureSpec(
        recording.fs_hz, n_samples, hop_samples, chunk.samples.shape[0], recipe.features, recipe.context
    )


def _simulated(source: Source) -> Iterator[tuple[Recording, Clip]]:
    if source.simulate == "demo":
        machine = simulate.demo_machine()

        def chunks() -> Iterator[Chunk]:
            n = round(machine.fs_hz)
            endless = simulate.stream(machine, n, simulate.never, source.seed)
            return islice(endless, max(1, round(source.seconds)))

        yield _in_memory("demo", machine.fs_hz, None, chunks), Clip("demo", None, source.machine or "demo")
        return
    if source.simulate == "machines":
        fs_hz = source.fs_hz or 25600.0
        for number in source.ids:
            name = f"id_{number:03d}"
            yield _in_memory(name, fs_hz, None, _healthy_life(source, number, fs_hz)), Clip(name, None, name)
        return
    for number in source.ids:
        for k in range(source.clips + source.anomalies):
            bad = k >= source.clips
            fault = simulate.FAN_FAULTS[k % len(simulate.FAN_FAULTS)] if bad else None
            label = "anomaly" if bad else "normal"
            name = f"{label}_id_{number:02d}_{k:08d}"
            yield (
                _in_memory(name, 16000.0, label, _fan_clip(source, number, fault, k)),
                Clip(name, label if source.labels else None, source.machine or f"id_{number:02d}"),
            )


def _fan_clip(source: Source, number: int, fault: str | None, k: int) -> Callable[[], Iterator[Chunk]]:
    def chunks() -> Iterator[Chunk]:
        x = simulate.sound(number, fault=fault, seconds=source.seconds, seed=(source.seed, k))
        yield Chunk(x[np.newaxis], fs_hz=16000.0)

    return chunks


def _healthy_life(source: Source, number: int, fs_hz: float) -> Callable[[], Iterator[Chunk]]:
    """Snapshots of one random machine, ten minutes apart, from its run-in on; none of them has a fault."""

    def chunks() -> Iterator[Chunk]:
        # The fault begins in the second half at the earliest.
        n = 2 * source.clips + 20
        life = simulate.any_machine(
            1000 * source.seed + number, n, n_samples=round(source.seconds * fs_hz), fs_hz=fs_hz
        )
        yield from (life.snapshot(i) for i in range(source.clips))

    return chunks


def _in_memory(
    name: str, fs_hz: float, label: str | None, chunks: Callable[[], Iterator[Chunk]]
) -> Recording:
    return Recording(name, Path("simulated") / name, fs_hz, label, chunks)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with another training seed."""
    return replace(recipe, train=replace(recipe.train, seed=seed))
