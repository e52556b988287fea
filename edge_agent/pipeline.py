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
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edge_agent import (
    alarms,
    budget,
    causes,
    commissioning,
    drift,
    packing,
    payloads,
    quality,
    regimes,
    scoring,
    thresholds,
    trouble,
    windowing,
)  # fmt: skip
from edge_agent.alarms import Alarm, AlarmPolicy, Transition
from edge_agent.causes import Cause
from edge_agent.commissioning import Baseline, Commissioning, Seen
from edge_agent.drift import Drift, Reference
from edge_agent.errors import PayloadError
from edge_agent.features import FeatureSet
from edge_agent.payloads import PayloadLayout
from edge_agent.quality import Profile, Verdict
from edge_agent.regimes import Operating
from edge_agent.scoring import Scorer
from edge_agent.signals import F32, F64, Chunk, Window, rfc3339
from edge_agent.thresholds import Threshold
from edge_agent.trouble import Trouble
from edge_agent.values import replace
from edge_agent.windowing import WindowerState, WindowSpec

#: (n_patches, width, F) float32 standardised -> the model's outputs, float32, patches first.
Model = Callable[[F32], Sequence[F32]]

STATE_VERSION = 1
#: Promised share of healthy windows above a commissioned limit, where the configuration names none.
COMMISSIONED_RATE = 1e-4
#: Windows in a known regime after which an unknown one is told of again.
KNOWN_AGAIN = 60
#: Windows of a commissioning from which its own profile judges the next ones.
PROFILED = 10


def no_model(x: F32) -> Sequence[F32]:
    """The model of an `indicator` bundle: no network, no output."""
    return ()


@dataclass(frozen=True)
class Judge:
    """What a bundle knows: windows to features to a score; shared by every sensor that uses the bundle.

    residual_mean, residual_std : (F,) of the score's residual on healthy windows, for `why`
    profile : of the bundle's golden windows, for data quality; None: only the checks that need none
    """

    features: FeatureSet
    model: Model
    scorer: Scorer
    residual_mean: F64
    residual_std: F64
    profile: Profile | None = None

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
    """One sensor, ready to run. `layout` describes its messages, `window` its windows.

    regime    : how its operating regime is known; None where it has none
    reference : of the bundle's healthy scores, for drift; None where they cannot carry it
    budget_s  : one false alarm in so many seconds is what the user will bear; None where nothing is said
    caution   : what of the settings will surprise, and its mend; empty where nothing will
    """

    identity: Identity
    layout: PayloadLayout
    channels: tuple[int, ...]
    window: WindowSpec
    judge: Judge
    threshold: Threshold
    policy: AlarmPolicy
    max_payload_bytes: int = 1 << 20
    regime: regimes.Spec | None = None
    reference: Reference | None = None
    budget_s: float | None = None
    caution: str = ""


