"""The agent's own pipeline over recordings: what `edge-agent score` prints and the trainer evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edge_agent import drift, pipeline
from edge_agent.alarms import MACHINE, AlarmPolicy, Transition
from edge_agent.bundle import Bundle, check_sensor
from edge_agent.errors import RecordingError
from edge_agent.payloads import PayloadLayout
from edge_agent.pipeline import Identity, Measured, Pipeline
from edge_agent.recordings import Recording
from edge_agent.windowing import WindowSpec


def pipeline_for(
    bundle: Bundle,
    *,
    policy: AlarmPolicy = AlarmPolicy(),
    hop_samples: int | None = None,
    sensor: str = "offline",
) -> Pipeline:
    """The pipeline a sensor with this bundle would have; `hop_samples` None takes the bundle's."""
    spec = bundle.manifest.features
    manifest = bundle.manifest
    return Pipeline(
        identity=Identity("offline", sensor, None, manifest.name, manifest.version, bundle.sha256),
        layout=PayloadLayout("f32le", spec.n_channels),
        channels=tuple(range(spec.n_channels)),
        window=WindowSpec(spec.fs_hz, spec.n_samples, hop_samples or spec.hop_samples, spec.n_channels),
        judge=bundle.judge,
        threshold=bundle.threshold,
        policy=policy,
        reference=drift.reference(bundle.calibration),
    )


def run(
    ready: Pipeline, recording: Recording, channel: int | None = None
) -> Iterator[tuple[Measured, Transition | None]]:
    """Every window of one recording with what it did to the alarm, from a fresh state.

    channel : which channel of the recording is meant; None where the recording has those of the bundle.
    Where the recording carries no times its first sample stands at 0 s. Raises RecordingError or
    BundleError where the recording and the bundle do not belong together.
    """
    n_channels = ready.window.n_channels
    window = replace(ready.window, fs_hz=recording.fs_hz)
    ready = replace(ready, window=window)
    state = pipeline.initial(ready)
    for chunk in recording.chunks():
        n = chunk.samples.shape[0]
        if channel is not None:
            if not 0 <= channel < n:
                raise RecordingError(
                    f"{recording.path}: channel {channel} is asked for; expected 0 to {n - 1}"
                )
            chunk = replace(chunk, samples=chunk.samples[channel : channel + 1])
        if chunk.samples.shape[0] != n_channels:
            mend = (
                "name one with --channel N" if n > n_channels == 1 else "train a bundle for such recordings"
            )
            raise RecordingError(
                f"{recording.path}: has {n} channel{'s' if n != 1 else ''}, the bundle takes {n_channels}: {mend}"
            )
        begin = chunk.t if chunk.t is not None else state.windower.next_t or 0.0
        received = begin + chunk.samples.shape[1] / recording.fs_hz
        state, outcome = pipeline.step_chunk(ready, state, chunk, received)
        transitions = {i: tr for i, tr in outcome.transitions if tr.type in MACHINE}
        for i, measured in enumerate(outcome.measured):
            yield measured, transitions.get(i)


def score_recording(bundle: Bundle, recording: Recording, channel: int | None = None) -> Iterator[Measured]:
    """Every window of one recording, scored as the agent would from a fresh start.

    While a history fills, `score` is None. Raises BundleError where the rates differ.
    """
    check_sensor(bundle, recording.fs_hz, bundle.manifest.features.n_channels)
    for measured, _ in run(pipeline_for(bundle), recording, channel):
        yield measured
