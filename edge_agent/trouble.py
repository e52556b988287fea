"""The quality alarm of one sensor: what its messages and windows suffer from, and when that is told.

    message ─► pace (time against fs_hz), duplicate, gap ─┐
    window  ─► quality.inspect ───────────────────────────┴─► slot ─► 3 of the last 5 in trouble ─► begin
                                                                      the last 2 clean ───────────► end

It never touches the machine alarm. One lost message or one spike is told in the rows and counted, not announced;
a signal that is gone is announced at once, since nobody watches the machine from then on.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_agent import alarms, quality, windowing
from edge_agent.alarms import Alarm, Transition
from edge_agent.quality import DUPLICATE, GAP, NO_TROUBLE, WRONG_RATE, Verdict
from edge_agent.signals import F32, Chunk, rfc3339
from edge_agent.values import replace
from edge_agent.windowing import Pushed, WindowerState, WindowSpec

#: So many of so many slots in trouble begin an episode; so many clean ones in a row end it.
VOTE, CLEAN = (3, 5), 2
AT_ONCE = frozenset({quality.SIGNAL_LOST, quality.LOST_CHANNEL})
#: Messages whose spacing must agree before it is a rate, how far they may differ, and what is no longer a clock's error.
PACED, JITTER, OFF = 5, 0.25, 0.05
#: A spacing beyond this many times the samples' own duration is a pause between snapshots.
PAUSE = 10.0
#: Spacing, in a stream that ran evenly, from which the samples of one message are in doubt.
DOUBT = 1.6
#: Snapshots in a row too short for a window from which that is told; by then another rate would have shown itself.
EMPTY = 6
#: Messages without times whose receipts make a leg; how far a spacing within it, and a rate from leg to leg, may differ; and
#: spacing from where the rate is a slower one.
LEG, UNEVEN, ALIKE, SLOWER = 8, 2.5, 0.1, 1.5
#: Streams whose times are even: the whole numbers by which a sensor slips its rate, and how far (s) receipts must have fallen
#: behind the times by one of them. A link that is too slow falls behind by any number.
SLIPS, BEHIND_S = (2.0, 3.0, 4.0), 10.0
#: Chunks shorter than this may be equal by chance.
LEAST_EQUAL = 32
#: How much of a good window's mean goes into the offset that a step is told from.
FOLLOW = 0.05
#: What leaves the offset unknown.
UNKNOWN_OFFSET = frozenset({quality.CLIPPING, quality.SWAPPED})
#: Windows in a row after which an offset that has stepped is the sensor's own, as after it was mounted anew.
ADOPT = 60


@dataclass(frozen=True)
class Pace:
    """Times of the last messages.

    t, n   : time of the last message's first sample in s, and its samples
    steps  : (seconds, samples) from message to message as long as they agree, at most 8; pauses are left out
    seq    : sequence number of the last; steady: whether they ever came as fast as fs_hz says
    """

    t: float | None = None
    n: int = 0
    steps: tuple[tuple[float, int], ...] = ()
    seq: int | None = None
    steady: bool = False


@dataclass(frozen=True)
class Receipts:
    """When messages came, in legs of `LEG` of them.

    begun, t, n : receipt of the leg's first message and of the last one (s), samples of those before the last
    spacings    : messages after the first; longest: the longest spacing over its message's duration
    seq         : sequence number of the last; before: ratio of the leg before, 0 where it was uneven
    steady      : whether a leg ever came as fast as fs_hz says; off: rate over fs_hz while it is a slower one, else 0
    behind      : seconds by which the samples have fallen behind the receipts while it is a slower one
    """

    begun: float = 0.0
    t: float = 0.0
    n: int = 0
    last: int = 0
    spacings: int = 0
    longest: float = 0.0
    seq: int | None = None
    before: float = 0.0
    steady: bool = False
    off: float = 0.0
    behind: float = 0.0


@dataclass(frozen=True)
class Trouble:
    """What a sensor's data suffer from; a value that a restart goes on with.

    slots   : reasons of the last messages and windows, oldest first
    episode : alarm_id while the quality alarm stands, since when (event time, s), and all reasons in it
    n       : events so far; makes their identities differ
    counts  : windows and messages by reason, ever
    mean    : (C,) offset of the windows without a step; former: the one before a step that lasted
    stepped : windows off it in a row, and their own offset
    tainted : whether the feature history holds a window that must not vote
    windows : how many there were at the last gap; empty: gaps in a row with none between, though samples came
    content : checksum of the last chunk's samples
    """

    slots: tuple[tuple[str, ...], ...] = ()
    episode: str | None = None
    since: float | None = None
    seen: tuple[str, ...] = ()
    n: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    former: tuple[float, ...] = ()
    stepped: int = 0
    level: tuple[float, ...] = ()
    tainted: bool = False
    windows: int = 0
    empty: int = 0
    content: int | None = None
    pace: Pace = field(default_factory=Pace)
    receipts: Receipts | None = None


def fields(trouble: Trouble) -> dict[str, Any] | None:
    """What the retained state tells; None while nothing is wrong."""
    if trouble.since is None:
        return None
    return {"reasons": list(trouble.seen), "active": True, "since": rfc3339(trouble.since)}


def note(
    trouble: Trouble, reasons: tuple[str, ...], t: float, alarm: Alarm, key: str
) -> tuple[Trouble, Transition | None]:
    """One more message or window with its reasons (none: it was clean) at event time t."""
    if reasons:
        counts = {**trouble.counts}
        for reason in reasons:
            counts[reason] = counts.get(reason, 0) + 1
        trouble = replace(trouble, counts=counts)
    wrong = tuple(r for r in reasons if r not in NO_TROUBLE)
    slots = (*trouble.slots, wrong)[-VOTE[1] :]
    trouble = replace(trouble, slots=slots)
    if trouble.episode is None:
        if sum(map(bool, slots)) < VOTE[0] and not AT_ONCE.intersection(wrong):
            return trouble, None
        often = Counter(r for slot in slots for r in slot)
        trouble = replace(trouble, since=t, seen=tuple(r for r, _ in often.most_common()))
        return _tell(trouble, t, alarm, key, active=True)
    trouble = replace(trouble, seen=tuple(dict.fromkeys((*trouble.seen, *wrong))))
    if len(slots) < CLEAN or any(slots[-CLEAN:]):
        return trouble, None
    return _tell(trouble, t, alarm, key, active=False)


def _tell(
    trouble: Trouble, t: float, alarm: Alarm, key: str, active: bool
) -> tuple[Trouble, Transition | None]:
    assert trouble.since is not None  # set at the beginning
    n = trouble.n + 1
    extra = {
        "quality_alarm": {
            "reasons": list(trouble.seen),
            "active": active,
            "since": rfc3339(trouble.since),
        }
    }
    told = alarms.beside(
        alarms.QUALITY, alarm, key, n, t, extra, episode=trouble.episode, since=trouble.since
    )
    if active:
        return replace(trouble, n=n, episode=told.alarm_id), told
    return replace(trouble, n=n, episode=None, since=None, seen=()), told


def offset(trouble: Trouble, x: F32) -> tuple[float, ...]:
    """The offset from which a step in the window x (C, n) is told: the nearer of the present and the former one."""
    if not trouble.former:
        return trouble.mean
    known = trouble.mean, trouble.former
    here = x.mean(-1, dtype=np.float64).tolist()
    if min(_apart(one, here) for one in known) > _apart(*known):
        here = np.median(x, -1).tolist()  # a third offset, or a single wrong value of 1e38 that the mean leans on
    return min(known, key=lambda one: _apart(one, here))


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max((abs(p - q) for p, q in zip(a, b, strict=False)), default=0.0)


def settle(trouble: Trouble, verdict: Verdict) -> Trouble:
    """Follow the offset of a window that had no trouble with it; the first there is begins it. One that stays off
    becomes the sensor's own after `ADOPT` windows; where it goes back, that is no step."""
    if not verdict.mean or verdict.quality == quality.BAD or UNKNOWN_OFFSET.intersection(verdict.reasons):
        return trouble
    if len(trouble.mean) != len(verdict.mean):
        return replace(trouble, mean=verdict.mean, former=(), stepped=0, level=())
    if quality.DC_STEP in verdict.reasons:
        level = _toward(trouble.level, verdict.mean) if trouble.stepped else verdict.mean
        if trouble.stepped + 1 < ADOPT:
            return replace(trouble, stepped=trouble.stepped + 1, level=level)
        return replace(trouble, mean=level, former=trouble.mean, stepped=0, level=())
    now, other = trouble.mean, trouble.former
    if other and _apart(other, verdict.mean) < _apart(now, verdict.mean):
        now, other = other, now
    return replace(trouble, mean=_toward(now, verdict.mean), former=other, stepped=0, level=())