@dataclass(frozen=True)
class Measured:
    """One scored (or, while a history fills, not yet scored) window: a row of the table `scores`.

    score, threshold, ratio are None until the context is full, and where quality is `bad`.

    reasons : what is wrong with the data, where something is
    regime  : operating regime, `unknown` where it is none that was learnt; None where the sensor has none
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
class Profiles:
    """What healthy samples of this very sensor are like: learnt by commissioning, and being learnt from n windows."""

    acting: Profile | None = None
    going: Profile | None = None
    n: int = 0


@dataclass(frozen=True)
class PipelineState:
    """Everything of a sensor that changes: window tail, feature history, votes, alarm, last score, what was learnt.

    history   : (k, F) newest last, k < context width; empty where the context is over frames
    operating : last value on the regime's topic
    notices   : how many were told; makes their identities differ
    known     : windows in a known regime since an unknown one was told of; None while none was
    bundle    : sha256 of the bundle that scores; "" in states of before
    trouble   : quality alarm, counts by reason, and what they are told from
    profiles  : for data quality, in place of the bundle's
    """

    windower: WindowerState
    history: F32
    history_end: float | None = None
    alarm: Alarm = field(default_factory=Alarm)
    last: Measured | None = None
    commissioning: Commissioning = field(default_factory=Commissioning)
    drift: Drift = field(default_factory=Drift)
    operating: Operating | None = None
    notices: int = 0
    known: int | None = None
    bundle: str = ""
    trouble: Trouble = field(default_factory=Trouble)
    profiles: Profiles = field(default_factory=Profiles)


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

    @property
    def machine(self) -> tuple[Transition, ...]:
        """The transitions of the machine alarm only."""
        return tuple(t for _, t in self.transitions if t.type in alarms.MACHINE)

    @property
    def notices(self) -> tuple[Transition, ...]:
        """What is told once beside them."""
        return tuple(t for _, t in self.transitions if t.type == alarms.NOTICE)


def initial(pipeline: Pipeline) -> PipelineState:
    """The state of a sensor never seen before."""
    width = len(pipeline.judge.features.names)
    return PipelineState(windowing.initial(), np.zeros((0, width), np.float32), bundle=pipeline.identity.sha256)


def step(
    pipeline: Pipeline, state: PipelineState, payload: bytes, received: float
) -> tuple[PipelineState, Outcome]:
    """Take one message, received at `received` (s since 1970).

    A bad message comes back as `Dropped` and changes at most what is known of the data's quality; any exception from here is a bug (or an
    unusable bundle), never the sender's doing.
    """
    try:
        chunk = _decode(pipeline, payload)
    except PayloadError as error:
        dropped = Dropped(error.reason, str(error))
        if error.reason not in (quality.NOT_FINITE, quality.WRONG_RATE):
            return state, Outcome(dropped=dropped)
        t = received if state.windower.next_t is None else state.windower.next_t
        state, told = _note(pipeline, state, (error.reason,), t)
        return state, Outcome((), told, dropped)
    return step_chunk(pipeline, state, chunk, received)


def step_chunk(
    pipeline: Pipeline, state: PipelineState, chunk: Chunk, received: float
) -> tuple[PipelineState, Outcome]:
    """Take one decoded chunk with the pipeline's own channels: `step` after the wire format."""
    spec = pipeline.window
    suffering, rate_hz, doubt = trouble.keep_pace(state.trouble, spec, chunk, received)
    state = replace(state, trouble=suffering)
    if rate_hz is not None:
        text = (
            f"samples come at {rate_hz:.6g} Hz by the times or the arrival of their messages, fs_hz is {spec.fs_hz:g}: set the "
            "sensor's rate, or train a bundle for this one"
        )
        state, noted = _note(pipeline, state, (quality.WRONG_RATE,), chunk.t or received)
        return state, Outcome((), noted, Dropped(quality.WRONG_RATE, text))
    pushed = windowing.push(state.windower, spec, chunk, received)
    suffering, reasons = trouble.of_message(state.trouble, spec, state.windower, pushed, chunk)
    state = replace(state, windower=pushed.state, trouble=suffering)
    transitions: list[tuple[int | None, Transition]] = []
    if reasons:
        t = state.windower.next_t if pushed.dropped is None else chunk.t
        state, noted = _note(pipeline, state, reasons, received if t is None else t)
        transitions += noted
    dropped = Dropped(pushed.dropped.reason, str(pushed.dropped)) if pushed.dropped else None
    measured: list[Measured] = []
    for window in pushed.windows:
        state, one, transition, told = _take(pipeline, state, window, doubt)
        if transition is not None:
            transitions.append((len(measured), transition))
        transitions += [(len(measured), notice) for notice in told]
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


def commission(
    pipeline: Pipeline,
    state: PipelineState,
    action: str,
    t: float,
    *,
    by: str | None = None,
    comment: str | None = None,
    windows: int | None = None,
    for_s: float | None = None,
    healthy: bool = False,
) -> tuple[PipelineState, Transition]:
    """A person's command `start`, `cancel` or `rollback`; raises `commissioning.Refused` with the reason.

    healthy : a person vouches for the machine: the bundle's limit may be wrong about it, within bounds
    The transition is a notice of what was done, at `t` (receipt clock, s).
    """
    was = state.commissioning
    if action == "start":
        plan = replace(_plan(pipeline, windows, for_s), healthy=healthy)
        now = commissioning.start(was, plan, by, comment)
    elif action in commissioning.ACTIONS:
        now = (commissioning.cancel if action == "cancel" else commissioning.rollback)(was)
    else:
        raise commissioning.Refused(
            f"action is {action!r}; expected one of {', '.join(commissioning.ACTIONS)}"
        )
    state = _changed(state, now)
    return _commissioning_notice(pipeline, state, t, by, comment)


