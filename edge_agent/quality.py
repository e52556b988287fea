"""Whether a window's samples can be believed, told from the samples and a profile of healthy ones (NAMUR NE 107).

    samples ─► finite, of a size that can be? ─► level ─► repeated values ─► spikes ─► rails ─► DC ─► spectrum ─► Verdict
                 │                                 │            │               └───────────┴──────┴────┴─► suspect: scored, marked
                 └─────────────────────────────────┴────────────┴─► bad: not scored

A machine with a fault must not be taken for a broken sensor. So nothing here judges by "unlike the healthy
windows" alone: each check looks for the mark that its cause leaves and that no machine makes, such as values
repeated to the bit, a line at the mains' exact frequency, a spike of one sample that nothing rings after, or a
spectrum that is the healthy one moved by an octave. Where the cause can be undone the verdict carries the
repaired samples, and a crossing counts only if it survives the repair.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent import fft
from edge_agent.signals import F32, F64

GOOD, SUSPECT, BAD = "good", "suspect", "bad"

NOT_FINITE, GAP, DUPLICATE, WRONG_RATE = "not_finite", "gap", "duplicate", "wrong_rate"
STUCK, SIGNAL_LOST, LOST_CHANNEL, LOW_LEVEL = "stuck", "signal_lost", "lost_channel", "low_level"
HUM, CLIPPING, SPIKES, IMPULSES, DC_STEP, SWAPPED = "hum", "clipping", "spikes", "impulses", "dc_step", "swapped_channels"
#: Stands beside `clipping` where the rail lies inside the healthy amplitudes: the sensor's doing, not the machine's.
RAIL_LOW = "rail_low"

#: Windows with one of these are not scored. `gap` and `duplicate` are told of messages.
BAD_REASONS = (NOT_FINITE, GAP, WRONG_RATE, STUCK, SIGNAL_LOST, LOST_CHANNEL, LOW_LEVEL)
SUSPECT_REASONS = (DUPLICATE, HUM, CLIPPING, SPIKES, IMPULSES, DC_STEP, SWAPPED)
#: Not sensor trouble: an idle machine, and blows that may well be the fault itself.
NO_TROUBLE = frozenset({LOW_LEVEL, IMPULSES, RAIL_LOW})

#: Level under the healthy one at which a machine is off (-20 dB) and at which nothing is left of the signal (-40 dB).
IDLE, NOTHING = 0.1, 0.01
#: A signal that takes no more values than these, at an idle level, is the converter's own noise.
LEVELS = 8
#: Mains frequencies in Hz, how far a grid strays from them, and the harmonics that are looked at.
MAINS, GRID_HZ, HARMONICS = (50.0, 60.0), 0.25, 8
#: A window of fewer cycles of the mains cannot tell them from a slow motion.
CYCLES = 6
#: A line is this many times the median of the bins around it; noise alone reaches it once in some thousand bins.
STANDS_OUT = 12.0
#: Half of that is enough for a healthy window to count as one that has the line.
KNOWN = 6.0
#: Share of samples at the extremes from which the healthy windows are clipped themselves, and tell nothing of it.
RAILS = 0.002
#: Bands from which two spectra have shapes that can be told apart.
SHAPED = 9
#: Longest stretch transformed at once, and how many of them of a long window.
SEGMENT, SEGMENTS = 8192, 3
#: No sensor gives a value beyond this in any unit, and float32 carries the square of one below it; a flipped exponent bit makes
#: 1e38 of 0.5.
ABSURD = 1e15
#: So many times the level (of the window, or the healthy one if that is higher) lies no fault: a converter of 24 bits hardly
#: reaches it, and in a float32 mean such a value rounds the signal away.
FAR = 2.0**20
_TINY = 1e-30


@dataclass(frozen=True)
class Profile:
    """What healthy windows of one sensor are like; plain numbers, so that it can be stored. One entry a channel.

    rms, peak, crest : of the samples without their mean: median, largest |value|, largest peak / rms
    quiet            : lowest rms but for windows in which nothing was left of the signal; 0: no level means that the machine is
                       off, as in a bundle for machines of any level
    wander           : standard deviation of the means of half windows
    run, repeats     : longest run of equal samples; share of samples equal to the one before
    rails            : share of samples at the extremes, but for one at each
    bands            : dB, third octaves from fs/2 downwards; `half`: of every other sample (a stream of half the rate)
    spread           : dB, rms difference of a healthy window's bands from `bands`
    lines            : largest power of a line at the mains' harmonics, 50 Hz then 60 Hz, as a share of all power; 0 where there
                       is power, such as a fan's rumble, and no line
    """

    fs_hz: float
    n_samples: int
    rms: tuple[float, ...]
    quiet: tuple[float, ...]
    peak: tuple[float, ...]
    crest: tuple[float, ...]
    wander: tuple[float, ...]
    run: tuple[int, ...]
    repeats: tuple[float, ...]
    rails: tuple[float, ...]
    bands: tuple[tuple[float, ...], ...]
    half: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]
    lines: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, windows: F32, fs_hz: float) -> Profile:
        """Healthy windows (k, C, n), k >= 1 -> their profile; raises ValueError where they are not finite."""
        x = np.asarray(windows, np.float32)
        if x.ndim != 3 or not x.size:
            raise ValueError(f"windows have shape {x.shape}; expected (windows, channels, samples), none of them 0")
        if not np.isfinite(x).all():
            raise ValueError("healthy windows hold NaN or infinity; expected finite samples")
        k, n_channels, n = x.shape
        ac = x - x.mean(-1, keepdims=True)
        rms, peak = np.sqrt((ac * ac).mean(-1)), np.abs(ac).max(-1)
        half = n // 2 * 2
        # Around the mean of each window: from one healthy window to the next an offset may drift.
        halves = ac[..., :half].reshape(k, n_channels, 2, -1).mean(-1) if half else np.zeros((k, n_channels, 2))
        spectra = [_spectrum(w, fs_hz) for w in ac]
        bands = np.mean([s.bands for s in spectra], 0)
        spread = np.sqrt(np.mean([_shape(s.bands - bands) ** 2 for s in spectra], (0, 2)))
        slow = [_spectrum(w[:, ::2] - w[:, ::2].mean(-1, keepdims=True), fs_hz, bands.shape[1]) for w in ac]
        runs = [[_longest_run(c)[0] for c in w] for w in x]
        return cls(
            fs_hz=float(fs_hz),
            n_samples=n,
            rms=_floats(np.median(rms, 0)),
            quiet=_floats(_quiet(rms)),
            peak=_floats(peak.max(0)),
            crest=_floats((peak / np.maximum(rms, _TINY)).max(0)),
            wander=_floats(np.sqrt((halves**2).mean((0, 2)))),
            run=tuple(int(r) for r in np.max(runs, 0)),
            repeats=_floats((x[..., 1:] == x[..., :-1]).mean(-1).max(0)) if n > 1 else (0.0,) * n_channels,
            rails=_floats(np.maximum(_at_extremes(x) - 2, 0).max(0) / n),
            bands=tuple(map(_floats, bands)),
            half=tuple(map(_floats, np.mean([s.bands for s in slow], 0))),
            spread=_floats(spread),
            lines=tuple(map(_floats, np.max([_lines(s) for s in spectra], 0))),
        )

    def joined(self, other: Profile, n: int, more: int = 1) -> Profile:
        """This profile of n windows and that of some more, as one; the levels' medians become their mean."""
        a, b = _arrays(self), _arrays(other)
        share = more / (n + more)

        def mean(one: NDArray[Any], two: NDArray[Any]) -> NDArray[Any]:
            joined: NDArray[Any] = (1.0 - share) * one + share * two
            return joined

        off = (_shape(b.bands - a.bands) ** 2).mean(-1) if a.bands.size else 0.0 * a.spread
        return Profile(
            fs_hz=self.fs_hz,
            n_samples=self.n_samples,
            rms=_floats(mean(a.rms, b.rms)),
            quiet=_floats(_quiet(np.stack([a.quiet, b.quiet]))),
            peak=_floats(np.maximum(a.peak, b.peak)),
            crest=_floats(np.maximum(a.crest, b.crest)),
            wander=_floats(np.sqrt(mean(a.wander**2, b.wander**2))),
            run=tuple(map(max, self.run, other.run)),
            repeats=tuple(map(max, self.repeats, other.repeats)),
            rails=_floats(np.maximum(a.rails, b.rails)),
            bands=tuple(map(_floats, mean(a.bands, b.bands))),
            half=tuple(map(_floats, mean(a.half, b.half))),
            spread=_floats(np.sqrt(mean(a.spread**2, b.spread**2 + off))),
            lines=tuple(map(_floats, np.maximum(a.lines, b.lines))),
        )

    def fits(self, fs_hz: float, n_channels: int, n_samples: int) -> bool:
        """Whether it is of windows of this shape and rate, and whole in itself."""
        each = (self.rms, self.quiet, self.peak, self.crest, self.wander, self.run, self.repeats, self.rails, self.spread)
        rows = (self.bands, self.half, self.lines)
        return (
            self.n_samples == n_samples
            and abs(self.fs_hz - fs_hz) <= 1e-3 * fs_hz
            and all(len(v) == n_channels for v in (*each, *rows))
            and all(len({len(row) for row in v}) == 1 for v in rows)
            and len(self.bands[0]) == len(self.half[0])
            and len(self.lines[0]) == len(MAINS) * HARMONICS
        )