def _toward(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((1.0 - FOLLOW) * p + FOLLOW * q for p, q in zip(a, b, strict=True))


# ---------------------------------------------------------------- messages


def keep_pace(
    trouble: Trouble, spec: WindowSpec, chunk: Chunk, received: float
) -> tuple[Trouble, float | None, str | None]:
    """Hold a chunk's time against the samples before it: (next value, rate in Hz where it is wrong, doubt).

    doubt : reason for which windows of this chunk are not to be scored yet: in an even stream its time lies far off,
            and no lost message explains it.
    Where chunks state no time their receipts are asked, more slowly: networks are not even. Where times are well, as those of a
    sensor that counts them from its samples always are, the receipts must be off by a whole number.
    """
    pace, n = trouble.pace, chunk.samples.shape[1]
    receipts = _receive(trouble.receipts, spec.fs_hz, chunk, received)
    trouble = replace(trouble, receipts=receipts)
    if chunk.t is None:
        return trouble, receipts.off * spec.fs_hz or None, None
    if windowing.too_far_ahead(chunk.t, received):  # refused, and no time to hold the next ones against
        return trouble, None, None
    here = replace(pace, t=chunk.t, n=n, seq=chunk.seq)
    if pace.t is None:
        return replace(trouble, pace=here), None, None
    step_s = chunk.t - pace.t
    spacing = step_s * spec.fs_hz / pace.n
    if spacing <= 0.0:  # a repeat, a late one, or a clock that was set back: the windower's to judge (`of_message`)
        return trouble, None, None
    lost = chunk.seq is not None and pace.seq is not None and chunk.seq != (pace.seq + 1) & 0xFFFFFFFF
    if lost or spacing >= PAUSE:
        return replace(trouble, pace=here), None, None
    steps = pace.steps
    if steps and abs(spacing / _ratio(steps, spec.fs_hz) - 1.0) > JITTER:
        steps = ()
    steps = (*steps, (step_s, pace.n))[-8:]
    ratio = _ratio(steps, spec.fs_hz)
    paced = len(steps) >= PACED - 1
    steady = pace.steady or (paced and abs(ratio - 1.0) <= OFF)
    trouble = replace(trouble, pace=replace(here, steps=steps, steady=steady))
    if paced and abs(ratio - 1.0) > OFF and ratio > 1.0 / PAUSE and (steady or n < spec.n_samples):
        # Told by the times, so the receipts need not tell it as well, and longer.
        receipts = Receipts(received, received, last=n, seq=chunk.seq, steady=receipts.steady)
        return replace(trouble, receipts=receipts), spec.fs_hz / ratio, None
    if pace.steady and not 1.0 / DOUBT < spacing < DOUBT:
        return trouble, None, WRONG_RATE if chunk.seq is not None else GAP
    if receipts.behind >= BEHIND_S and any(abs(receipts.off * slip - 1.0) <= OFF for slip in SLIPS):
        return trouble, receipts.off * spec.fs_hz, None
    return trouble, None, None


def _followed(pace: Pace, spec: WindowSpec, chunk: Chunk, broken: bool) -> Pace:
    """The pace after a chunk that was used: begun anew where its time lies behind, since the sensor's clock was set back.

    broken : whether the samples do not go on from those before. Where they do, less than a pause's length is the unevenness of
             stamps, and the next messages catch up with it.
    """
    if chunk.t is None or pace.t is None or pace.t - chunk.t <= (0.0 if broken else PAUSE * pace.n / spec.fs_hz):
        return pace
    return Pace(chunk.t, chunk.samples.shape[1], seq=chunk.seq, steady=pace.steady)


def without_spacings(trouble: Trouble) -> Trouble:
    """What was found by the spacings of messages, without the spacings: they begin anew with the next messages."""
    pace, r = replace(trouble.pace, steps=()), trouble.receipts
    receipts = None if r is None else Receipts(last=1, steady=r.steady, off=r.off, behind=r.behind)
    return replace(trouble, pace=pace, receipts=receipts)


def _receive(was: Receipts | None, fs_hz: float, chunk: Chunk, received: float) -> Receipts:
    """One more message without a time. A rate is a slower one where two even legs agree on it, after one at fs_hz; a faster
    one is not told from a network that makes up for a stall."""
    n = chunk.samples.shape[1]
    if was is None:
        return Receipts(begun=received, t=received, last=n, seq=chunk.seq)
    spacing = (received - was.t) * fs_hz / was.last
    lost = chunk.seq is not None and was.seq is not None and chunk.seq != (was.seq + 1) & 0xFFFFFFFF
    if lost or not 0.0 <= spacing < PAUSE:
        return Receipts(received, received, last=n, seq=chunk.seq, steady=was.steady, off=was.off, behind=was.behind)
    r = replace(
        was, t=received, n=was.n + was.last, last=n, spacings=was.spacings + 1, longest=max(was.longest, spacing), seq=chunk.seq
    )
    if r.spacings < LEG:
        return r
    ratio = (r.t - r.begun) * fs_hz / r.n
    if r.longest > UNEVEN * ratio:
        ratio = 0.0
    steady, off, behind = r.steady, r.off, 0.0
    if abs(ratio - 1.0) <= 2.0 * OFF:
        steady, off = True, 0.0
    elif steady and ratio > SLOWER:
        behind = r.behind + r.t - r.begun - r.n / fs_hz
        if abs(ratio / r.before - 1.0 if r.before else 1.0) <= ALIKE:
            off = 1.0 / ratio
    return Receipts(r.t, r.t, last=n, seq=r.seq, before=ratio, steady=steady, off=off, behind=behind)


def _ratio(steps: tuple[tuple[float, int], ...], fs_hz: float) -> float:
    """Seconds from message to message over the seconds that their samples take: 2 at half the rate."""
    return sum(t for t, _ in steps) * fs_hz / sum(n for _, n in steps)


def of_message(
    trouble: Trouble, spec: WindowSpec, before: WindowerState, pushed: Pushed, chunk: Chunk
) -> tuple[Trouble, tuple[str, ...]]:
    """What a message that the windower has seen suffers from: gap, duplicate."""
    if pushed.dropped is not None:
        return trouble, (DUPLICATE,) if pushed.dropped.reason == "duplicate" else ()
    trouble = replace(trouble, pace=_followed(trouble.pace, spec, chunk, pushed.gap_s is not None))
    reasons: tuple[str, ...] = ()
    samples = chunk.samples
    content = zlib.crc32(samples.tobytes()) if samples.shape[1] >= LEAST_EQUAL else None
    if content is not None and content == trouble.content and (samples.min(-1) != samples.max(-1)).all():
        reasons = (DUPLICATE,)
    if pushed.gap_s is not None:
        # Between snapshots nothing is missing; a sensor that sleeps for long is silent, not in trouble.
        told = chunk.seq is not None and before.next_seq is not None and chunk.seq != before.next_seq
        broken = bool(before.tail) or trouble.pace.steady or told
        short = broken and pushed.gap_s < max(PAUSE, PAUSE * spec.n_samples / spec.fs_hz)
        # Snapshots of which not one gives a window are short of samples: nobody watches the machine.
        empty = trouble.empty + 1 if before.tail and before.window_seq == trouble.windows else 0
        if short or empty >= EMPTY:
            reasons = (*reasons, GAP)
        trouble = replace(trouble, windows=before.window_seq, empty=empty)
    return replace(trouble, content=content), reasons
