"""The whole core in one place: a message in, outcomes out, no I/O.

    bytes ─decode─► Chunk ─push─► Window ─FeatureSet─► (n_frames, F) ─context─► patches ─model─► outputs
       └► Dropped                                                                               │
                        Transition ◄─ alarms.step ◄─ ratio = score / threshold ◄─ scoring ◄─────┘

A `Pipeline` is what is built once per sensor and never changes; a `PipelineState` is everything that
changes, one frozen value that can be stored and brought back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from edge_agent import alarms, causes, payloads, scoring, windowing
from edge_agent.alarms import Alarm, AlarmPolicy, Transition
from edge_agent.causes import Cause
from edge_agent.errors import PayloadError
from edge_agent.features import FeatureSet
from edge_agent.payloads import PayloadLayout
from edge_agent.scoring import Scorer
from edge_agent.signals import F32, F64, Chunk, Window, rfc3339
from edge_agent.thresholds import Threshold
from edge_agent.windowing import WindowerState, WindowSpec

#: (n_patches, width, F) float32 standardised -> the model's outputs, float32, patches first.
Model = Callable[[F32], Sequence[F32]]

STATE_VERSION = 1


def no_model(x: F32) -> Sequence[F32]:
    """The model of an `indicator` bundle: no network, no output."""
    return ()


@dataclass(frozen=True)
class Judge:
    """What a bundle knows: windows to features to a score; shared by every sensor that uses the bundle.

    residual_mean, residual_std : (F,) of the score's residual on healthy windows, for `why`
    """

    features: FeatureSet
    model: Model
    scorer: Scorer
    residual_mean: F64
    residual_std: F64

    def vectors(self, window: F32) -> F32:
        """(n_channels, n_samples) -> standardised (n_frames, F)."""
        return self.features(window)

    def score(self, vectors: F32) -> scoring.Score:
        """Standardised vectors, enough for the context -> Score; raises ValueError when not finite."""
        x = self.features.patches(vectors)
        result = self.scorer(x, self.model(x))
        if not math.isfinite(result.value):
            raise ValueError(
                f"model scored {result.value!r}; expected a finite number: the bundle is unusable"
            )
        return result

    def why(self, residual: F32) -> tuple[Cause, ...]:
        """The features that carry a score, for people."""
        return causes.explain(self.features.names, residual, self.residual_mean, self.residual_std)


@dataclass(frozen=True)
class Identity:
    """Who speaks in a sensor's events; all of it fixed while the sensor's pipeline lives."""

    agent: str
    sensor: str
    machine: str | None = None
    bundle: str = ""
    version: str = ""
    sha256: str = ""
    limit_source: str = "bundle"

    @property
    def key(self) -> str:
        """What makes identities of this sensor's alarms differ from all others'."""
        return f"{self.agent}/{self.sensor}"


@dataclass(frozen=True)
class Pipeline:
    """One sensor, ready to run. `layout` describes its messages, `window` its windows."""

    identity: Identity
    layout: PayloadLayout
    channels: tuple[int, ...]
    window: WindowSpec
    judge: Judge
    threshold: Threshold
    policy: AlarmPolicy
    max_payload_bytes: int = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One scored (or, while a history fills, not yet scored) window: a row of the table `scores`.

    score, threshold, ratio are None until the context is full, and where quality is `bad`.

    reasons : what is wrong with the data, where something is
    regime  : operating regime; None where the sensor has none
    """

    seq: int
    start: float
    end: float
    score: float | None
    threshold: float | None
    ratio: float | None
    quality: str = "good"
    why: tuple[Cause, ...] = ()
    reasons: tuple[str, ...] = ()
    regime: str | None = None


@dataclass(frozen=True)
class PipelineState:
    """Everything of a sensor that changes: window tail, feature history, votes, alarm, last score.

    history : (k, F) newest last, k < context width; empty where the context is over frames
    """

    windower: WindowerState
    history: F32
    history_end: float | None = None
    alarm: Alarm = field(default_factory=Alarm)
    last: Measured | None = None


