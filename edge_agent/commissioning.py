"""Commissioning on the device: what is normal for this machine, learnt once, checked, then frozen.

                 start                    normals learnt              scores converged
    IDLE ───────────────────► LEARNING ─────────────────► VERIFYING ─────────────────► ARMED
      ▲                          │  a bad baseline           │                           │
      │                          ├───────────────────────────┴──► REFUSED                │ start: again
      └── rollback (no earlier)  └── cancel ──► CANCELLED                    rollback ───┘ (to the earlier one)

The network stays. Learnt are a second offset and scale a feature (the normals, on top of the bundle's own), the
distribution of the scores that come of them, and the limit. The normals change the score, so the limit rests on later
windows than the normals do. While it is learnt nothing of it acts; once armed nothing is learnt, so a fault never is.

`take` gives the next value; memory is bounded: up to 32 blocks of moments, 2000 scores, thinned by halves, and the newest 5000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_agent import budget, drift, regimes, thresholds
from edge_agent.alarms import AlarmPolicy
from edge_agent.budget import Budget
from edge_agent.drift import Reference
from edge_agent.signals import F32, F64
from edge_agent.thresholds import Threshold

IDLE, LEARNING, VERIFYING, ARMED, REFUSED, CANCELLED = (
    "idle", "learning", "verifying", "armed", "refused", "cancelled",
)  # fmt: skip
ACTIVE = (LEARNING, VERIFYING)
ACTIONS = ("start", "cancel", "rollback")

#: Windows that the normals and the limit rest on at least; the first 40 % of what is asked for are learnt from.
LEARN, VERIFY, LEARN_SHARE = 100, 200, 0.4
#: Fewest windows that may be asked for.
LEAST_ASKED = 50
#: Scores kept; beyond, every second is dropped and only every second window kept from then on.
MAX_SCORES = 2000
#: Newest scores in a row, of all regimes together, that a budget of false alarms is fitted to: votes are over neighbours.
MAX_ROW = 5000
#: Verified windows after which a baseline that has not converged is given up.
GIVE_UP = 20_000
MAX_BLOCKS = 32
MAX_VECTORS = 256
#: A feature's learnt scale is at least this share of the bundle's own.
SCALE_FLOOR = 0.005
#: Scores of one regime that its limit needs.
REGIME_SCORES = 50

# What makes a baseline bad.
#: Windows after which a plainly bad one is refused without waiting for the end.
EARLY = 30
#: Share of windows with a quality fault (or without a regime).
MOST_BAD = 0.2
#: Kurtosis of the high-passed window, median over the learning: Gaussian 3. NASA IMS healthy 3.3 to 4.8, HIT-SM and CWRU
#: normal 2.3 to 3.7; a simulated outer-race fault has 4 to 7 at severity 0.2, 15 and more at 0.5.
MOST_KURTOSIS = 6.0
#: The same together with a line in the envelope spectrum that stands out of its median: neither alone is a fault (a
#: fan's blades beat without impulses; a rough bearing is impulsive without a period).
MOST_PERIODIC = (3.8, 8.0)
#: Bundle's score ÷ its limit, median over the learning; the second where a person vouches for the machine. A bundle for
#: all machines may score a healthy one that it never saw above its limit (HIT-SM normal 1.4 to 4.7, its faults 6.5 and more).
MOST_RATIO, MOST_VOUCHED = 1.0, 5.0
#: The newest `EARLY` windows while verifying, over the median of the learning: a fault that began meanwhile.
MOST_GROWN = 3.0
#: Drift within the learning: share of the blocks' variance that a straight line explains, and its rise in standard
#: deviations of single windows.
DRIFT_LINE, DRIFT_RISE = 0.8, 2.0
#: From one window to the next so much time counts at most: ten times the usual, at least the second; the first step the third.
USUAL_STEPS, STEP_S, FIRST_STEP_S = 10.0, 3600.0, 86400.0

# When the scores have converged.
#: 1 % point of the two-sample Kolmogorov-Smirnov distance, times sqrt(2 / independent scores in a half).
KS_POINT = 1.63
#: Independent scores that all verified ones must be worth, and width of the limit's 90 % interval over the limit.
LEAST_INDEPENDENT, NARROW = 25.0, 0.35
RESAMPLED = 40


class Refused(Exception):  # noqa: N818 - an answer to a person, not a fault
    """A command that the present phase does not allow; the text says what would be possible."""


@dataclass(frozen=True)
class Impulse:
    """How impulsive a raw window is. kurtosis: high-passed, largest channel; peak: of the envelope spectrum over its median."""

    kurtosis: float
    peak: float


@dataclass(frozen=True)
class RegimeLimit:
    """The limit in one regime, and the values that were learnt from (None for clusters)."""

    name: str
    threshold: Threshold
    low: float | None = None
    high: float | None = None


def _none() -> F32:
    return np.zeros((0,), np.float32)


def _no_rows() -> F32:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Baseline:
    """What was learnt of one machine; frozen.

    bundle          : sha256 of the bundle it belongs to
    armed           : event time, s
    offset, scale   : (F,) on standardised features; empty where the bundle takes none (an indicator, pictures)
    residual_mean, residual_std : (F,) of the score's residual, for `why`
    threshold       : the limit; with regimes the largest of theirs
    limits          : one a regime; empty without regimes
    centres         : (N, F) of clustered regimes, in learnt normals
    reference       : of the verified scores, for drift; None where they cannot carry it
    """

    bundle: str
    armed: float
    n_learnt: int
    n_verified: int
    offset: F32
    scale: F32
    residual_mean: F32
    residual_std: F32
    threshold: Threshold
    limits: tuple[RegimeLimit, ...] = ()
    centres: F32 = field(default_factory=_no_rows)
    reference: Reference | None = None
    by: str | None = None
    why: str | None = None

    def normalise(self, vectors: F32) -> F32:
        """Standardised vectors (..., F) in units of this machine's own normal."""
        return _normalise(vectors, self.offset, self.scale)

    def limit(self, regime: str | None) -> RegimeLimit | None:
        """The regime's own limit; None where it was not learnt."""
        return next((limit for limit in self.limits if limit.name == regime), None)