def operate(state: PipelineState, operating: Operating) -> PipelineState:
    """Take a value that came on the regime's topic; a late one changes nothing, unless late ones run forwards among themselves:
    then a clock was set back, or one value was dated ahead."""
    newest = state.operating
    if newest is None or operating.t >= newest.t:
        return replace(state, operating=operating)
    run = (*newest.late, operating.t) if not newest.late or operating.t > newest.late[-1] else (operating.t,)
    late = len(run) < windowing.LATE_RUN
    return replace(state, operating=replace(newest, late=run) if late else operating)


def limit_of(pipeline: Pipeline, state: PipelineState, regime: str | None = None) -> Threshold:
    """The limit that acts on a window in this regime: the commissioned one, else the pipeline's own."""
    acting = state.commissioning.acting
    if acting is None:
        return pipeline.threshold
    own = acting.limit(regime)
    return acting.threshold if own is None else own.threshold


def limit_source(pipeline: Pipeline, state: PipelineState) -> str:
    """Where `limit_of` comes from: "bundle", "config" or "commissioned"."""
    return pipeline.identity.limit_source if state.commissioning.acting is None else "commissioned"


def votes(measured: Measured) -> bool:
    """Whether a scored window is voted on: not in a regime that was never learnt, nor where `quality.votes` denies it."""
    return (
        measured.ratio is not None
        and measured.regime != regimes.UNKNOWN
        and quality.votes(measured.quality, measured.reasons)
    )


def without_samples(state: PipelineState) -> PipelineState:
    """The state without the samples and vectors that the next window would be made of; alarm, votes and baseline stay."""
    return replace(state, windower=windowing.without_tail(state.windower), history=state.history[:0], history_end=None)


def clock_set(state: PipelineState, by_s: float, kept: float | None = None) -> PipelineState:
    """The receipt clock was set by so many seconds. A shelving lasts as long as was asked for, and no stream without times
    takes it for a silence; all other delays count in the payload's time and know nothing of it.

    kept : end of a shelving that was given before this start, as it is on record. By which clock is not known, so the earlier
           of both ends counts: a board that booted in 1970 must not keep silent for decades
    """
    alarm = state.alarm
    if alarm.shelved_until is not None:
        until = alarm.shelved_until + by_s
        known = kept is not None and kept >= windowing.PLAUSIBLE_S
        alarm = replace(alarm, shelved_until=min(until, kept) if known and kept is not None else until)
    return replace(state, windower=windowing.clock_set(state.windower, by_s), alarm=alarm)


def woken(state: PipelineState, saved: float, now: float) -> PipelineState:
    """A stored state after a start at `now`, saved at `saved` (receipt clock, s). Where that lies ahead, the clock has lost its time, and
    a shelving goes on for what was left of it."""
    until = state.alarm.shelved_until
    if until is None or saved <= now:
        return state
    return replace(state, alarm=replace(state.alarm, shelved_until=now + max(0.0, until - saved)))


def profile_of(pipeline: Pipeline, state: PipelineState) -> Profile | None:
    """What this sensor's healthy samples are like: as commissioned, while that is learnt as far as it is, else the
    bundle's. A bundle of other machines says nothing about the level of this one, so there it is not asked."""
    if state.commissioning.active:
        return state.profiles.going if state.profiles.n >= PROFILED else None
    return pipeline.judge.profile if state.commissioning.acting is None else state.profiles.acting


def expire(pipeline: Pipeline, state: PipelineState, t: float) -> tuple[PipelineState, Transition | None]:
    """Let the receipt clock end a shelving."""
    alarm, transition = alarms.expire(state.alarm, t, pipeline.identity.key)
    return (state if transition is None else replace(state, alarm=alarm)), transition