@dataclass(frozen=True)
class Verdict:
    """What was found: quality, the reasons (most telling first), and the samples without what can be undone.

    repaired : (C, n), None where nothing was undone
    mean     : (C,) of the samples, for the next window's `mean`
    absurd   : whether values that no sensor gives were undone: the score of the samples as they came then means nothing, and a
               network's float32 may not carry it
    """

    quality: str = GOOD
    reasons: tuple[str, ...] = ()
    repaired: F32 | None = None
    mean: tuple[float, ...] = ()
    absurd: bool = False


def votes(quality: str, reasons: tuple[str, ...]) -> bool:
    """Whether a scored window is voted on, from its row alone.

    Not where the sensor saturates below the healthy peaks: what it hides may be anything. Clipping above them may
    be the fault itself. For all else that is suspect the row's ratio is the smaller of raw and repaired.
    """
    return quality != BAD and RAIL_LOW not in reasons


def inspect(x: F32, fs_hz: float, profile: Profile | None = None, mean: tuple[float, ...] = ()) -> Verdict:
    """Judge one window (C, n) at fs_hz.

    profile : None leaves the checks that need none; ignored where it is of another shape or rate
    mean    : (C,) offset of this sensor as it has been, for `dc_step`; empty: unknown
    """
    n_channels, n = x.shape
    if profile is not None and (len(profile.rms), profile.n_samples) != (n_channels, n):
        profile = None
    healthy = None if profile is None else _arrays(profile)
    hi, lo = x.max(-1), x.min(-1)
    limits = itertools.repeat(ABSURD) if healthy is None else healthy.far
    # In Python's numbers: none overflows, NaN and infinity fail every comparison, and it is faster for a few channels.
    extremes = zip(hi.tolist(), lo.tolist(), limits, strict=False)
    odd = [c for c, (top, low, most) in enumerate(extremes) if not (top - low <= most and low >= -ABSURD and top <= ABSURD)]
    if not odd:
        return _inspect(x, hi, lo, fs_hz, healthy, mean)
    sane = _without_absurd(x, odd, healthy)
    if sane is None:
        return Verdict(BAD, (NOT_FINITE,))
    verdict = _inspect(sane, sane.max(-1), sane.min(-1), fs_hz, healthy, mean)
    if sane is x or verdict.quality == BAD:
        return verdict
    reasons = (SPIKES, *(r for r in verdict.reasons if r != SPIKES))
    return Verdict(SUSPECT, reasons, sane if verdict.repaired is None else verdict.repaired, verdict.mean, absurd=True)