@dataclass(frozen=True)
class Plan:
    """What a commissioning is asked for, and how its limit is fitted.

    windows, for_s : learning and verifying together take so many windows and seconds at least
    rate           : promised share of healthy windows above the limit
    budget_s, policy : instead, one false alarm in so many seconds by this policy
    healthy        : a person vouches for the machine: the bundle's limit may be wrong about it, within bounds
    normals        : whether the bundle's features may be shifted and scaled
    clusters       : number of clustered regimes; 0 for none or a topic
    regimes        : whether a window without a regime cannot be learnt from
    """

    windows: int | None = None
    for_s: float | None = None
    healthy: bool = False
    method: str = "gamma"
    rate: float = 1e-4
    budget_s: float | None = None
    policy: AlarmPolicy | None = None
    normals: bool = True
    clusters: int = 0
    regimes: bool = False

    @property
    def learn(self) -> int:
        """Windows to learn the normals from."""
        return LEARN if self.windows is None else round(LEARN_SHARE * self.windows)

    @property
    def verify(self) -> int:
        """Windows to rest the limit on."""
        return VERIFY if self.windows is None else self.windows - self.learn


@dataclass(frozen=True, eq=False)
class Progress:
    """A commissioning on its way: everything that grows, bounded.

    seen, bad  : windows that came, and those not learnt from (quality faults, regime not known)
    end        : of the newest window, event time, s; elapsed: seconds that the windows of this phase span, but for jumps
    blocks     : (k, 1 + 2 F) count, mean and mean square about it of consecutive windows
    block      : windows a block
    impulses   : (m, 2), of all windows, every `thin`-th; own: (m,) bundle's score ÷ limit, of those of this phase
    newest     : (m,) the same of the newest `EARLY` verified; learnt_own: median over the learning, None where it is not known
    vectors    : (m, F) of the same, for clusters only
    offset, scale, centres : once learnt
    scores     : (n,) verified, every `stride`-th, with `labels` (n,) into `names`
    row        : (r,) the newest in a row, with `row_labels`; for a budget of false alarms only
    ranges     : (low, high) of the operating values of each name
    residual   : (2, F) sum and sum of squares of the score's residual over `n_verified` windows
    checked    : number of verified windows at the last look; note: what it said
    """

    seen: int = 0
    bad: int = 0
    n_learnt: int = 0
    n_verified: int = 0
    end: float | None = None
    elapsed: float = 0.0
    blocks: F32 = field(default_factory=_no_rows)
    block: int = 1
    impulses: F32 = field(default_factory=_no_rows)
    own: F32 = field(default_factory=_none)
    vectors: F32 = field(default_factory=_no_rows)
    thin: int = 1
    newest: F32 = field(default_factory=_none)
    learnt_own: float | None = None
    offset: F32 = field(default_factory=_none)
    scale: F32 = field(default_factory=_none)
    centres: F32 = field(default_factory=_no_rows)
    scores: F32 = field(default_factory=_none)
    labels: F32 = field(default_factory=_none)
    names: tuple[str, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    row: F32 = field(default_factory=_none)
    row_labels: F32 = field(default_factory=_none)
    stride: int = 1
    residual: F32 = field(default_factory=_no_rows)
    checked: int = 0
    note: str = ""

    def normalise(self, vectors: F32) -> F32:
        """Standardised vectors (..., F) in the normals that were learnt."""
        return _normalise(vectors, self.offset, self.scale)


@dataclass(frozen=True, eq=False)
class Commissioning:
    """Where a sensor stands. `baseline` acts unless a new one is being learnt; `previous` is what rollback returns to.

    episode : how many were started
    asked   : None before the first; going: None unless learning or verifying. An idle sensor's state stays small
    """

    phase: str = IDLE
    percent: int = 0
    reason: str = ""
    episode: int = 0
    by: str | None = None
    why: str | None = None
    asked: Plan | None = None
    going: Progress | None = None
    baseline: Baseline | None = None
    previous: Baseline | None = None

    @property
    def plan(self) -> Plan:
        """What is, or was last, asked for."""
        return self.asked or Plan()

    @property
    def progress(self) -> Progress:
        """How far it has come; a fresh one where nothing is learnt."""
        return self.going or Progress()

    @property
    def active(self) -> bool:
        """Whether it is learning or verifying."""
        return self.phase in ACTIVE

    @property
    def acting(self) -> Baseline | None:
        """The baseline that judges now; None: the bundle's own limit does."""
        return None if self.active else self.baseline


@dataclass(frozen=True)
class Seen:
    """One window as commissioning looks at it.

    vectors : (n_frames, F) standardised by the bundle
    own     : the bundle's score ÷ its limit; None while a history fills
    score, residual : under the learnt normals, while verifying
    regime, value   : of a topic, None where none holds; clusters are found here
    raised  : whether this window raised the machine alarm; alarm: whether it stands
    """

    start: float
    end: float
    vectors: F32
    own: float | None
    quality: str = "good"
    impulse: Impulse | None = None
    score: float | None = None
    residual: F32 | None = None
    regime: str | None = None
    value: float | None = None
    raised: bool = False
    alarm: bool = False


# ---------------------------------------------------------------------------- commands


def start(c: Commissioning, plan: Plan, by: str | None = None, why: str | None = None) -> Commissioning:
    """Begin to learn; the bundle's own limit acts until this is armed. Raises Refused."""
    if c.active:
        raise Refused(f"a commissioning is {c.phase} ({c.percent} %); cancel it first")
    if plan.windows is not None and plan.windows < LEAST_ASKED:
        raise Refused(f"windows is {plan.windows}; expected at least {LEAST_ASKED}")
    if plan.for_s is not None and not (math.isfinite(plan.for_s) and 0.0 < plan.for_s <= 365 * 86400.0):
        raise Refused(f"for_s is {plan.for_s!r}; expected seconds above 0, at most 365 days")
    return replace(
        c, phase=LEARNING, percent=0, reason="learning the normals", episode=c.episode + 1,
        by=by, why=why, asked=plan, going=Progress(),
    )  # fmt: skip


def cancel(c: Commissioning) -> Commissioning:
    """Give up what is being learnt; the baseline before it acts again. Raises Refused."""
    if not c.active:
        raise Refused(f"nothing to cancel: commissioning is {c.phase}")
    return _ended(c, CANCELLED, "cancelled")


def rollback(c: Commissioning) -> Commissioning:
    """Go back to the baseline before the present one, or to the bundle's own limit. Raises Refused."""
    if c.active:
        raise Refused(f"a commissioning is {c.phase}; cancel it first")
    if c.baseline is None:
        raise Refused("nothing to roll back: the bundle's own limit acts")
    back = c.previous
    phase, reason = (IDLE, "rolled back to the bundle's own limit") if back is None else (ARMED, "rolled back")
    return replace(
        c, phase=phase, percent=0 if back is None else 100, reason=reason, baseline=back, previous=None,
        going=None,
    )  # fmt: skip


def forget(c: Commissioning, reason: str) -> Commissioning:
    """Without any baseline: what belongs to another bundle means nothing."""
    return Commissioning(REFUSED if c.active or c.baseline else c.phase, 0, reason, c.episode)


def refuse(c: Commissioning, reason: str) -> Commissioning:
    """End with the reason; the baseline before acts again."""
    return _ended(c, REFUSED, reason)


def _ended(c: Commissioning, phase: str, reason: str) -> Commissioning:
    return replace(c, phase=phase, percent=0, reason=reason, going=None)


# ---------------------------------------------------------------------------- windows


def take(c: Commissioning, seen: Seen, bundle: str, names: Sequence[str] = ()) -> Commissioning:
    """Look at one window while learning or verifying; the phase may have changed in the answer.

    bundle : the sha256 that the baseline will carry; names: (F,) of the features, for reasons
    """
    if not c.active:
        return c
    plan, p = c.plan, c.progress
    # Where a person vouches for it, a machine above the bundle's limit from the start is judged by how far it is above.
    if seen.raised and (p.seen >= EARLY or not plan.healthy):
        return refuse(c, f"the bundle's own limit raised an alarm meanwhile: find its cause, {_VOUCH}")
    p = replace(p, seen=p.seen + 1)
    if seen.quality != "good" or (plan.regimes and seen.regime is None):
        p = replace(p, bad=p.bad + 1)
        if p.seen >= EARLY and p.bad > MOST_BAD * p.seen:
            what = "have a quality fault or no operating value" if plan.regimes else "have a quality fault"
            return refuse(c, f"{p.bad} of {p.seen} windows {what}, at most {MOST_BAD:.0%} may: mend the sensor first")
        return replace(c, going=p)
    if c.phase == LEARNING:
        return _learn(replace(c, going=_timed(p, p.n_learnt, seen)), seen, names)
    if seen.score is None:
        return replace(c, going=p)
    return _verify(replace(c, going=_timed(p, p.n_verified, seen)), seen, bundle)


def _timed(p: Progress, n: int, seen: Seen) -> Progress:
    """One window more in the time that has passed, after n of this phase. A clock that was set, or a machine that stood for a weekend, is no
    time that was learnt from."""
    step = seen.end - (seen.start if p.end is None else p.end)
    most = FIRST_STEP_S if n < 2 else max(STEP_S, USUAL_STEPS * p.elapsed / n)
    return replace(p, end=seen.end, elapsed=p.elapsed + min(max(step, 0.0), most))


def _learn(c: Commissioning, seen: Seen, names: Sequence[str]) -> Commissioning:
    plan, p = c.plan, c.progress
    v: F64 = seen.vectors.astype(np.float64)
    p = _thinned(p)
    keep = p.n_learnt % p.thin == 0
    vector = v.mean(0)
    p = replace(
        _looked_at(p, seen, p.n_learnt),
        n_learnt=p.n_learnt + 1,
        blocks=_block(p, v),
        block=p.block,
        vectors=_append(p.vectors, vector) if keep and plan.clusters else p.vectors,
    )
    if len(p.blocks) == MAX_BLOCKS and p.blocks[-1, 0] >= p.block * len(v):
        p = replace(p, blocks=_joined(p.blocks), block=2 * p.block)
    done = p.n_learnt / plan.learn
    if plan.for_s is not None:
        done = min(done, p.elapsed / (LEARN_SHARE * plan.for_s))
    if p.n_learnt >= EARLY and (p.n_learnt % 10 == 0 or done >= 1.0) and (bad := _bad(p, plan.healthy)) is not None:
        return refuse(c, bad)
    if done < 1.0:
        return replace(c, percent=int(40.0 * done), going=p)
    if seen.alarm and not plan.healthy:
        return refuse(c, f"an alarm of the bundle's own limit stands: {_VOUCH}")
    if (moved := _drifted(p, names)) is not None:
        return refuse(c, moved)
    offset, scale = _normals(p) if plan.normals else (_none(), _none())
    centres = p.centres
    if plan.clusters:
        centres = regimes.cluster(_normalise(p.vectors, offset, scale), plan.clusters)
    width = v.shape[-1]
    p = Progress(
        seen=p.seen, bad=p.bad, n_learnt=p.n_learnt, end=seen.end, offset=offset, scale=scale, centres=centres,
        impulses=p.impulses, thin=p.thin, learnt_own=float(np.median(p.own)) if p.own.size else None,
        residual=np.zeros((2, width), np.float32),
    )  # fmt: skip
    return replace(c, phase=VERIFYING, percent=40, reason="verifying the normals on later windows", going=p)


def _verify(c: Commissioning, seen: Seen, bundle: str) -> Commissioning:
    plan, p = c.plan, c.progress
    assert seen.score is not None  # asked before
    assert seen.residual is not None
    regime = seen.regime or ""
    if plan.clusters:
        regime = regimes.nearest(p.centres, p.normalise(seen.vectors).mean(0))
    p = _with_range(p, regime, seen.value)
    p = _looked_at(_thinned(p), seen, p.n_verified)
    # A regime that was learnt may be louder than another by more than a fault makes it.
    if seen.own is not None and not plan.regimes and not plan.clusters:
        p = replace(p, newest=np.append(p.newest, np.float32(seen.own))[-EARLY:])
    if p.n_verified % p.stride == 0:
        p = replace(
            p,
            scores=np.append(p.scores, np.float32(seen.score)),
            labels=np.append(p.labels, np.float32(p.names.index(regime))),
        )
        if p.scores.size >= MAX_SCORES:
            p = replace(p, scores=p.scores[::2], labels=p.labels[::2], stride=2 * p.stride)
    if plan.budget_s is not None:
        p = _with_row(p, np.float32(seen.score), p.names.index(regime))
    r = seen.residual.astype(np.float64)
    p = replace(p, n_verified=p.n_verified + 1, residual=(p.residual + np.stack([r, r * r])).astype(np.float32))
    done = p.n_verified / plan.verify
    if plan.for_s is not None:
        done = min(done, p.elapsed / ((1.0 - LEARN_SHARE) * plan.for_s))
    if p.n_verified >= EARLY and (p.n_verified % 10 == 0 or done >= 1.0) and (bad := _bad(p, plan.healthy)) is not None:
        return refuse(c, bad)
    if done < 1.0:
        return replace(c, percent=40 + int(50.0 * done), going=p)
    if p.checked and p.n_verified < 1.1 * p.checked:
        return replace(c, going=p)
    found, note = _converged(plan, p)
    p = replace(p, checked=p.n_verified, note=note)
    if not found:
        if p.n_verified >= GIVE_UP:
            return refuse(c, f"not converged after {p.n_verified} windows: {note}")
        return replace(c, percent=max(c.percent, min(99, 90 + p.n_verified * 10 // GIVE_UP)), reason=note, going=p)
    mean = p.residual[0].astype(np.float64) / p.n_verified
    spread = np.sqrt(np.maximum(p.residual[1].astype(np.float64) / p.n_verified - mean * mean, 0.0))
    baseline = Baseline(
        bundle, seen.end, p.n_learnt, p.n_verified, p.offset, p.scale,
        mean.astype(np.float32), np.maximum(spread, 1e-6).astype(np.float32),
        max((limit.threshold for limit in found), key=lambda t: t.value),
        () if [limit.name for limit in found] == [""] else found,
        p.centres, drift.reference(p.scores.astype(np.float64)), c.by, c.why,
    )  # fmt: skip
    return replace(
        c, phase=ARMED, percent=100, reason=f"armed on {p.n_learnt} + {p.n_verified} windows: {note}",
        baseline=baseline, previous=c.baseline, going=None,
    )  # fmt: skip


# ---------------------------------------------------------------------------- normals, and what is wrong with them


def impulse(x: F32, fs_hz: float) -> Impulse:
    """Of a raw window (C, n), the channel with the largest kurtosis.

    High-passed at fs / 16, ideal. Gaussian noise has kurtosis 3 and a peak of 3 to 4, silence 0 and 0; a sine 1.5.
    The envelope is squared; its spectrum is looked at from the third bin or 5 Hz to fs / 20.
    """
    n = x.shape[-1]
    spectrum = np.fft.fft(np.asarray(x, np.float64) - x.mean(-1, keepdims=True))
    f = np.fft.fftfreq(n, 1.0 / fs_hz)
    analytic = np.fft.ifft(np.where(f >= fs_hz / 16.0, 2.0 * spectrum, 0.0))
    power = np.square(analytic.real)
    second = np.square(power.mean(-1))
    tiny = 1e-30 * np.square(np.square(np.asarray(x, np.float64)).mean(-1))
    kurtosis = np.where(second > tiny, np.square(power).mean(-1) / np.where(second > tiny, second, 1.0), 0.0)
    channel = int(kurtosis.argmax())
    if not kurtosis[channel] > 0.0:
        return Impulse(0.0, 0.0)
    envelope = np.square(np.abs(analytic[channel]))
    lines = np.abs(np.fft.rfft(envelope - envelope.mean()))
    first = max(3, math.ceil(5.0 * n / fs_hz))
    lines = lines[first : max(first + 1, int(n / 20))]
    middle = float(np.median(lines)) if lines.size else 0.0
    return Impulse(float(kurtosis[channel]), float(lines.max()) / middle if middle > 0.0 else 0.0)


_VOUCH = "or vouch for the machine (--healthy) where it is known to be in order"


def _bad(p: Progress, healthy: bool) -> str | None:
    """Why the windows learnt from so far cannot be a baseline; None where they can."""
    if p.own.size:
        ratio, most = float(np.median(p.own)), MOST_VOUCHED if healthy else MOST_RATIO
        if ratio > most:
            return (
                f"the bundle's own score is {ratio:.1f} times its limit (median; at most {most:g}): a damaged machine, "
                f"or one of a kind that the bundle does not know{'' if healthy else '; ' + _VOUCH}"
            )
    if p.newest.size == EARLY and p.learnt_own is not None:
        now = float(np.median(p.newest))
        if now > max(MOST_RATIO, MOST_GROWN * p.learnt_own):
            return (
                f"the bundle's own score has grown to {now / max(p.learnt_own, 1e-9):.1f} times what it was while the normals were learnt (median of "
                f"{EARLY} windows; at most {MOST_GROWN:g}): find out what has changed at the machine"
            )
    if len(p.impulses):
        kurtosis, peak = (float(m) for m in np.median(p.impulses, 0))
        if kurtosis > MOST_KURTOSIS:
            return (
                f"the signal is impulsive: kurtosis {kurtosis:.1f} above fs/16 (Gaussian 3, at most {MOST_KURTOSIS:g}), as of "
                "a damaged bearing; commission a healthy machine"
            )
        if kurtosis > MOST_PERIODIC[0] and peak > MOST_PERIODIC[1]:
            return (
                f"the envelope is impulsive and periodic: kurtosis {kurtosis:.1f} (at most {MOST_PERIODIC[0]:g}) and a line {peak:.0f} "
                f"times the envelope spectrum's median (at most {MOST_PERIODIC[1]:g}), as of a bearing's rolling over a fault"
            )
    return None


def _drifted(p: Progress, names: Sequence[str]) -> str | None:
    """Whether a feature runs away in a straight line over the learning."""
    blocks: F64 = p.blocks.astype(np.float64)
    blocks = blocks[blocks[:, 0] >= 0.5 * blocks[:, 0].max()]
    k, width = len(blocks), (blocks.shape[1] - 1) // 2
    if k < 6:
        return None
    mean = blocks[:, 1 : 1 + width]
    at = np.arange(k) - (k - 1) / 2.0
    slope = at @ mean / (at @ at)
    about = np.square(mean - mean.mean(0)).sum(0)
    share = np.divide(slope * slope * (at @ at), about, out=np.zeros(width), where=about > 0.0)
    # What single windows scatter around the line.
    inner = blocks[:, 1 + width :].mean(0) + np.square(mean - mean.mean(0) - np.outer(at, slope)).mean(0)
    rise = np.abs(slope) * (k - 1) / np.maximum(np.sqrt(inner), SCALE_FLOOR)
    rise = np.where(share > DRIFT_LINE, rise, 0.0)
    worst = int(rise.argmax())
    if rise[worst] <= DRIFT_RISE:
        return None
    return (
        f"the machine still changes: {names[worst] if names else f'feature {worst}'} moved {rise[worst]:.1f} standard deviations in a line while it was learnt "
        f"(at most {DRIFT_RISE:g}): let it run in or warm up, or learn for longer"
    )


def _normals(p: Progress) -> tuple[F32, F32]:
    """Mean and standard deviation of each feature over all blocks, the latter never below the floor."""
    blocks: F64 = p.blocks.astype(np.float64)
    width = (blocks.shape[1] - 1) // 2
    share = blocks[:, 0] / blocks[:, 0].sum()
    mean = share @ blocks[:, 1 : 1 + width]
    second = share @ (blocks[:, 1 + width :] + np.square(blocks[:, 1 : 1 + width] - mean))
    return mean.astype(np.float32), np.maximum(np.sqrt(second), SCALE_FLOOR).astype(np.float32)


def _normalise(vectors: F32, offset: F32, scale: F32) -> F32:
    if not offset.size:
        return vectors
    return np.asarray((vectors - offset) / scale, np.float32)


def _block(p: Progress, v: F64) -> F32:
    """The blocks with the frames v (n, F) taken in: into the last one until it holds `block` windows."""
    n, mean = float(len(v)), v.mean(0)
    row = np.concatenate([[n], mean, np.square(v - mean).mean(0)])
    if not p.blocks.size:
        return row[None].astype(np.float32)
    if p.blocks[-1, 0] < p.block * n:
        return np.concatenate([p.blocks[:-1], _pooled(p.blocks[-1].astype(np.float64), row)[None]]).astype(np.float32)
    return np.concatenate([p.blocks, row[None]]).astype(np.float32)


def _pooled(a: F64, b: F64) -> F64:
    """Two blocks as one."""
    width = (a.size - 1) // 2
    n = a[0] + b[0]
    wa, wb = a[0] / n, b[0] / n
    apart = b[1 : 1 + width] - a[1 : 1 + width]
    square = wa * a[1 + width :] + wb * b[1 + width :] + wa * wb * apart * apart
    return np.concatenate([[n], wa * a[1 : 1 + width] + wb * b[1 : 1 + width], square])


def _joined(blocks: F32) -> F32:
    b: F64 = blocks.astype(np.float64)
    return np.stack([_pooled(b[i], b[i + 1]) for i in range(0, len(b), 2)]).astype(np.float32)


def _append(rows: F32, row: Any) -> F32:
    new = np.asarray(row, np.float32)[None]
    return new if not rows.size else np.concatenate([rows, new])


def _looked_at(p: Progress, seen: Seen, n: int) -> Progress:
    """The n-th window's impulses and bundle's score noted, where it is one of those that are kept."""
    if n % p.thin:
        return p
    impulse, own = seen.impulse, seen.own
    return replace(
        p,
        impulses=p.impulses if impulse is None else _append(p.impulses, (impulse.kurtosis, impulse.peak)),
        own=p.own if own is None else np.append(p.own, np.float32(own)).astype(np.float32),
    )


def _thinned(p: Progress) -> Progress:
    """Half of what is kept of single windows, where it has become too much."""
    if p.own.size < MAX_VECTORS and len(p.impulses) < MAX_VECTORS and len(p.vectors) < MAX_VECTORS:
        return p
    return replace(p, own=p.own[::2], impulses=p.impulses[::2], vectors=p.vectors[::2], thin=2 * p.thin)


def _with_row(p: Progress, score: np.float32, label: int) -> Progress:
    """One score more in a row; of the regime that has more than its share the oldest goes."""
    row, labels = np.append(p.row, score), np.append(p.row_labels, np.float32(label))
    if (own := labels == label).sum() > MAX_ROW // len(p.names):
        oldest = int(own.argmax())
        row, labels = np.delete(row, oldest), np.delete(labels, oldest)
    return replace(p, row=row, row_labels=labels)


def _with_range(p: Progress, regime: str, value: float | None) -> Progress:
    if regime not in p.names:
        p = replace(p, names=(*p.names, regime), ranges=(*p.ranges, (math.inf, -math.inf)))
    if value is None:
        return p
    i = p.names.index(regime)
    low, high = p.ranges[i]
    if low <= value <= high:
        return p
    ranges = (*p.ranges[:i], (min(low, value), max(high, value)), *p.ranges[i + 1 :])
    return replace(p, ranges=ranges)


# ---------------------------------------------------------------------------- convergence


def _converged(plan: Plan, p: Progress) -> tuple[tuple[RegimeLimit, ...], str]:
    """The limits where the scores of every regime that has enough of them have converged; else () and why not yet."""
    found = []
    notes = []
    for i, name in enumerate(p.names):
        scores: F64 = p.scores[p.labels == i].astype(np.float64)
        if len(p.names) > 1 and scores.size < REGIME_SCORES:
            notes.append(f"{name}: {scores.size} scores, not enough to know it")
            continue
        threshold, note = settle(scores, plan.method, plan.rate)
        where = f"{name}: " if name else ""
        if threshold is None:
            return (), where + note
        if plan.budget_s is not None and plan.policy is not None:
            try:
                # Every window votes, so neighbours are fitted to, at the time from one to the next. Each regime has the
                # budget's rate in its own windows, so all have it together.
                hop_s = max(p.elapsed / p.n_verified, 1e-3)
                row: F64 = p.row[p.row_labels == i].astype(np.float64)
                promise = budget.fit(row, hop_s, plan.policy, Budget(plan.budget_s), floor=threshold.value)
            except ValueError as error:
                return (), where + str(error)
            threshold = promise.threshold
            note += f"; {promise.statement or f'{promise.wanted} is kept'}"
        low, high = p.ranges[i]
        known = low <= high
        found.append(RegimeLimit(name, threshold, low if known else None, high if known else None))
        notes.append(where + note)
    if not found:
        return (), "; ".join(notes) or "no score yet"
    return tuple(found), "; ".join(notes)


def settle(scores: F64, method: str, rate: float) -> tuple[Threshold | None, str]:
    """The limit of healthy scores (n,) in time order where they have converged, else None; and the figures in words.

    Converged: worth enough independent scores, the two halves have one distribution, and the limit's interval is narrow. The
    interval is that of a block bootstrap, the blocks two correlation times long.
    """
    n = scores.size
    time = drift.correlation_time(np.log(np.maximum(scores, 1e-12)))
    worth = n / time
    if worth < LEAST_INDEPENDENT:
        return None, f"{n} scores are worth {worth:.0f} independent ones; {LEAST_INDEPENDENT:g} are needed"
    half = n // 2
    distance = ks_distance(scores[:half], scores[half:])
    critical = KS_POINT * math.sqrt(2.0 / (worth / 2.0))
    if distance > critical:
        return None, f"the two halves of the scores differ (KS {distance:.2f}, at most {critical:.2f})"
    try:
        threshold = thresholds.fit(scores, method, rate)
        low, high = _interval(scores, method, rate, time)
    except ValueError as error:
        return None, str(error)
    width = (high - low) / threshold.value
    if width > NARROW:
        return None, f"the limit is known to {width:.0%} of itself only; at most {NARROW:.0%} is asked for"
    params = {**threshold.params, "interval_low": low, "interval_high": high, "correlation_time": time}
    text = f"halves agree (KS {distance:.2f} ≤ {critical:.2f}), limit {threshold.value:.4g} known to {width:.0%}"
    return replace(threshold, value=max(threshold.value, high), params=params), text


def ks_distance(a: F64, b: F64) -> float:
    """Largest distance between two empirical distribution functions, 0 to 1."""
    both = np.concatenate([a, b])
    at = np.searchsorted(np.sort(a), both, "right") / a.size - np.searchsorted(np.sort(b), both, "right") / b.size
    return float(np.abs(at).max())


def _interval(scores: F64, method: str, rate: float, time: float) -> tuple[float, float]:
    """5 % and 95 % points of the limit over resampled series of blocks."""
    n = scores.size
    length = min(n, math.ceil(2.0 * time))
    # The same scores give the same interval: a restart computes nothing else.
    rng = np.random.default_rng(n)
    limits = []
    for _ in range(RESAMPLED):
        begins = rng.integers(0, n, math.ceil(n / length))
        index = (begins[:, None] + np.arange(length)).ravel()[:n] % n
        limits.append(thresholds.fit(scores[index], method, rate).value)
    low, high = np.quantile(limits, [0.05, 0.95])
    return float(low), float(high)