@dataclass(frozen=True)
class Dropped:
    """A message that was not used: the reason that is counted, and a sentence for the log."""

    reason: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What one message led to, oldest first.

    measured    : one entry a window, in order
    transitions : (index into `measured`, transition); of the machine alarm at most one a window, any
                  number beside it. None where it rests on a message that gave no window.
    """

    measured: tuple[Measured, ...] = ()
    transitions: tuple[tuple[int | None, Transition], ...] = ()
    dropped: Dropped | None = None
    gap_s: float | None = None


def initial(pipeline: Pipeline) -> PipelineState:
    """The state of a sensor never seen before."""
    width = len(pipeline.judge.features.names)
    return PipelineState(windowing.initial(), np.zeros((0, width), np.float32))


def step(
    pipeline: Pipeline, state: PipelineState, payload: bytes, received: float
) -> tuple[PipelineState, Outcome]:
    """Take one message, received at `received` (s since 1970).

    A bad message changes nothing and comes back as `Dropped`; any exception from here is a bug (or an
    unusable bundle), never the sender's doing.
    """
    try:
        chunk = _decode(pipeline, payload)
    except PayloadError as error:
        return state, Outcome(dropped=Dropped(error.reason, str(error)))
    return step_chunk(pipeline, state, chunk, received)


def step_chunk(
    pipeline: Pipeline, state: PipelineState, chunk: Chunk, received: float
) -> tuple[PipelineState, Outcome]:
    """Take one decoded chunk with the pipeline's own channels: `step` after the wire format."""
    pushed = windowing.push(state.windower, pipeline.window, chunk, received)
    state = replace(state, windower=pushed.state)
    dropped = Dropped(pushed.dropped.reason, str(pushed.dropped)) if pushed.dropped else None
    if not pushed.windows:
        return state, Outcome(dropped=dropped, gap_s=pushed.gap_s)
    measured: list[Measured] = []
    transitions: list[tuple[int | None, Transition]] = []
    for window in pushed.windows:
        state, one, transition = _take(pipeline, state, window)
        if transition is not None:
            transitions.append((len(measured), transition))
        measured.append(one)
    return state, Outcome(tuple(measured), tuple(transitions), dropped, pushed.gap_s)


def command(
    pipeline: Pipeline,
    state: PipelineState,
    name: str,
    t: float,
    *,
    by: str | None = None,
    comment: str | None = None,
    for_s: float | None = None,
) -> tuple[PipelineState, Transition]:
    """A person's command; raises `alarms.Refused` with the reason."""
    alarm, transition = alarms.command(
        state.alarm, name, t, pipeline.identity.key, by=by, comment=comment, for_s=for_s
    )
    return replace(state, alarm=alarm), transition


def expire(pipeline: Pipeline, state: PipelineState, t: float) -> tuple[PipelineState, Transition | None]:
    """Let the receipt clock end a shelving."""
    alarm, transition = alarms.expire(state.alarm, t, pipeline.identity.key)
    return (state if transition is None else replace(state, alarm=alarm)), transition


def event(
    pipeline: Pipeline, transition: Transition, measured: Measured | None, clock_synced: bool
) -> dict[str, Any]:
    """The event's JSON object, as the contract spells it; `measured` is the window it rests on."""
    identity, threshold = pipeline.identity, pipeline.threshold
    m = measured
    payload: dict[str, Any] = {
        "schema": 1,
        "type": transition.type,
        "event_id": transition.event_id,
        "alarm_id": transition.alarm_id,
        "agent": identity.agent,
        "sensor": identity.sensor,
        "machine": identity.machine,
        "ts": rfc3339(transition.t),
        "state": transition.state,
        "severity": transition.severity,
        "since": rfc3339(transition.since),
        "score": _round(m.score) if m else None,
        "threshold": _round(threshold.value),
        "ratio": _round(m.ratio) if m else None,
        "quality": m.quality if m else None,
        "limit": {
            "method": threshold.method,
            "false_alarm_rate": threshold.false_alarm_rate,
            "source": identity.limit_source,
        },
        "window": {
            "seq": m.seq,
            "start": rfc3339(m.start),
            "n": pipeline.window.n_samples,
            "fs_hz": pipeline.window.fs_hz,
        }
        if m
        else None,
        "why": [{"feature": c.feature, "share": c.share, "z": c.z} for c in m.why] if m else [],
        "model": {"bundle": identity.bundle, "version": identity.version, "sha256": identity.sha256},
        "late": False,
        "clock_synced": clock_synced,
    }
    if transition.by is not None:
        payload["by"] = transition.by
    if transition.comment is not None:
        payload["comment"] = transition.comment
    if m is not None and m.reasons:
        payload["reasons"] = list(m.reasons)
    if m is not None and m.regime is not None:
        payload["regime"] = m.regime
    if transition.extra is not None:
        payload |= transition.extra
    return payload


def score_fields(measured: Measured) -> dict[str, Any]:
    """One window as people and dashboards see it: the score topic and `edge-agent score --json`."""
    fields = {
        "ts": rfc3339(measured.end),
        "start": rfc3339(measured.start),
        "seq": measured.seq,
        "score": measured.score,
        "threshold": measured.threshold,
        "ratio": measured.ratio,
        "quality": measured.quality,
        "reasons": list(measured.reasons),
    }
    return fields if measured.regime is None else {**fields, "regime": measured.regime}