def _inspect(x: F32, hi: F32, lo: F32, fs_hz: float, healthy: _Healthy | None, mean: tuple[float, ...]) -> Verdict:
    """Judge a window (C, n) of finite samples, none of them absurd; hi, lo: (C,) its extremes."""
    n_channels, n = x.shape
    ones = _ones(n)
    offset = x @ ones / n
    now = tuple(offset.tolist())
    ac = x - offset[:, None]
    rms = np.sqrt(np.einsum("ij,ij->i", ac, ac) / n)
    lost = _lost(x, hi - lo, rms, healthy)
    if lost:
        return Verdict(BAD, (lost,), mean=now)
    equal = x[:, 1:] == x[:, :-1]
    if np.count_nonzero(equal) > 8:
        repeats = np.count_nonzero(equal, axis=-1)
        for c in np.flatnonzero(repeats > 8):
            usual = (1, 0.0) if healthy is None else (healthy.run[c], healthy.repeats[c])
            reason = _repeated(x[c], equal[c], int(repeats[c]), hi[c], lo[c], *usual)
            if reason:
                return Verdict(BAD, (reason,), mean=now)
    reasons: list[str] = []
    clean = ac  # what is left when the causes found so far are undone, without its mean
    peak = np.maximum(hi - offset, offset - lo)
    high = peak > (6.0 * rms if healthy is None else 1.3 * healthy.peak)
    if high.any():
        found = _without_spikes(x, high, healthy)
        if found:
            reasons.append(SPIKES)
            # They lean on the mean as well.
            clean, offset = ac.copy(), offset.copy()
            for k, (mended, middle) in found.items():
                clean[k], offset[k] = mended, middle
            leant = clean @ ones / n
            clean = clean - leant[:, None]
            offset = offset + leant
            now = tuple(offset.tolist())
            peak = np.abs(clean).max(-1)
            rms = np.sqrt(np.einsum("ij,ij->i", clean, clean) / n)
    if SPIKES not in reasons:
        rail = _clipped(x, hi, lo, healthy)
        if rail is not None:
            reasons.append(CLIPPING)
            if healthy is not None and (peak[rail] <= healthy.peak[rail]).all():
                reasons.append(RAIL_LOW)
    shift = offset - np.asarray(mean, np.float32) if len(mean) == n_channels else None
    stepped, moved = _without_step(clean, shift, rms, healthy)
    if moved:
        reasons.append(DC_STEP)
        clean = stepped
    order: tuple[int, ...] | None = None
    if healthy is not None:
        spectrum = _spectrum(clean, fs_hz, healthy.bands.shape[1])
        if not reasons and _octave_off(spectrum.bands, rms, healthy):
            return Verdict(BAD, (WRONG_RATE,), mean=now)
        humming = _hum(spectrum, clean, fs_hz, healthy)
        if humming is not None:
            reasons.append(HUM)
            clean = humming
        elif n_channels > 1:
            order = _swapped(spectrum.bands, healthy)
            if order is not None:
                reasons.append(SWAPPED)
        blow = (peak > 2.5 * healthy.peak) & (peak > 1.5 * healthy.crest * rms)
    else:
        blow = peak > 12.0 * rms
    if CLIPPING not in reasons and HUM not in reasons and blow.any():
        reasons.append(IMPULSES)
    if not reasons:
        return Verdict(mean=now)
    repaired = None
    if clean is not ac or order is not None:
        # The offset as it was before a step, else the window's own.
        base = np.asarray(mean, np.float32) if DC_STEP in reasons and shift is not None else offset
        repaired = clean + base[:, None]
        if order is not None:
            repaired = repaired[list(order)]
    return Verdict(SUSPECT, tuple(reasons), repaired, now)