def event(
    pipeline: Pipeline,
    transition: Transition,
    measured: Measured | None,
    clock_synced: bool,
    state: PipelineState | None = None,
) -> dict[str, Any]:
    """The event's JSON object, as the contract spells it; `measured` is the window it rests on, `state` the one after it
    (its limit; None: the pipeline's own)."""
    m = measured
    identity, threshold, source = pipeline.identity, pipeline.threshold, pipeline.identity.limit_source
    if state is not None:
        threshold = limit_of(pipeline, state, m.regime if m else None)
        source = limit_source(pipeline, state)
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
        "threshold": _round(m.threshold if m is not None and m.threshold is not None else threshold.value),
        "ratio": _round(m.ratio) if m else None,
        "quality": m.quality if m else None,
        "limit": {
            "method": threshold.method,
            "false_alarm_rate": threshold.false_alarm_rate,
            "source": source,
        }
        | ({} if (promise := budget.told(threshold)) is None else {"false_alarms": promise}),
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


def commissioning_fields(state: PipelineState) -> dict[str, Any]:
    """What the retained state tells of commissioning."""
    c = state.commissioning
    return {"phase": c.phase, "percent": c.percent, "reason": c.reason or None}


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
    """The state as bytes. Without the tail it is about 400 bytes: what a periodic commit writes, so that a card is not worn out
    by samples that a kill would break with a gap anyway, or by spacings that five messages give anew."""
    if not tail:
        state = replace(state, windower=windowing.without_tail(state.windower), trouble=trouble.without_spacings(state.trouble))
    return packing.pack(msgspec.msgpack.encode({"version": STATE_VERSION, "state": state}, enc_hook=_pack))


def load(pipeline: Pipeline, blob: bytes) -> PipelineState | None:
    """The state that `dump` wrote, as far as it means something to this pipeline: samples of another window, and vectors, votes
    and limits of another bundle (`exchanged` tells of it), are left behind. None where it cannot be read, in which case
    only the alarm could have been kept: see `load_alarm`."""
    try:
        stored = msgspec.msgpack.decode(packing.unpack(blob))
        if stored["version"] != STATE_VERSION:
            return None
        state = msgspec.convert(stored["state"], PipelineState, dec_hook=_unpack)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError):
        return None
    fresh = initial(pipeline)
    if state.history.shape[1:] != fresh.history.shape[1:]:
        state = replace(state, history=fresh.history, history_end=None)
    if not windowing.fits(state.windower, pipeline.window):
        state = replace(state, windower=windowing.without_tail(state.windower))
    learnt, other = state.commissioning.baseline, state.bundle not in ("", pipeline.identity.sha256)
    foreign = (learnt is not None and learnt.bundle != pipeline.identity.sha256) or (other and state.commissioning.active)
    if foreign or not _scales_fit(state, fresh):
        # Scores of another network: neither the limit nor the votes mean anything here.
        state = _changed(state, commissioning.forget(state.commissioning, "the bundle has changed: commission again"))
    if other:
        # Its features may be standardised otherwise: neither they nor the votes of its scores are mixed with new ones.
        alarm = replace(state.alarm, ratios=(), raise_since=None, return_since=None)
        return replace(state, history=fresh.history, history_end=None, alarm=alarm, drift=Drift())
    last, limit = state.last, pipeline.threshold.value
    if last is not None and last.threshold is not None and state.commissioning.acting is None and last.threshold != limit:
        # The configuration has another limit now: the votes are what they would have been under it.
        ratios = tuple(ratio * last.threshold / limit for ratio in state.alarm.ratios)
        state = replace(state, alarm=replace(state.alarm, ratios=ratios, raise_since=None, return_since=None))
    return replace(state, bundle=pipeline.identity.sha256)


def exchanged(pipeline: Pipeline, state: PipelineState, t: float) -> tuple[PipelineState, Transition | None]:
    """The notice that another bundle scores from t (receipt clock, s) on than did before; None where it is the same one."""
    own, c = pipeline.identity, state.commissioning
    if state.bundle == own.sha256:
        return state, None
    text = f"{own.bundle} {own.version} scores from now on; votes and drift begin anew"
    if c.phase == commissioning.REFUSED and c.baseline is None:
        text += f", and nothing of what was learnt acts: {c.reason}"
    # Where in the rows the other one begins: its windows may have another length, so their start does not tell.
    last = {} if state.last is None else {"after": rfc3339(state.last.end)}
    return _notice(pipeline, replace(state, bundle=own.sha256), t, "bundle", text, **last)


def load_alarm(blob: bytes) -> Alarm | None:
    """Only the alarm of a stored state: what survives a change of model or window."""
    try:
        stored = msgspec.msgpack.decode(packing.unpack(blob))
        return msgspec.convert(stored["state"]["alarm"], Alarm)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError):
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