def dump(state: PipelineState, *, tail: bool = True) -> bytes:
    """The state as bytes. Without the tail it is a few hundred bytes: what a periodic commit writes,
    so that a card is not worn out by samples that a kill would break with a gap anyway."""
    if not tail:
        windower = windowing.without_tail(state.windower)
        state = replace(state, windower=windower)
    return msgspec.msgpack.encode({"version": STATE_VERSION, "state": state}, enc_hook=_pack)


def load(pipeline: Pipeline, blob: bytes) -> PipelineState | None:
    """The state that `dump` wrote; None where it does not fit this pipeline (another version, other
    features or window), in which case only the alarm could have been kept: see `load_alarm`."""
    try:
        stored = msgspec.msgpack.decode(blob)
        if stored["version"] != STATE_VERSION:
            return None
        state = msgspec.convert(stored["state"], PipelineState, dec_hook=_unpack)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError):
        return None
    fresh = initial(pipeline)
    if state.history.shape[1:] != fresh.history.shape[1:]:
        return None
    if not windowing.fits(state.windower, pipeline.window):
        return None
    return state


def load_alarm(blob: bytes) -> Alarm | None:
    """Only the alarm of a stored state: what survives a change of model or window."""
    try:
        stored = msgspec.msgpack.decode(blob)
        return msgspec.convert(stored["state"]["alarm"], Alarm)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError):
        return None


def _decode(pipeline: Pipeline, payload: bytes) -> Chunk:
    identity, layout = pipeline.identity, pipeline.layout
    if len(payload) > pipeline.max_payload_bytes:
        raise PayloadError(
            "too_large",
            f"message has {len(payload)} bytes, max_payload_bytes is {pipeline.max_payload_bytes}: "
            "send shorter chunks or raise the limit",
        )
    chunk = payloads.decode(payload, layout)
    if chunk.sensor is not None and chunk.sensor != identity.sensor:
        raise PayloadError(
            "wrong_sensor",
            f"message says sensor {chunk.sensor[:60]!r} on the topic of {identity.sensor!r}: "
            "correct the sender's id or this sensor's topic",
        )
    if chunk.fs_hz is not None and not math.isclose(chunk.fs_hz, pipeline.window.fs_hz, rel_tol=1e-3):
        raise PayloadError(
            "wrong_rate",
            f"message says fs {chunk.fs_hz:g} Hz, fs_hz is {pipeline.window.fs_hz:g}: set the sensor's rate, "
            "or train a bundle for this one",
        )
    if pipeline.channels != tuple(range(chunk.samples.shape[0])):
        chunk = replace(chunk, samples=chunk.samples[list(pipeline.channels)])
    return chunk


def _take(
    pipeline: Pipeline, state: PipelineState, window: Window
) -> tuple[PipelineState, Measured, Transition | None]:
    judge, context = pipeline.judge, pipeline.judge.features.spec.context
    vectors = judge.vectors(window.samples)
    history, history_end = state.history, state.history_end
    if context.over == "windows":
        if (
            context.max_gap_s is not None
            and history_end is not None
            and window.start - history_end > context.max_gap_s
        ):
            history = history[:0]
        vectors = np.concatenate([history, vectors])[-context.width :]
        history, history_end = (
            vectors[-(context.width - 1) :] if context.width > 1 else history[:0],
            window.end,
        )
        if len(vectors) < context.width:
            waiting = Measured(window.seq, window.start, window.end, None, None, None)
            return replace(state, history=history, history_end=history_end, last=waiting), waiting, None
    result = judge.score(vectors)
    ratio = result.value / pipeline.threshold.value
    alarm, transition = alarms.step(state.alarm, pipeline.policy, ratio, window.end, pipeline.identity.key)
    # Only a window that people may look at pays for an explanation.
    crossing = ratio >= pipeline.policy.warning_ratio or transition is not None
    measured = Measured(
        window.seq,
        window.start,
        window.end,
        result.value,
        pipeline.threshold.value,
        ratio,
        "good",
        judge.why(result.residual) if crossing else (),
    )
    state = replace(state, history=history, history_end=history_end, alarm=alarm, last=measured)
    return state, measured, transition


def _round(value: float | None) -> float | None:
    """Six significant digits: enough for people and stable in print."""
    return None if value is None else float(f"{value:.6g}")


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "f4": np.ascontiguousarray(value, "<f4").tobytes()}
    raise TypeError(f"cannot store a {type(value).__name__}")


def _unpack(kind: type, value: Any) -> Any:
    return np.frombuffer(value["f4"], "<f4").reshape(value["shape"]).astype(np.float32)