# ---------------------------------------------------------------- level


def _lost(x: F32, span: F32, rms: F32, healthy: _Healthy | None) -> str | None:
    """No signal, a lost channel of several, or an idle machine."""
    dead = span == 0
    if healthy is not None:
        low = rms < healthy.idle
        if low.any():
            dead = dead | (rms < NOTHING / IDLE * healthy.idle)
            for c in np.flatnonzero(low & ~dead):
                dead[c] = np.unique(x[c]).size <= LEVELS
    else:
        low = dead
        if len(rms) > 1 and rms.min() < 1e-3 * np.median(rms):
            dead = dead | (rms < 1e-3 * np.median(rms))
    if not dead.any():
        return LOW_LEVEL if low.all() else None
    if len(dead) > 1 and not (dead | low).all():
        return LOST_CHANNEL
    # A converter that repeats its last value is stuck; one that reads nothing gives zeros or its own noise.
    return STUCK if (span == 0).all() and x[:, 0].any() else SIGNAL_LOST


# ---------------------------------------------------------------- repeated values


def _longest_run(x: F32) -> tuple[int, int]:
    """(length, first index) of the longest run of equal samples."""
    edges = np.flatnonzero(np.concatenate([[True], x[1:] != x[:-1], [True]]))
    lengths = np.diff(edges)
    i = int(lengths.argmax())
    return int(lengths[i]), int(edges[i])