def _note(
    pipeline: Pipeline, state: PipelineState, reasons: tuple[str, ...], t: float
) -> tuple[PipelineState, tuple[tuple[None, Transition], ...]]:
    """What one message suffers from, and the event of the quality alarm that comes of it."""
    now, told = trouble.note(state.trouble, reasons, t, state.alarm, pipeline.identity.key)
    return replace(state, trouble=now), () if told is None else ((None, told),)


def _take(
    pipeline: Pipeline, state: PipelineState, window: Window, doubt: str | None
) -> tuple[PipelineState, Measured, Transition | None, list[Transition]]:
    verdict = (
        quality.inspect(window.samples, window.fs_hz, profile_of(pipeline, state), trouble.offset(state.trouble, window.samples))
        if doubt is None
        else Verdict(quality.BAD, (doubt,))
    )
    state, measured, transition, told = _judge(pipeline, state, window, verdict)
    suffering = trouble.settle(state.trouble, verdict)
    suffering, noted = trouble.note(
        suffering, verdict.reasons, window.end, state.alarm, pipeline.identity.key
    )
    return replace(state, trouble=suffering), measured, transition, told if noted is None else [*told, noted]


def _judge(
    pipeline: Pipeline, state: PipelineState, window: Window, verdict: Verdict
) -> tuple[PipelineState, Measured, Transition | None, list[Transition]]:
    judge, context = pipeline.judge, pipeline.judge.features.spec.context
    row = Measured(
        window.seq, window.start, window.end, None, None, None, verdict.quality, (), verdict.reasons
    )
    if verdict.quality == quality.BAD:
        # It breaks a history as a gap does.
        state = replace(state, history=state.history[:0], history_end=None, last=row)
        told: list[Transition] = []
        if state.commissioning.active:
            width = np.zeros((1, len(judge.features.names)), np.float32)
            state, told = _learn(pipeline, state, window, width, width, row, None, False, told)
        return state, row, None, told
    # Where the samples hold values that no sensor gives, only the repaired ones say anything: 1e38 may score inf, or next to nothing.
    only = verdict.repaired if verdict.absurd else None
    newest = raw = judge.vectors(window.samples if only is None else only)
    if verdict.repaired is not None and only is None:
        newest = judge.vectors(verdict.repaired)
    vectors = newest
    history, history_end, suffering = state.history, state.history_end, state.trouble
    if context.over == "windows":
        may_vote = quality.votes(verdict.quality, verdict.reasons)
        if (
            context.max_gap_s is not None
            and history_end is not None
            and window.start - history_end > context.max_gap_s
        ) or (suffering.tainted and may_vote):
            history = history[:0]
        suffering = replace(suffering, tainted=not may_vote)
        raw = np.concatenate([history, raw])[-context.width :]
        vectors = np.concatenate([history, vectors])[-context.width :]
        history, history_end = (
            vectors[-(context.width - 1) :] if context.width > 1 else history[:0],
            window.end,
        )
        if len(vectors) < context.width:
            state = replace(
                state, history=history, history_end=history_end, last=row, trouble=suffering
            )
            return state, row, None, []
    acting = state.commissioning.acting
    regime, value = _regime(pipeline, state, newest, window.end)
    result = judge.score(vectors if acting is None else acting.normalise(vectors))
    if verdict.repaired is not None and only is None:
        # A crossing counts only where it is there with and without what is suspect.
        also = judge.score(raw if acting is None else acting.normalise(raw))
        result = min(result, also, key=lambda r: r.value)
    threshold = limit_of(pipeline, state, regime)
    ratio = result.value / threshold.value
    measured = replace(row, score=result.value, threshold=threshold.value, ratio=ratio, regime=regime)
    alarm, transition = state.alarm, None
    if votes(measured):
        alarm, transition = alarms.step(alarm, pipeline.policy, ratio, window.end, pipeline.identity.key)
    # Only a window that people may look at pays for an explanation.
    if ratio >= pipeline.policy.warning_ratio or transition is not None:
        measured = replace(measured, why=_why(judge, acting, result.residual))
    told = []
    raised = alarm.condition and not state.alarm.condition
    state = replace(
        state, history=history, history_end=history_end, alarm=alarm, last=measured, trouble=suffering
    )
    state, told = _tell_regime(pipeline, state, measured, told)
    if state.commissioning.active:
        state, told = _learn(pipeline, state, window, newest, vectors, measured, value, raised, told)
    elif verdict.quality == quality.GOOD and votes(measured) and ratio < 1.0 and not alarm.condition:
        state, told = _watch_drift(pipeline, state, measured, told)
    return state, measured, transition, told


def _why(judge: Judge, acting: Baseline | None, residual: F32) -> tuple[Cause, ...]:
    if acting is None:
        return judge.why(residual)
    return causes.explain(
        judge.features.names, residual, acting.residual_mean.astype(np.float64), acting.residual_std.astype(np.float64)
    )


def _regime(
    pipeline: Pipeline, state: PipelineState, newest: F32, end: float
) -> tuple[str | None, float | None]:
    """The regime of a window's row, and the operating value it comes of."""
    spec, acting = pipeline.regime, state.commissioning.acting
    if spec is None:
        return None, None
    learnt = acting is not None and bool(acting.limits)
    if spec.clusters:
        if acting is None or not acting.centres.size:
            return None, None
        return regimes.nearest(acting.centres, acting.normalise(newest).mean(0)), None
    operating = regimes.fresh(spec, state.operating, end)
    if operating is None:
        return (regimes.UNKNOWN if learnt else None), None
    name = regimes.name(spec, operating.value)
    if acting is not None and learnt:
        own = acting.limit(name)
        if own is None or not (
            own.low is None or own.high is None or regimes.within(operating.value, own.low, own.high)
        ):
            name = regimes.UNKNOWN
    return name, operating.value


def _tell_regime(
    pipeline: Pipeline, state: PipelineState, m: Measured, told: list[Transition]
) -> tuple[PipelineState, list[Transition]]:
    """Say once that a regime is unknown, and again only after it was known for a while."""
    if m.regime != regimes.UNKNOWN:
        if state.known is not None:
            state = replace(state, known=None if state.known + 1 >= KNOWN_AGAIN else state.known + 1)
        return state, told
    if state.known is not None:
        return replace(state, known=0), told
    spec, operating = pipeline.regime, state.operating
    seen = None if spec is None or operating is None else regimes.fresh(spec, operating, m.end)
    why = "no value came" if operating is None else f"the last value is more than {spec.max_age_s:g} s old" if spec else ""
    what = why if seen is None else f"{seen.value:g} lies outside what was learnt"
    text = f"unknown operating regime ({what}): windows are scored and not voted on until it is known again"
    state, notice = _notice(
        pipeline, replace(state, known=0), m.end, "regime", text, value=None if seen is None else seen.value
    )
    return state, [*told, notice]


def _learn(
    pipeline: Pipeline,
    state: PipelineState,
    window: Window,
    newest: F32,
    vectors: F32,
    m: Measured,
    value: float | None,
    raised: bool,
    told: list[Transition],
) -> tuple[PipelineState, list[Transition]]:
    judge, was = pipeline.judge, state.commissioning
    good = m.quality == quality.GOOD
    learning = was.phase == commissioning.LEARNING
    if good and learning:
        state = replace(state, profiles=_profiled(state.profiles, window))
    score = None if learning or not good else judge.score(was.progress.normalise(vectors))
    # Time-frequency families (sound) are exempt: a stamping press is impulsive and healthy.
    looked_at = good and judge.features.n_frames == 1
    now = commissioning.take(
        was,
        Seen(
            m.start,
            m.end,
            newest,
            m.ratio,
            m.quality,
            commissioning.impulse(window.samples, pipeline.window.fs_hz) if looked_at else None,
            None if score is None else score.value,
            None if score is None else score.residual,
            m.regime,
            value,
            raised,
            state.alarm.condition,
        ),
        pipeline.identity.sha256,
        judge.features.names,
    )
    if now.phase == was.phase or now.phase == commissioning.VERIFYING:
        return replace(state, commissioning=now), told
    state, notice = _commissioning_notice(pipeline, _changed(state, now), m.end, now.by, now.why)
    return state, [*told, notice]