def _repeated(
    x: F32,
    equal: NDArray[np.bool_],
    repeats: int,
    hi: float,
    lo: float,
    healthy_run: int,
    healthy_share: float,
) -> str | None:
    """A stuck stretch, or every value given 2 to 4 times: a slower stream that was held to look like this one."""
    n = len(x)
    share = repeats / (n - 1)
    for hold in (2, 3, 4):
        if abs(share - (1.0 - 1.0 / hold)) < 0.06 and healthy_share < 0.3:
            # Values change at every hold-th place only, whatever the first is.
            changes = np.bincount((np.flatnonzero(~equal) + 1) % hold, minlength=hold)
            if changes.max() >= 0.97 * changes.sum():
                return WRONG_RATE
    shortest = max(8 + 4 * healthy_run, min(n // 32, 512))
    if repeats < shortest - 1:
        return None
    length, at = _longest_run(x)
    if length < shortest:
        return None
    # At a rail it is saturation, unless hardly anything else is left.
    return None if x[at] in (hi, lo) and length < n // 2 else STUCK


# ---------------------------------------------------------------- spikes, rails, offset


def _without_absurd(x: F32, channels: list[int], healthy: _Healthy | None) -> F32 | None:
    """x with values that no sensor gives interpolated from their neighbours, x itself where `channels` hold none.

    None where x is not finite, or more than an eighth of a channel is absurd in itself, as after a wrong byte order: what is
    left then says nothing of the machine. Values far out of all proportion that are more than that are no single wrong words,
    and are left to the other checks.
    """
    if not np.isfinite(x).all():
        return None
    out, most = x, x.shape[1] // 8
    for c in channels:
        wild = np.abs(x[c]) > ABSURD
        if np.count_nonzero(wild) > most:
            return None
        if healthy is not None:
            # A median hardly notices them, where a mean would; bounded, no difference leaves float32.
            bounded = x[c].clip(-ABSURD, ABSURD)
            apart = np.abs(bounded - np.median(bounded))
            far = wild | (apart > FAR * max(float(np.median(apart)), float(healthy.rms[c])))
            wild = far if np.count_nonzero(far) <= most else wild
        if wild.any():
            out = x.copy() if out is x else out
            good = np.flatnonzero(~wild)
            out[c, wild] = np.interp(np.flatnonzero(wild), good, x[c, good])
    return out


def _without_spikes(x: F32, high: NDArray[np.bool_], healthy: _Healthy | None) -> dict[int, tuple[F32, float]]:
    """Spikes of one sample that nothing rings after, replaced by their neighbours' mean: {channel: (samples, what was taken off
    them)} of the channels with some.

    A blow on metal rings: beside its peak stand others about as large. A flipped bit leaves its neighbours alone.
    """
    out: dict[int, tuple[F32, float]] = {}
    for c in np.flatnonzero(high):
        if x.shape[1] < 16:
            break
        # Off the mean, on which the spikes lean, the rest would come rounded to the spikes' last digit.
        middle = np.median(x[c])
        y = x[c] - middle
        bend = np.abs(y[1:-1] - 0.5 * (y[:-2] + y[2:]))
        usual, size = (float(np.median(a)) * 1.4826 + _TINY for a in (bend, np.abs(y)))
        floor = 6.0 * size if healthy is None else max(5.0 * size, float(healthy.peak[c]))
        wild = np.flatnonzero((bend > 8.0 * usual) & (np.abs(y[1:-1]) > floor)) + 1
        if not wild.size or wild.size > len(y) // 8:
            continue
        mended, alone, jump = _mended(y, wild)
        enough = alone.sum() >= 3 or bool((jump[alone] > 14.0 * usual).any())
        if not enough or alone.sum() < 0.6 * len(wild):
            continue
        # Where some words are wrong, others are so within the healthy peaks: the sharpest bend around, and nothing rings after it.
        bend = np.abs(mended[1:-1] - 0.5 * (mended[:-2] + mended[2:]))
        small = np.flatnonzero((bend[1:-1] > 6.0 * usual) & (bend[1:-1] > np.maximum(bend[:-2], bend[2:]))) + 2
        if small.size:
            _, alone, _ = _mended(mended, small)
            mended, *_ = _mended(mended, small[alone])
        out[int(c)] = mended, float(middle)
    return out


def _mended(x: F32, wild: NDArray[np.intp]) -> tuple[F32, NDArray[np.bool_], F32]:
    """x with the samples `wild` interpolated; which of them nothing rings after; by how much they stood out."""
    mended, good = x.copy(), np.ones(len(x), bool)
    good[wild] = False
    mended[wild] = np.interp(wild, np.flatnonzero(good), x[good])
    left = np.abs(mended[1:-1] - 0.5 * (mended[:-2] + mended[2:]))
    jump: F32 = np.abs(x[wild] - mended[wild])
    # What the mended neighbourhood still bends, four samples to each side: ringing, where there is some.
    beside = wild[:, None] + np.arange(-4, 5) - 1
    rings = left[np.clip(beside, 0, len(left) - 1)].max(-1)
    alone: NDArray[np.bool_] = (rings < 0.25 * jump) & np.isin(wild - 1, wild, invert=True) & np.isin(wild + 1, wild, invert=True)
    return mended, alone, jump


def _clipped(x: F32, hi: F32, lo: F32, healthy: _Healthy | None) -> NDArray[np.bool_] | None:
    """Channels whose values pile up at an extreme, None where none does."""
    n = x.shape[1]
    if np.count_nonzero((x == hi[:, None]) | (x == lo[:, None])) <= max(5, 0.0004 * n):
        return None
    most = np.maximum(
        np.count_nonzero(x == hi[:, None], axis=-1), np.count_nonzero(x == lo[:, None], axis=-1)
    )
    full = most > max(5, 0.0004 * n)
    if healthy is not None:
        full &= (most > 3.0 * n * healthy.rails) & bool((healthy.rails < RAILS).all())
    for c in np.flatnonzero(full):
        values, counts = np.unique(x[c], return_counts=True)
        full[c] = values.size > 2 and (_piles_up(values, counts) or _piles_up(-values[::-1], counts[::-1]))
    return full if full.any() else None


def _piles_up(values: F32, counts: NDArray[Any]) -> bool:
    """Whether the highest value comes more often than those just below it would let one expect."""
    step = float(np.median(np.diff(values[-12:])))
    near = max(2.5 * step, 0.03 * float(values[-1] - values[0]))
    below = values[:-1] > values[-1] - near
    # One value's share of what lies just below; thrice that and some is no tail that thins out.
    expected = float(counts[:-1][below].sum()) * step / near
    return bool(counts[-1] > 3.0 * expected + max(4.0, 0.0003 * counts.sum()))


def _without_step(
    ac: F32, shift: F32 | None, rms: F32, healthy: _Healthy | None
) -> tuple[F32, bool]:
    """A jump of the offset, within the window or since the windows before, taken out."""
    n = ac.shape[1] // 2 * 2
    if n < 16:
        return ac, False
    first = ac[:, : n // 2] @ _ones(n // 2) / (n // 2)
    usual = 0.5 * rms if healthy is None else 6.0 * healthy.wander + 0.35 * np.maximum(rms, healthy.rms)
    moved = 0.0 if shift is None else shift
    # The window's mean is out already, so its halves lie at +first and about -first.
    off = np.maximum(np.abs(moved + first), np.abs(moved - first)) > usual
    if not off.any():
        return ac, False
    out = ac.copy()
    for c in np.flatnonzero(off):
        path = np.cumsum(ac[c], dtype=np.float64)
        k = int(np.abs(path).argmax()) + 1
        if 8 <= k <= ac.shape[1] - 8:
            before, after = ac[c, :k].mean(), ac[c, k:].mean()
            if abs(after - before) > float(np.atleast_1d(usual)[c]):
                out[c, :k] -= before
                out[c, k:] -= after
    return out, True


# ---------------------------------------------------------------- spectrum


class _Spectrum(NamedTuple):
    """bands, lines: as in `Profile`; power (C, m) and the bin width in Hz; total (C,)."""

    bands: F64
    lines: F64
    power: F32
    df_hz: float
    total: F32


class _Healthy(NamedTuple):
    """A profile as arrays, levels above 0. idle: (C,) under which the machine is off; most: the largest spread; far: (C,)
    highest less lowest sample up to which none is looked for that no sensor gives."""

    rms: F32
    quiet: F32
    peak: F32
    crest: F32
    wander: F32
    run: tuple[int, ...]
    repeats: tuple[float, ...]
    rails: F32
    bands: F64
    half: F64
    spread: F64
    lines: F64
    idle: F32
    most: float
    far: tuple[float, ...]


@lru_cache(maxsize=64)
def _arrays(profile: Profile) -> _Healthy:
    f32 = [np.asarray(v, np.float32) for v in (profile.quiet, profile.peak, profile.crest, profile.wander)]
    f64 = [np.asarray(v, np.float64) for v in (profile.bands, profile.half, profile.spread, profile.lines)]
    rms = np.maximum(np.asarray(profile.rms, np.float32), 1e-12)
    rails = np.asarray(profile.rails, np.float32)
    # A machine that is now and then this quiet when healthy is not off.
    idle = np.minimum(IDLE * rms, 0.5 * f32[0])
    run, repeats, most = profile.run, profile.repeats, max(profile.spread)
    far = tuple(min(FAR * float(r), ABSURD) for r in rms)
    return _Healthy(rms, f32[0], f32[1], f32[2], f32[3], run, repeats, rails, f64[0], f64[1], f64[2], f64[3], idle, most, far)


class _Plan(NamedTuple):
    window: F32
    starts: NDArray[np.intp]
    edges: NDArray[np.intp]
    widths: F32
    lines: NDArray[np.intp]
    usable: NDArray[np.bool_]


@lru_cache(maxsize=32)
def _ones(n: int) -> F32:
    # A product with ones is a sum, several times as fast.
    return np.ones(n, np.float32)


@lru_cache(maxsize=16)
def _plan(n: int, fs_hz: float, n_bands: int | None) -> _Plan:
    m = min(n, SEGMENT)
    k = 1 if n < 2 * m else min(SEGMENTS, n // m)
    starts = np.round(np.linspace(0, n - m, k)).astype(np.intp)
    window = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(m) / m)).astype(np.float32)
    window *= np.float32(1.0 / np.sqrt(np.sum(window.astype(np.float64) ** 2)))
    # As many thirds of an octave as have 3 bins even when every other sample is left out.
    if n_bands is None:
        n_bands = 0
        while m / 4 * 2.0 ** (-n_bands / 3) * (1 - 2.0 ** (-1 / 3)) >= 3.0:
            n_bands += 1
    edges = np.maximum(1, np.round(m / 2 * 2.0 ** (-np.arange(n_bands + 1) / 3))).astype(np.intp)[::-1]
    frequencies = np.array([f * h for f in MAINS for h in range(1, HARMONICS + 1)])
    at = np.round(frequencies * m / fs_hz).astype(np.intp)
    usable = (at >= 3) & (at + 2 <= m // 2)
    lines = np.where(usable, at, 1)[:, None] + np.arange(-1, 2)
    return _Plan(window, starts, edges, np.diff(edges).astype(np.float32), np.minimum(lines, m // 2), usable)


def _spectrum(ac: F32, fs_hz: float, n_bands: int | None = None) -> _Spectrum:
    """(C, n) without mean -> third octaves in dB, mains lines, power."""
    plan = _plan(ac.shape[1], fs_hz, n_bands)
    m = len(plan.window)
    parts = [fft.rfft(ac[:, s : s + m] * plan.window) for s in plan.starts]
    power = _squared(parts[0])
    if len(parts) > 1:
        power = sum((_squared(p) for p in parts[1:]), power) / np.float32(len(parts))
    total = power.sum(-1) + np.float32(_TINY)
    if plan.widths.size:
        sums = np.add.reduceat(power[:, : plan.edges[-1]], plan.edges[:-1], axis=-1)
        bands = 10.0 * np.log10(sums / plan.widths + _TINY)[:, ::-1]
    else:
        bands = np.zeros((len(ac), 0))
    lines = power[:, plan.lines].sum(-1) * plan.usable / total[:, None]
    return _Spectrum(bands, lines, power, fs_hz / m, total)


def _squared(spectrum: NDArray[np.complex64]) -> F32:
    """|z|², in place of z."""
    v: F32 = spectrum.view(np.float32)
    v *= v
    power: F32 = v[..., ::2] + v[..., 1::2]
    return power


def _shape(bands: F64) -> F64:
    """Differences in dB without their mean: a change of level is no change of shape."""
    centred: F64 = bands - bands.mean(-1, keepdims=True) if bands.shape[-1] else bands
    return centred


def _distance(a: F64, b: F64) -> float:
    d = _shape(a - b)
    return float(np.sqrt(np.vdot(d, d) / d.size))


def _octave_off(bands: F64, rms: F32, healthy: _Healthy) -> bool:
    """Whether the spectrum is the healthy one moved by an octave: samples at half or double the stated rate.

    Levels match where the rate is wrong, which tells it from a machine that runs twice as fast (louder).
    """
    k = bands.shape[1]
    if k < SHAPED + 3:
        return False
    usual, here = healthy.most, _distance(bands, healthy.bands)
    if here <= max(3.0, 2.5 * usual) or not 0.6 < np.sqrt(np.mean((rms / healthy.rms) ** 2)) < 1.7:
        return False
    there = min(
        _distance(bands, healthy.half),
        _distance(bands[:, : k - 3], healthy.bands[:, 3:]),
        _distance(bands[:, 3:], healthy.bands[:, : k - 3]),
    )
    return there < 0.4 * here and there < max(2.5, 1.8 * usual)


def _swapped(bands: F64, healthy: _Healthy) -> tuple[int, ...] | None:
    """The order that puts the channels back, where one is far better than the order as it is."""
    n, k = bands.shape
    if k < SHAPED or n > 8:
        return None
    cost = np.sqrt(((bands[:, None, :] - healthy.bands[None, :, :]) ** 2).mean(-1))
    here, usual = float(np.trace(cost)) / n, healthy.most
    if here <= max(1.5, 1.5 * usual):
        return None
    places = np.arange(n)
    orders = itertools.permutations(range(n)) if n <= 4 else _exchanges(n)
    # order[j] is the channel that belongs at place j.
    best = min(orders, key=lambda order: float(cost[list(order), places].sum()))
    there = cost[list(best), places]
    moved = np.array(best) != places
    if not moved.any():
        return None
    if there[moved].mean() > 0.5 * np.diag(cost)[moved].mean() or there.max() > max(3.0, 2.5 * usual):
        return None
    return tuple(int(i) for i in best)


def _exchanges(n: int) -> list[tuple[int, ...]]:
    found = [tuple(range(n))]
    for i, j in itertools.combinations(range(n), 2):
        order = list(range(n))
        order[i], order[j] = j, i
        found.append(tuple(order))
    return found


def _hum(spectrum: _Spectrum, ac: F32, fs_hz: float, healthy: _Healthy) -> F32 | None:
    """The samples without lines of the mains that healthy windows do not have, None where there are none.

    An induction motor turns a few per cent slower than the mains, so its own line is told by its frequency.
    """
    share = spectrum.lines
    grown = (share > 0.02) & (share > 6.0 * healthy.lines + 0.01)
    if not grown.any() or ac.shape[1] < CYCLES * fs_hz / MAINS[0]:
        return None
    out: F32 | None = None
    for c in range(len(ac)):
        for g, mains in enumerate(MAINS):
            mine = grown[c, g * HARMONICS : (g + 1) * HARMONICS]
            # What is coupled in has the mains' own frequency; only twice that is what iron cores and fans sound.
            if not mine[0] or share[c, g * HARMONICS : (g + 1) * HARMONICS][mine].sum() < 0.05:
                continue
            if _height(spectrum.power[c], round(mains / spectrum.df_hz)) < KNOWN:
                continue
            h = int(np.argmax(share[c, g * HARMONICS : g * HARMONICS + 3] * mine[:3])) + 1
            k = round(h * mains / spectrum.df_hz)
            if _height(spectrum.power[c], k) < STANDS_OUT:
                continue
            f = _exact_hz(ac[c], h * mains, fs_hz)
            slack = max(GRID_HZ * h, 0.04 * fs_hz / ac.shape[1])
            if abs(f - h * mains) > slack:
                continue
            out = ac.copy() if out is None else out
            out[c] = _without_lines(ac[c], f / h, fs_hz, spectrum.power[c], spectrum.df_hz)
            break
    return out


def _height(power: F32, k: int) -> float:
    """The power of bin k and its neighbours over the median of the bins around them; infinite where there are none."""
    around = np.r_[power[max(1, k - 8) : max(1, k - 2)], power[k + 3 : k + 9]]
    return float(power[k - 1 : k + 2].max() / (np.median(around) + np.float32(_TINY))) if around.size else np.inf


def _lines(spectrum: _Spectrum) -> F64:
    """Shares of the mains' lines where they are lines: (C, 2 x harmonics)."""
    out = np.zeros_like(spectrum.lines)
    for c, i in zip(*np.nonzero(spectrum.lines), strict=True):
        g, h = divmod(int(i), HARMONICS)
        if _height(spectrum.power[c], round((h + 1) * MAINS[g] / spectrum.df_hz)) >= KNOWN:
            out[c, i] = spectrum.lines[c, i]
    return out


def _exact_hz(x: F32, f_hz: float, fs_hz: float) -> float:
    """Frequency of the line near f_hz, from how its phase goes on between the window's halves."""
    n = len(x) // 2
    taper = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)
    t = np.arange(n) / fs_hz
    for _ in range(3):
        turn = taper * np.exp(-2j * np.pi * f_hz * t)
        a, b = np.dot(x[:n], turn), np.dot(x[n : 2 * n], turn)
        ahead = np.angle(b * np.conj(a) * np.exp(-2j * np.pi * f_hz * n / fs_hz))
        f_hz += float(ahead) / (2.0 * np.pi * n / fs_hz)
    return f_hz


def _without_lines(x: F32, f_hz: float, fs_hz: float, power: F32, df_hz: float) -> F32:
    """x with f_hz and those of its harmonics up to 20 that stand out of `power` projected out (least squares over the window)."""
    n = len(x)
    base = np.exp(2j * np.pi * f_hz / fs_hz * np.arange(n))
    turn = np.ones(n, complex)
    columns = []
    for h in range(1, min(20, int(0.49 * fs_hz / f_hz)) + 1):
        turn = turn * base
        k = round(h * f_hz / df_hz)
        # The first is known to be there; of the others a resonance alone may hold as much.
        if h == 1 or STANDS_OUT < _height(power, k) < np.inf:
            columns += [turn.real, turn.imag]
    basis = np.stack(columns)
    left = x.astype(np.float64)
    left -= np.linalg.solve(basis @ basis.T, basis @ left) @ basis
    return left.astype(np.float32)


def _at_extremes(x: F32) -> NDArray[np.intp]:
    at: NDArray[np.intp] = ((x == x.max(-1, keepdims=True)) | (x == x.min(-1, keepdims=True))).sum(-1)
    return at


def _quiet(rms: F32) -> F32:
    """Rows of levels -> the lowest that is a signal."""
    quiet: F32 = np.where(rms > NOTHING * np.median(rms, 0), rms, np.inf).min(0)
    return np.where(np.isfinite(quiet), quiet, 0.0).astype(np.float32)


def _floats(a: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in a)