def _profiled(profiles: Profiles, window: Window) -> Profiles:
    one = Profile.of(window.samples[None], window.fs_hz)
    going = one if profiles.going is None else profiles.going.joined(one, profiles.n)
    return replace(profiles, going=going, n=profiles.n + 1)


def _watch_drift(
    pipeline: Pipeline, state: PipelineState, m: Measured, told: list[Transition]
) -> tuple[PipelineState, list[Transition]]:
    acting = state.commissioning.acting
    against = pipeline.reference if acting is None else acting.reference
    if against is None or m.score is None:
        return state, told
    now, found = drift.step(state.drift, against, m.score, m.end)
    state = replace(state, drift=now)
    if found is None:
        return state, told
    state, notice = _notice(
        pipeline,
        state,
        m.end,
        "drift",
        found.text,
        since=rfc3339(found.since),
        direction=found.way,
        factor=_round(found.factor),
        z=_round(found.z),
    )
    return state, [*told, notice]


def _plan(pipeline: Pipeline, windows: int | None, for_s: float | None) -> commissioning.Plan:
    own, spec = pipeline.threshold, pipeline.regime
    configured = pipeline.identity.limit_source == "config" and own.method in thresholds.METHODS
    method, rate = (own.method, own.false_alarm_rate) if configured else ("gamma", None)
    constants = pipeline.judge.features.spec
    # One offset and one scale for all features stretch a picture; an indicator's score is the feature itself.
    whole = len(set(constants.offset)) == len(set(constants.scale)) == 1 and len(constants.offset) > 1
    return commissioning.Plan(
        windows,
        for_s,
        method=method,
        rate=rate or COMMISSIONED_RATE,
        budget_s=pipeline.budget_s,
        policy=None if pipeline.budget_s is None else pipeline.policy,
        normals=pipeline.judge.model is not no_model and not whole,
        clusters=0 if spec is None else spec.clusters,
        regimes=spec is not None and spec.topic is not None,
    )


def _changed(state: PipelineState, now: Commissioning) -> PipelineState:
    """The state under what was learnt now; votes and drift under another limit mean nothing."""
    if now.acting is not state.commissioning.acting:
        alarm = replace(state.alarm, ratios=(), raise_since=None, return_since=None)
        state = replace(state, alarm=alarm, drift=Drift(), known=None)
    was, profiles = state.commissioning, state.profiles
    if now.phase == commissioning.ARMED and was.active:
        profiles = Profiles(profiles.going)
    elif now.phase == commissioning.LEARNING and now.episode != was.episode:
        profiles = Profiles(profiles.acting)
    elif not now.active:
        profiles = Profiles(profiles.acting if now.baseline is was.baseline else None)
    return replace(state, commissioning=now, profiles=profiles)


def _commissioning_notice(
    pipeline: Pipeline, state: PipelineState, t: float, by: str | None, comment: str | None
) -> tuple[PipelineState, Transition]:
    c = state.commissioning
    state, notice = _notice(pipeline, state, t, "commissioning", f"{c.phase}: {c.reason}", phase=c.phase, reason=c.reason)
    return state, replace(notice, by=by, comment=comment)


def _notice(
    pipeline: Pipeline, state: PipelineState, t: float, kind: str, text: str, **more: Any
) -> tuple[PipelineState, Transition]:
    """Something to be told once beside the machine alarm, under an identity of its own."""
    n, key = state.notices + 1, pipeline.identity.key
    extra = {"notice": {"kind": kind, "text": text, **more}}
    notice = alarms.beside(alarms.NOTICE, state.alarm, key, n, t, extra)
    return replace(state, notices=n), notice


def _scales_fit(state: PipelineState, fresh: PipelineState) -> bool:
    """Whether what is being learnt has as many features as this pipeline."""
    width, p = fresh.history.shape[1], state.commissioning.progress
    return not p.offset.size or p.offset.shape == (width,)


def _round(value: float | None) -> float | None:
    """Six significant digits: enough for people and stable in print."""
    return None if value is None else float(f"{value:.6g}")


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "f4": np.ascontiguousarray(value, "<f4").tobytes()}
    raise TypeError(f"cannot store a {type(value).__name__}")


def _unpack(kind: type, value: Any) -> Any:
    return np.frombuffer(value["f4"], "<f4").reshape(value["shape"]).astype(np.float32)
